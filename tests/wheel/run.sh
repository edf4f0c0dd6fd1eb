#!/usr/bin/env bash
# Installs the wheel in empty environments, and lets it serve: new data, data of an earlier version, and data of PostgreSQL
# 15. README.md beside this file says what is checked. Needs Python 3.10 and the package index, so it is not among the tests
# of `./dev test`. `./dev test-wheel` runs it.
#   tests/wheel/run.sh WHEEL [--only PART]...
set -euo pipefail
wheel=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
shift
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

target=${CARGO_TARGET_DIR:-target}
venv=$target/wheel-test-venv
[ -x "$venv/bin/pip" ] || python3 -m venv --clear "$venv"
if ! cmp -s tests/wheel/requirements.txt "$venv/installed.txt"; then
    # Without uv, what needs it is left out.
    if "$venv/bin/pip" install -q --disable-pip-version-check -r tests/wheel/requirements.txt; then
        cp tests/wheel/requirements.txt "$venv/installed.txt"
    fi
fi

export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=tests/archive
exec "$venv/bin/python" tests/wheel/wheel.py --target "$target" --wheel "$wheel" "$@"
