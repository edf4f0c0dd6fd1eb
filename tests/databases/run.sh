#!/usr/bin/env bash
# Runs litespend on the databases that LiteLLM's users have: LiteLLM's own migrations in several versions and shapes, on
# the system's PostgreSQL and on PostgreSQL 18. Needs Python 3.11 and the package index, so it is not among the tests of
# `./dev test`. LITESPEND_BIN names a ready program; without it, a debug build is made.
#   tests/databases/run.sh [--short] [--only NAME] [--list]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

target=${CARGO_TARGET_DIR:-target}
bin=${LITESPEND_BIN:-$target/debug/litespend}
[ -n "${LITESPEND_BIN:-}" ] || cargo build --locked --bin litespend

venv=$target/databases-venv
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install -q --disable-pip-version-check -r tests/databases/requirements.txt

export PYTHONDONTWRITEBYTECODE=1
exec "$venv/bin/python" tests/databases/databases.py --target "$target" --litespend "$bin" "$@"
