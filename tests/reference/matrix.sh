#!/usr/bin/env bash
# Prints how the answers of older LiteLLMs differ from those of the reference, each from its own code. Without arguments, it
# also puts the table into docs/compatibility.md.
#   tests/reference/matrix.sh [--seed N] [--requests N] [VERSION...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

. tests/clients/server.sh
version=$(cat tests/reference/VERSION)
python3 tests/reference/environment.py "$version" "$target/reference-venvs/$version"
start first sk-master-1234
sql litespend -U litespend_superuser -c 'CREATE DATABASE matrix OWNER litespend'
mkdir -p "$home/matrix"
PYTHONPATH=tests/reference "$target/reference-venvs/$version/bin/python" tests/reference/matrix.py \
    --database "postgresql:///matrix?host=$home/data/run&port=5432&user=litespend" \
    --venvs "$target/reference-venvs" --reference "$version" --work "$home/matrix" "$@"
