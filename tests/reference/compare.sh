#!/usr/bin/env bash
# Compares a server with LiteLLM's own code, in the version that is the reference or in another one, by random requests:
# reads and prices on one database, writes on two equal ones. Needs Python 3 and the package index, and half a gigabyte
# for each LiteLLM with its dependencies, so it is not among the tests of `./dev test`.
#   tests/reference/compare.sh [--litellm VERSION] [--seed N] [--requests N] [--costs N] [--writes N] [--every-model]
#       [--same-prices] [--report FILE] [--shown N]
# With --same-prices, litespend has the prices of that LiteLLM's package, so that only rules can differ.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

case " $* " in
    *" --seed"*) ;;
    *) set -- --seed $((RANDOM * 32768 + RANDOM)) "$@" ;;
esac
echo "tests/reference/compare.sh $*"

version=$(cat tests/reference/VERSION)
writes=150
same_prices=
# For the reads and prices, for the reads once more (prices do not use the rollups), and for the writes.
first=() again=() common=()
while [ $# -gt 0 ]; do
    case $1 in
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        --litellm) version=${2:?--litellm needs a version}; shift 2 ;;
        --writes) writes=${2:?--writes needs a number}; shift 2 ;;
        --same-prices) same_prices=yes; shift ;;
        --every-model) first+=("$1"); shift ;;
        --costs) first+=("$1" "$2"); shift 2 ;;
        --requests) first+=("$1" "$2"); again+=("$1" "$2"); shift 2 ;;
        *) common+=("$1"); shift ;;
    esac
done

. tests/clients/server.sh
venv=$target/reference-venvs/$version
python3 tests/reference/environment.py "$version" "$venv"
python=$venv/bin/python
export PYTHONPATH=tests/reference

# The first server's private PostgreSQL holds the databases. The other servers take these for a LiteLLM's.
start first sk-master-1234
socket=$home/data/run
url_of() { echo "postgresql:///$1?host=$socket&port=5432&user=litespend"; }
create() { sql litespend -U litespend_superuser -c "CREATE DATABASE $*"; }
outcome=0
compare() { "$python" tests/reference/compare.py "${common[@]}" "$@" || outcome=$?; }

url=$(url_of reference)
create reference OWNER litespend
"$python" tests/reference/compare.py "${common[@]}" --database "$url" --prepare
create writes_of_litellm TEMPLATE reference OWNER litespend
create writes_of_litespend TEMPLATE reference OWNER litespend
prices=()
if [ -n "$same_prices" ]; then
    prices=("$venv"/lib/python*/site-packages/litellm/model_prices_and_context_window_backup.json)
    prices=(LITELLM_MODEL_COST_MAP_URL="${prices[0]}")
fi
start second sk-master-1234 DATABASE_URL="$url" ${prices[@]+"${prices[@]}"}
compare --database "$url" --address "$address" ${first[@]+"${first[@]}"}
env -u LITELLM_MASTER_KEY DATABASE_URL="$url" "$bin" rollups install >"$home/rollups" 2>&1 || { cat "$home/rollups" >&2; exit 1; }
sleep 5
compare --database "$url" --address "$address" ${again[@]+"${again[@]}"} --costs 0
if [ "$writes" -gt 0 ]; then
    start third sk-master-1234 DATABASE_URL="$(url_of writes_of_litespend)" MANAGE_LITELLM_KEYS=true
    compare --database "$(url_of writes_of_litellm)" --own-database "$(url_of writes_of_litespend)" --address "$address" \
        --writes "$writes"
fi
exit "$outcome"
