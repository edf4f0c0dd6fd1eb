#!/usr/bin/env bash
# LiteLLM's own Python SDK books its calls: its `generic_api` callback is pointed at a server of this script's own, in each
# of the three forms it can send, and every call is looked for in GET /spend/logs with the cost that the SDK worked out.
# Needs Python 3.10 and the package index, so it is not among the tests of `./dev test`. Run by `./dev test-litellm`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

. tests/clients/server.sh
venv=$target/litellm-sdk
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
version=1.109.1
if ! "$venv/bin/python" -c 'import litellm' 2>/dev/null; then
    if ! "$venv/bin/pip" install -q "litellm==$version" 2>/dev/null; then
        # An index that lags behind: the newest certifi it has will do, whatever lower bound the package names.
        "$venv/bin/pip" install -q --no-deps "litellm==$version"
        "$venv/bin/python" - <<'PY' | "$venv/bin/pip" install -q -r /dev/stdin
from importlib.metadata import requires
for line in requires("litellm"):
    if "extra ==" not in line:
        print("certifi" if line.startswith("certifi") else line)
PY
    fi
fi

start sdk sk-sdk-test
# The price table of the package itself: no test waits for another one from the network.
export LITELLM_LOCAL_MODEL_COST_MAP=True
for form in json_array ndjson single; do
    "$venv/bin/python" tests/clients/litellm_sdk.py "http://$address" sk-sdk-test $form 2>"$home/said" ||
        { cat "$home/said" >&2; exit 1; }
done
