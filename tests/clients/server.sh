# Sourced by scripts like those in this folder, at the root of the checkout. Provides the program, a home directory that
# is removed with the script, and servers in it.

# Settings of whoever runs this, which would lead to databases and archives of theirs.
unset DATABASE_URL DATABASE_URL_READ_REPLICA DIRECT_URL CONFIG_FILE_PATH LITESPEND_ARCHIVE_URL

target=${CARGO_TARGET_DIR:-target}
bin=${LITESPEND_BIN:-$target/debug/litespend}
[ -n "${LITESPEND_BIN:-}" ] || cargo build --locked --bin litespend

home=$(mktemp -d /tmp/litespend-clients-XXXXXX)
chmod 755 "$home"
servers=()
finish() {
    local server
    for server in ${servers[@]+"${servers[@]}"}; do
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    done
    rm -rf "$home"
}
trap finish EXIT

# start NAME MASTER_KEY [VARIABLE=VALUE...]: starts a server and waits until it listens; sets $address to its address.
start() {
    local name=$1 master_key=$2
    shift 2
    env LITELLM_MASTER_KEY="$master_key" "$@" "$bin" serve --port 0 --data-dir "$home/data" \
        >"$home/$name" 2>"$home/$name.log" &
    # The server that was started last stops first, because it may use the PostgreSQL of the first one.
    servers=("$!" ${servers[@]+"${servers[@]}"})
    for _ in $(seq 300); do
        grep -q 'master key' "$home/$name" && break
        kill -0 "${servers[0]}" 2>/dev/null || { cat "$home/$name.log" >&2; exit 1; }
        sleep 0.1
    done
    address=$(sed -nE 's/.*listening on ([^)]+).*/\1/p' "$home/$name")
}

# sql DATABASE [ARGUMENTS]: runs psql on the servers' private PostgreSQL.
sql() {
    local database=$1 psql
    shift
    psql=$(command -v psql || ls /usr/lib/postgresql/*/bin/psql 2>/dev/null | tail -1)
    PGPORT=5432 PGSSLMODE=disable "$psql" -q -h "$home/data/run" -U litespend "$database" "$@"
}
