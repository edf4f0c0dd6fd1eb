#!/usr/bin/env bash
# Runs schemathesis, which knows only the OpenAPI document: it sends random valid and invalid requests to every
# operation and judges the answers. Prints the seed. Needs Python 3 and the package index, so it is not among the tests
# of `./dev test`.
#   tests/openapi/run.sh [--seed N] [--examples N] [ARGUMENTS of `schemathesis run`]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

seed=$((RANDOM * 32768 + RANDOM)) examples=60
while [ $# -gt 0 ]; do
    case $1 in
        --seed) seed=$2; shift 2 ;;
        --seed=*) seed=${1#--seed=}; shift ;;
        --examples) examples=$2; shift 2 ;;
        *) break ;;
    esac
done

. tests/clients/server.sh
venv=$target/openapi-venv
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install -q --disable-pip-version-check -r tests/openapi/requirements.txt

start openapi sk-openapi-test-of-the-document
sql litespend -f tests/openapi/rows.sql
echo "seed $seed: tests/openapi/run.sh --seed $seed does the same again"
cd "$home"
SCHEMATHESIS_HOOKS=hooks PYTHONPATH="$OLDPWD/tests/openapi" "$OLDPWD/$venv/bin/schemathesis" run \
    "http://$address/openapi.json" -H "x-litellm-api-key: sk-openapi-test-of-the-document" \
    --seed "$seed" --max-examples "$examples" --continue-on-failure --request-timeout 40 --no-color "$@"
