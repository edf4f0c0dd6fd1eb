#!/usr/bin/env bash
# Compares a server with LiteLLM's own code, of the version that is the reference, by random requests on one database:
# tests/reference/compare.sh [--seed N] [--requests N] [--costs N] [--every-model]. Needs Python 3 and the package index, and takes half
# a gigabyte for LiteLLM and what it imports, so it is not among the tests of `./dev test`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

target=${CARGO_TARGET_DIR:-target}
bin=${LITESPEND_BIN:-$target/debug/litespend}
[ -n "${LITESPEND_BIN:-}" ] || cargo build --locked --bin litespend
venv=$target/reference-venv
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install -q --disable-pip-version-check -r tests/reference/requirements.txt

home=$(mktemp -d /tmp/litespend-reference-XXXXXX)
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

# Starts a server and waits until it listens; its address goes to $address.
start() {
    local name=$1
    shift
    env -u DATABASE_URL LITELLM_MASTER_KEY=sk-master-1234 "$@" "$bin" serve --port 0 --data-dir "$home/data" \
        >"$home/$name" 2>"$home/$name.log" &
    servers=("$!" ${servers[@]+"${servers[@]}"})
    for _ in $(seq 300); do
        grep -q 'master key' "$home/$name" && break
        kill -0 "${servers[0]}" 2>/dev/null || { cat "$home/$name.log" >&2; exit 1; }
        sleep 0.1
    done
    address=$(sed -nE 's/.*listening on ([^)]+).*/\1/p' "$home/$name")
}

# The first server's private PostgreSQL holds the database; the second one takes that for a LiteLLM's.
start first
socket=$home/data/run
psql=$(command -v psql || ls /usr/lib/postgresql/*/bin/psql 2>/dev/null | tail -1)
PGPORT=5432 PGSSLMODE=disable "$psql" -q -h "$socket" -U litespend litespend -c 'CREATE DATABASE reference'
python=$venv/bin/python
export PYTHONPATH=tests/reference
url="postgresql:///reference?host=$socket&port=5432&user=litespend"
"$python" tests/reference/compare.py --database "$url" --prepare "$@"
start second DATABASE_URL="$url"
"$python" tests/reference/compare.py --database "$url" --address "$address" "$@"
# Once more, from the rollups: of costs they know nothing.
again=()
for argument in "$@"; do
    [ "$argument" = --every-model ] || again+=("$argument")
done
env -u LITELLM_MASTER_KEY DATABASE_URL="$url" "$bin" rollups install >"$home/rollups" 2>&1 || { cat "$home/rollups" >&2; exit 1; }
sleep 5
"$python" tests/reference/compare.py --database "$url" --address "$address" ${again[@]+"${again[@]}"} --costs 0
