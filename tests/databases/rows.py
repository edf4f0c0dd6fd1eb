"""The rows that every database gets. They are the same in every run. Each spend is a multiple of 1/16, so that every
sum is exact, also where an answer rounds it to four places."""

import datetime
import hashlib
import json

FIRST_DAY = datetime.date(2026, 2, 24)
DAYS = 10
# A row of this day is in the default partition.
OUTLIER = datetime.datetime(2026, 1, 31, 23, 59, 59, 999000)
PERIOD = "start_date=2026-02-24&end_date=2026-03-06"
WHOLE = "start_date=2026-01-01&end_date=2026-04-30"

KEYS = [hashlib.sha256(f"sk-key-{number}".encode()).hexdigest() for number in range(6)]
TEAMS = ["team-1", "team-2", "team-ü"]
USERS = ["user-1", "user-2", "Zoë 🚀", "user'4"]
MODELS = ["gpt-4o", "claude-sonnet-4-5", "gemini/gemini-2.5-pro", ""]
TAGS = [
    ["prod"], ["prod", "batch"], ["prod", "prod"], [], None, ["ünïcode 🚀", "a,b"], ["x" * 300], {"not": "a list"}, [""],
]
CUSTOMERS = ["customer-1", "顧客", "", None]
MIDNIGHT = datetime.time()


def stamp(moment):
    """UTC. The Z counts where the column is timestamptz, and is ignored where it is timestamp."""
    return moment.isoformat(timespec="milliseconds") + "Z"


def moment(number):
    """The start of the row with this number: also exactly at midnight, just before it, and equal to another row's."""
    if number == 0:
        return OUTLIER
    day = FIRST_DAY + datetime.timedelta(days=number % DAYS)
    start = datetime.datetime.combine(day, MIDNIGHT)
    if number % 37 == 0:
        return start
    if number % 41 == 0:
        return start + datetime.timedelta(days=1, milliseconds=-1)
    return start + datetime.timedelta(seconds=(number * 7919) % 86400 // 100 * 100)


def log_row(number, start=None):
    start = start or moment(number)
    prompt, completion = number % 1000, number % 77
    return {
        "request_id": f"req-{number:04}", "call_type": "acompletion" if number % 3 else "aembedding",
        "api_key": KEYS[number % 6], "spend": number / 16, "total_tokens": prompt + completion,
        "prompt_tokens": prompt, "completion_tokens": completion, "startTime": stamp(start),
        "endTime": stamp(start + datetime.timedelta(seconds=2)), "request_duration_ms": 2000 if number % 5 else None,
        "completionStartTime": stamp(start + datetime.timedelta(seconds=1)) if number % 2 else None,
        "model": MODELS[number % 4], "model_id": f"deployment-{number % 4}", "model_group": MODELS[number % 4],
        "custom_llm_provider": "openai", "api_base": "", "user": USERS[number % 4] if number % 7 else "",
        "metadata": {"status": "success", "user_api_key_alias": f"alias-{number % 6}", "note": "naïve ✓"},
        "cache_hit": "True" if number % 11 == 0 else "False", "cache_key": "",
        "request_tags": TAGS[number % 9], "team_id": TEAMS[number % 3] if number % 8 else None,
        "organization_id": "org-1" if number % 10 == 0 else None, "end_user": CUSTOMERS[number % 4],
        "requester_ip_address": "127.0.0.1" if number % 2 else None, "messages": {}, "response": {},
        "session_id": f"session-{number % 40}" if number % 4 else None,
        "status": ["success", "failure", None][number % 13 % 3],
        "mcp_namespaced_tool_name": None, "billing_agent_id": None, "agent_id": None, "proxy_server_request": {},
        "litellm_call_id": f"call-{number:04}" if number % 2 else None,
        "created_at": stamp(start), "updated_at": stamp(start),
    }


def log():
    return [log_row(number) for number in range(600)]


def keys():
    return [
        {
            "token": token, "key_name": f"sk-...{number}", "key_alias": f"alias-{number}", "spend": number * 2.5,
            "total_spend": number * 3.5, "models": [], "user_id": USERS[number % 4], "team_id": TEAMS[number % 3],
            "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-02T00:00:00Z",
        }
        for number, token in enumerate(KEYS)
    ]


def teams():
    return [
        {
            "team_id": team, "team_alias": [f"Team {number}", "Team 1", None][number], "spend": number * 1.25,
            "admins": [], "members": [], "models": [], "members_with_roles": [],
            "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-02T00:00:00Z",
        }
        for number, team in enumerate(TEAMS)
    ]


def users():
    return [
        {
            "user_id": user, "user_email": f"{number}@example.com", "user_role": "internal_user", "spend": number * 0.5,
            "models": [], "teams": [], "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-02T00:00:00Z",
        }
        for number, user in enumerate(USERS)
    ]


def daily(owner, names):
    """Daily rows, by owner: a user, a team or a tag."""
    found = []
    for number in range(60):
        day = FIRST_DAY + datetime.timedelta(days=number % DAYS)
        found.append({
            "id": f"{owner}-{number:04}", owner: names[number % len(names)], "date": day.isoformat(),
            "api_key": KEYS[number // 10 % 6], "model": MODELS[number // 7 % 3], "model_group": MODELS[number // 7 % 3],
            "custom_llm_provider": "openai", "mcp_namespaced_tool_name": None if number % 9 else "server-tool",
            "endpoint": "/chat/completions" if number % 2 else None, "prompt_tokens": number, "completion_tokens": 3,
            "cache_read_input_tokens": number % 5, "cache_creation_input_tokens": 0, "spend": number / 16,
            "api_requests": 2, "successful_requests": 1, "failed_requests": 1, "total_response_time_ms": 100,
            "timed_requests": 2, "created_at": "2026-03-10T00:00:00Z", "updated_at": "2026-03-10T00:00:00Z",
        })
    return found


def everything():
    """All rows, by table."""
    return {
        "LiteLLM_SpendLogs": log(), "LiteLLM_VerificationToken": keys(), "LiteLLM_TeamTable": teams(),
        "LiteLLM_UserTable": users(), "LiteLLM_DailyUserSpend": daily("user_id", USERS),
        "LiteLLM_DailyTeamSpend": daily("team_id", TEAMS),
        "LiteLLM_DailyTagSpend": daily("tag", ["prod", "batch", "ünïcode 🚀"]),
    }


def columns(connection):
    """The columns of each table in the search path."""
    found = {}
    query = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = current_schema()"
    for table, column in connection.execute(query):
        found.setdefault(table, set()).add(column)
    return found


def insert(connection, table, entries, known=None, skip_duplicates=False):
    """Inserts rows, without the columns that are not known."""
    present = columns(connection).get(table, set())
    names = [name for name in entries[0] if name in present and (known is None or name in known)] if entries else []
    if not names:
        return
    listed = ", ".join(f'"{name}"' for name in names)
    ending = "ON CONFLICT DO NOTHING" if skip_duplicates else ""
    statement = f'INSERT INTO "{table}" ({listed}) SELECT {listed} FROM jsonb_populate_recordset(NULL::"{table}", %s)'
    connection.execute(f"{statement} {ending}", [json.dumps(entries)])


def fill(connection, known=None):
    """Inserts all rows. `known` limits them to the tables and columns of another version."""
    for table, entries in everything().items():
        insert(connection, table, entries, None if known is None else known.get(table, set()))
