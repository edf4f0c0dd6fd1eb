#!/usr/bin/env bash
# Stores in tests/fixtures/changed_answers.json.gz how the LiteLLM that is the reference answers the recorded reads, where it
# answers them otherwise than the older LiteLLM that they were recorded from. The answers come from its own code.
#   tests/reference/record_changed.sh [--out FILE]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

version=$(cat tests/reference/VERSION)
. tests/clients/server.sh
venv=$target/reference-venvs/$version
python3 tests/reference/environment.py "$version" "$venv"
export PYTHONPATH=tests/reference

# The server's private PostgreSQL holds the databases.
start first sk-master-1234
recordings=()
for name in http_answers dashboard_reads; do
    sql litespend -U litespend_superuser -c "CREATE DATABASE $name OWNER litespend"
    recordings+=("$name.json.gz=postgresql:///$name?host=$home/data/run&port=5432&user=litespend")
done
"$venv/bin/python" tests/reference/record_changed.py "$@" "${recordings[@]}"
