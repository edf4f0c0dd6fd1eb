#!/usr/bin/env bash
# LiteLLM's own Python SDK books its calls: its `generic_api` callback is pointed at a server of this script's own, in each
# of the three forms it can send, and every call is looked for in GET /spend/logs with the cost that the SDK worked out.
# Needs Python 3.10 and the package index, so it is not among the tests of `./dev test`. Run by `./dev test-litellm`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

target=${CARGO_TARGET_DIR:-target}
bin=${LITESPEND_BIN:-$target/debug/litespend}
[ -n "${LITESPEND_BIN:-}" ] || cargo build --locked --bin litespend
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

home=$(mktemp -d /tmp/litespend-sdk-XXXXXX)
chmod 755 "$home"
server=
finish() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$home"
}
trap finish EXIT
env -u DATABASE_URL LITELLM_MASTER_KEY=sk-sdk-test "$bin" serve --port 0 --data-dir "$home/data" \
    >"$home/block" 2>"$home/log" &
server=$!
for _ in $(seq 300); do
    grep -q 'master key' "$home/block" && break
    kill -0 "$server" 2>/dev/null || { cat "$home/log" >&2; exit 1; }
    sleep 0.1
done
address=$(sed -nE 's/.*listening on ([^)]+).*/\1/p' "$home/block")
# The price table of the package itself: no test waits for another one from the network.
export LITELLM_LOCAL_MODEL_COST_MAP=True
for form in json_array ndjson single; do
    "$venv/bin/python" tests/clients/litellm_sdk.py "http://$address" sk-sdk-test $form 2>"$home/said" ||
        { cat "$home/said" >&2; exit 1; }
done
