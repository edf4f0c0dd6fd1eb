#!/usr/bin/env bash
# Generates a Python client from openapi.yaml with openapi-python-client and calls every operation with it, against a
# server of its own. Needs Python 3 and the package index, so it is not among the tests of `./dev test`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

target=${CARGO_TARGET_DIR:-target}
bin=${LITESPEND_BIN:-$target/debug/litespend}
[ -n "${LITESPEND_BIN:-}" ] || cargo build --locked --bin litespend
venv=$target/clients-venv
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install -q openapi-python-client ruff httpx attrs python-dateutil
# The generator formats its code with ruff, which it looks for in the path.
PATH=$(cd "$venv/bin" && pwd):$PATH

client=$target/clients_python
rm -rf "$client"
"$bin" openapi >"$target/clients-openapi.yaml"
"$venv/bin/openapi-python-client" generate --path "$target/clients-openapi.yaml" --output-path "$client" --meta none \
    --fail-on-warning

home=$(mktemp -d /tmp/litespend-clients-XXXXXX)
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
env -u DATABASE_URL LITELLM_MASTER_KEY=sk-client-test "$bin" serve --port 0 --data-dir "$home/data" \
    >"$home/block" 2>"$home/log" &
server=$!
for _ in $(seq 300); do
    grep -q 'master key' "$home/block" && break
    kill -0 "$server" 2>/dev/null || { cat "$home/log" >&2; exit 1; }
    sleep 0.1
done
address=$(sed -nE 's/.*listening on ([^)]+).*/\1/p' "$home/block")
psql=$(command -v psql || ls /usr/lib/postgresql/*/bin/psql 2>/dev/null | tail -1)
PGPORT=5432 PGSSLMODE=disable "$psql" -q -h "$home/data/run" -U litespend litespend <<'SQL'
INSERT INTO public."LiteLLM_TeamTable" (team_id, team_alias, spend) VALUES ('team', 'Team', 1);
INSERT INTO public."LiteLLM_SpendLogs" (request_id, call_type, api_key, spend, total_tokens, "startTime", "endTime",
                                        model, "user", team_id, end_user, request_tags, metadata, messages)
VALUES ('a', 'acompletion', repeat('a', 64), 0.5, 10, '2026-02-01 10:00', '2026-02-01 10:00:01.5', 'gpt-4o', 'u', 'team',
        'customer', '["prod"]', '{"k": 1}', '[{"role": "user", "content": "hi"}]'),
       ('b', 'acompletion', repeat('b', 64), 0.25, 5, '2026-02-02 10:00', '2026-02-02 10:00:01', 'gpt-4o', NULL, NULL,
        NULL, NULL, NULL, NULL);
INSERT INTO public."LiteLLM_DailyUserSpend" (id, user_id, date, api_key, model, spend, prompt_tokens, api_requests,
                                             successful_requests, updated_at)
VALUES ('1', 'u', '2026-02-01', repeat('a', 64), 'gpt-4o', 0.5, 10, 1, 1, now());
SQL
PYTHONPATH=$target "$venv/bin/python" tests/clients/python_calls.py "http://$address" sk-client-test \
    "$target/clients-openapi.yaml"
