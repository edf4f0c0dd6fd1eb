#!/usr/bin/env bash
# What LiteLLM answers to GET requests on an empty database, for scripts/follow.py.
#   tests/reference/empty_answers.sh REQUESTS ANSWERS
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

version=$(cat tests/reference/VERSION)
. tests/clients/server.sh
venv=$target/reference-venvs/$version
python3 tests/reference/environment.py "$version" "$venv"
# The proxy starts without it, but then it has no routes of guardrails.
"$venv/bin/python" -c 'import RestrictedPython' 2>/dev/null || "$venv/bin/python" -m pip install -q restrictedpython

# The server's private PostgreSQL holds the database.
start first sk-master-1234
sql litespend -U litespend_superuser -c "CREATE DATABASE empty OWNER litespend"
# No variable of the caller's gets into the answers.
env -i PATH="$PATH" HOME="$home" PYTHONPATH=tests/reference PYTHONDONTWRITEBYTECODE=1 \
    "$venv/bin/python" tests/reference/empty_answers.py --database "postgresql:///empty?host=$home/data/run&port=5432&user=litespend" \
    --requests "$1" --answers "$2"
