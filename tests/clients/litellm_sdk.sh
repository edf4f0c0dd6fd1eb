#!/usr/bin/env bash
# LiteLLM's own Python SDK books its calls. The SDK's `generic_api` callback sends them to a server that this script
# starts, in each of its three formats. The test then finds every call in GET /spend/logs with the cost that the SDK
# computed. Needs Python 3.10 and the package index, so it is not among the tests of `./dev test`.
# Run by `./dev test-litellm`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

. tests/clients/server.sh
venv=$target/litellm-sdk
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
version=1.109.1
if ! "$venv/bin/python" -c 'import litellm' 2>/dev/null; then
    if ! "$venv/bin/pip" install -q "litellm==$version" 2>/dev/null; then
        # The package index may lag behind. Its newest certifi is good enough, whatever lower bound the package
        # requires.
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
# Use the price table inside the package, so that no test waits for one from the network.
export LITELLM_LOCAL_MODEL_COST_MAP=True
for form in json_array ndjson single; do
    "$venv/bin/python" tests/clients/litellm_sdk.py "http://$address" sk-sdk-test $form 2>"$home/said" ||
        { cat "$home/said" >&2; exit 1; }
done
