#!/usr/bin/env bash
# Compares a server with LiteLLM's own code, in the version that is the reference, by random requests on one database.
# Needs Python 3 and the package index, and half a gigabyte for LiteLLM and its dependencies, so it is not among the
# tests of `./dev test`.
#   tests/reference/compare.sh [--seed N] [--requests N] [--costs N] [--every-model]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

case " $* " in
    *" --seed"*) ;;
    *) set -- --seed $((RANDOM * 32768 + RANDOM)) "$@" ;;
esac
echo "tests/reference/compare.sh $*"

. tests/clients/server.sh
venv=$target/reference-venv
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install -q --disable-pip-version-check -r tests/reference/requirements.txt

# The first server's private PostgreSQL holds the database. The second server takes that database for a LiteLLM's.
start first sk-master-1234
socket=$home/data/run
sql litespend -U litespend_superuser -c 'CREATE DATABASE reference OWNER litespend'
python=$venv/bin/python
export PYTHONPATH=tests/reference
url="postgresql:///reference?host=$socket&port=5432&user=litespend"
"$python" tests/reference/compare.py --database "$url" --prepare "$@"
start second sk-master-1234 DATABASE_URL="$url"
"$python" tests/reference/compare.py --database "$url" --address "$address" "$@"
# Compares again, with reads from the rollups. Costs are left out, because they do not use the rollups.
again=()
for argument in "$@"; do
    [ "$argument" = --every-model ] || again+=("$argument")
done
env -u LITELLM_MASTER_KEY DATABASE_URL="$url" "$bin" rollups install >"$home/rollups" 2>&1 || { cat "$home/rollups" >&2; exit 1; }
sleep 5
"$python" tests/reference/compare.py --database "$url" --address "$address" ${again[@]+"${again[@]}"} --costs 0
