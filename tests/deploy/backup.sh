#!/usr/bin/env bash
# Backs up and restores as docs/deployment.md says, on demo data, and compares the answers before and after. run.sh
# calls it; it runs alone, too. LITESPEND_BIN names a ready program, PG_BIN_DIR the directory of PostgreSQL's programs.
#   tests/deploy/backup.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

bin=$(realpath "${LITESPEND_BIN:-${CARGO_TARGET_DIR:-target}/debug/litespend}")
postgres=${PG_BIN_DIR:-$(pg_config --bindir)}
tables=$(realpath migrations/litellm/0001_litellm_tables.sql)
export PATH="$postgres:$PATH"
unset DATABASE_URL DATABASE_URL_READ_REPLICA DIRECT_URL CONFIG_FILE_PATH LITESPEND_ARCHIVE_URL
export LITELLM_MASTER_KEY
LITELLM_MASTER_KEY=sk-$(python3 -c 'import secrets; print(secrets.token_hex(16))')

# Under root, PostgreSQL runs as another account, which must be able to enter the directory.
work=$(mktemp -d /tmp/litespend-backup.XXXXXX)
chmod 755 "$work"
server='' keeper='' restoring=''
clean_up() {
    if [ -n "$restoring" ]; then
        as_owner_of "$restoring" pg_ctl -D "$restoring" -m immediate stop >/dev/null 2>&1 || true
    fi
    for pid in $server $keeper; do
        kill "$pid" 2>/dev/null && wait "$pid" || true
    done
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM
cd "$work"

failed=0
report() {
    printf '%-5s %s\n' "$1" "$2"
    [ "$1" != FAIL ] || failed=1
}
check() {
    local name=$1
    shift
    if "$@" >said 2>&1; then
        report ok "$name"
    else
        report FAIL "$name"
        sed 's/^/      /' said
    fi
}
# For steps without which nothing can be compared.
step() {
    if ! "$@" >said 2>&1; then
        report FAIL "backup and restore: $*"
        tail -5 said
        exit 1
    fi
}

# Starts a server on a free port of this machine, and sets $url.
serve() {
    : >out
    "$bin" serve --host 127.0.0.1 --port 0 "$@" >out 2>log &
    server=$!
    url=
    for _ in $(seq 300); do
        url=$(sed -n 's/^ *address *\(http:[^ ]*\).*/\1/p' out)
        [ -z "$url" ] && kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    if [ -z "$url" ]; then
        report FAIL "serve $*"
        cat log
        exit 1
    fi
}
stop() {
    kill "$server"
    step wait "$server"
    server=
}
settled() {
    for _ in $(seq 150); do
        "$bin" rollups status --database-url "$1" >status || return
        if grep -q '^days to count *0$' status && grep -q '^deltas waiting *0$' status; then return; fi
        sleep 0.2
    done
    echo "the rollups do not settle"
    return 1
}
# The URL of a database in the embedded PostgreSQL of a home.
url_in() { echo "postgresql://litespend@localhost/$2?host=$work/$1/run"; }
# Writes the answers of the server to a file.
answers() {
    local path
    for path in /global/spend/report '/global/spend/report?group_by=customer' '/global/spend/report?group_by=api_key' \
        /global/spend/tags '/spend/logs?summarize=false'; do
        case $path in *\?*) path="$path&$range" ;; *) path="$path?$range" ;; esac
        curl -fsS "$url$path" -H "Authorization: Bearer $LITELLM_MASTER_KEY" || return
        echo
    done >"$1"
}
# Compares two files of answers without the order of lists, and without digits that the order of additions changes.
same_sums() {
    python3 - "$1" "$2" <<'PYTHON'
import json, sys

def plain(value):
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return sorted(map(plain, value), key=json.dumps)
    return round(value, 9) if isinstance(value, float) else value

before, after = ([plain(json.loads(line)) for line in open(name)] for name in sys.argv[1:])
sys.exit(before != after)
PYTHON
}
# Runs a program as the account that owns a directory.
as_owner_of() {
    local owner
    owner=$(stat -c %U "$1")
    shift
    if [ "$owner" = "$(id -un)" ]; then "$@"; else runuser -u "$owner" -- "$@"; fi
}
day() { python3 -c "import datetime as d; print((d.datetime.now(d.UTC) + d.timedelta(days=$1)).date())"; }
range="start_date=$(day -10)&end_date=$(day 1)"

