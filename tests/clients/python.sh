#!/usr/bin/env bash
# Generates a Python client from openapi.yaml with openapi-python-client and calls every operation with it, on a server
# that this script starts. Needs Python 3 and the package index, so it is not among the tests of `./dev test`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

. tests/clients/server.sh
venv=$target/clients-venv
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install -q openapi-python-client ruff httpx attrs python-dateutil
# The generator formats its code with ruff, which it looks up in PATH.
PATH=$(cd "$venv/bin" && pwd):$PATH

client=$target/clients_python
rm -rf "$client"
"$bin" openapi >"$target/clients-openapi.yaml"
"$venv/bin/openapi-python-client" generate --path "$target/clients-openapi.yaml" --output-path "$client" --meta none \
    --fail-on-warning

start client sk-client-test
sql litespend <<'SQL'
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
