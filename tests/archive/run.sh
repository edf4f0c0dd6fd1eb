#!/usr/bin/env bash
# Reads archives of closed days with DuckDB and ClickHouse's engine, and keeps them on object stores that others wrote
# (moto, azurite). Needs Python 3.11, the package index, and Node.js for azurite, so it is not among the tests of
# `./dev test`. LITESPEND_BIN names a ready program; without it, a debug build is made.
#   tests/archive/run.sh [--only directory|litellm|s3|az|gs|refusals]...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

target=${CARGO_TARGET_DIR:-target}
bin=${LITESPEND_BIN:-$target/debug/litespend}
[ -n "${LITESPEND_BIN:-}" ] || cargo build --locked --bin litespend

venv=$target/archive-venv
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
if ! cmp -s tests/archive/requirements.txt "$venv/installed.txt"; then
    if ! "$venv/bin/pip" install -q --disable-pip-version-check -r tests/archive/requirements.txt; then
        echo "the package index does not answer, or lacks a package: the archive was not tested" >&2
        exit 2
    fi
    cp tests/archive/requirements.txt "$venv/installed.txt"
fi

export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=tests/databases
exec "$venv/bin/python" tests/archive/archive.py --target "$target" --litespend "$bin" "$@"