# The embedded database, with two closed days, one of them only in the archive.
step "$bin" demo-data --data-dir "$work/home" --days 5 --calls 50
serve --data-dir "$work/home"
step settled "$(url_in home litespend)"
step "$bin" books close --data-dir "$work/home" --archive "$work/archive" --through "$(day -3)"
step "$bin" books prune --data-dir "$work/home" --archive "$work/archive" --keep-days 3
stop
serve --data-dir "$work/home" --archive "$work/archive"
step answers before
check "the demo data has a report" grep -q '"total_spend":' before
check "pg_dump of the embedded database" pg_dump -h "$work/home/run" -U litespend -Fc -f home.dump litespend
stop

cp -a home copy
serve --data-dir "$work/copy" --archive "$work/archive"
step answers after
check "a copy of the data directory answers as before, byte for byte" cmp before after
stop

cp -a archive archive-copy
step "$bin" migrate --data-dir "$work/restored"
restoring=$work/restored/data
step as_owner_of "$restoring" pg_ctl -D "$restoring" -o "-k $work/restored/run -c listen_addresses=" \
    -l "$restoring/restore.log" -w start
export PGHOST=$work/restored/run
step dropdb -U litespend_superuser litespend
step createdb -U litespend_superuser -O litespend litespend
check "pg_restore into a new embedded database" pg_restore -U litespend -d litespend --no-owner --exit-on-error home.dump
step as_owner_of "$restoring" pg_ctl -D "$restoring" -w stop
restoring=
serve --data-dir "$work/restored" --archive "$work/archive-copy"
step answers after
check "it has the same sums at once" same_sums before after
step settled "$(url_in restored litespend)"
step answers after
check "it has the same sums once its days are counted" same_sums before after
check "its rollups agree with its log and its archive" \
    "$bin" rollups verify --database-url "$(url_in restored litespend)" --archive "$work/archive-copy"
check "its closed days agree with the copy of the archive" \
    "$bin" books verify --data-dir "$work/restored" --archive "$work/archive-copy"
step curl -fsS "$url/spend/logs?$range&summarize=false&limit=1000000" -H 'Accept: application/x-ndjson' \
    -H "Authorization: Bearer $LITELLM_MASTER_KEY" -o log.jsonl
stop

# A database of LiteLLM's, in the same PostgreSQL, which runs as long as a server on its home.
serve --data-dir "$work/home"
keeper=$server server=
export PGHOST=$work/home/run
step createdb -U litespend_superuser -O litespend litellm
step psql -U litespend -d litellm -q -v ON_ERROR_STOP=1 -f "$tables" -c 'CREATE TABLE _prisma_migrations (id text)'
step "$bin" booking install --database-url "$(url_in home litellm)"
step "$bin" import log.jsonl --database-url "$(url_in home litellm)"
step "$bin" rollups install --database-url "$(url_in home litellm)"
serve --database-url "$(url_in home litellm)"
step settled "$(url_in home litellm)"
step answers before
check "pg_dump of LiteLLM's database" pg_dump -U litespend -Fc -f litellm.dump litellm
stop
step createdb -U litespend_superuser -O litespend litellm2
check "pg_restore into an empty database" pg_restore -U litespend -d litellm2 --no-owner --exit-on-error litellm.dump
serve --database-url "$(url_in home litellm2)"
step answers after
check "LiteLLM's restored database answers as before, byte for byte" cmp before after
check "its rollups agree with its log" "$bin" rollups verify --database-url "$(url_in home litellm2)"
stop
exit "$failed"
