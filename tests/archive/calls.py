"""The calls that the log gets: varied, over eleven days in two months, and the same in every run."""

import base64
import datetime
import hashlib
import random
from decimal import Decimal

import rows as shared

FIRST_DAY = datetime.date(2026, 2, 24)
# The last day that is closed. The day after it has calls, too, and stays open.
LAST_CLOSED = datetime.date(2026, 3, 5)
OPEN_DAY = datetime.date(2026, 3, 6)
DAYS = [FIRST_DAY + datetime.timedelta(days=number) for number in range((OPEN_DAY - FIRST_DAY).days + 1)]
CALLS = 4000

KEYS = [hashlib.sha256(f"sk-archive-{number}".encode()).hexdigest() for number in range(7)] + ["", "Schlüssel 'x'"]
# Two teams share an alias, one has none, and one is not in the table of teams.
TEAMS = {"team-1": "Team 1", "team-2": "Team 1", "team-ü": "Mannschaft \"Ü\" 🚀", "team-4": None}
TEAM_IDS = [*TEAMS, "team-gone", "", None]
USERS = ["user-1", "Zoë 🚀", "user'4", 'a "quoted" user', "line\nbreak", "tab\there", "back\\slash", "", None]
CUSTOMERS = ["customer-1", "顧客", "e\u0301 decomposed", "new\nline", "'; --", "", None]
MODELS = ["gpt-4o", "claude-sonnet-4-5", "gemini/gemini-2.5-pro", "modèle 'x'", "a,b;c", "azure/gpt-4o\n", ""]
TAGS = [
    ["prod"], ["prod", "batch"], ["prod", "prod"], [], None, ["ünïcode 🚀", "a,b", "quote'\"\\"], ["x" * 300],
    {"not": "a list"}, [""], ["line\nbreak", "tab\t"], ["prod", "Prod", "prod "], "a text", 7,
]
TEXTS = ["plain", "naïve ✓", 'quote " and \\', "line\r\nbreak", "emoji 👩‍👩‍👧", "<&>", "", "\u2028", "\x7f\x01"]
SPENDS = [Decimal(text) for text in ("0", "0.1", "1e-9", "0.000123456789", "12.5", "1234.56789")]


def start_of(number, chance):
    """The start of the call with this number: also exactly at midnight, and just before it."""
    day = datetime.datetime.combine(DAYS[number % len(DAYS)], datetime.time())
    if number % 97 < 3:
        return day
    if number % 89 < 2:
        # The log keeps milliseconds; which day this is, the log decides.
        return day + datetime.timedelta(days=1, microseconds=-1)
    if number % 83 < 2:
        return day + datetime.timedelta(days=1, milliseconds=-1)
    return day + datetime.timedelta(microseconds=chance.randrange(86_400_000_000))


def request_id(number):
    return [f"call-{number:05}", f"chatcmpl-{hashlib.md5(str(number).encode()).hexdigest()}", f"ïd '{number}' 🚀",
            f"call/{number}?a=b&c=%20"][min(number % 11, 3)]


def document(number, chance):
    return {
        "text": chance.choice(TEXTS), "number": number / 7, "nothing": None, "list": [1, 2.5, True, {"a": []}],
        "long": chance.choice(TEXTS) * (number % 50), "key \"quoted\"": {"nested": {"ü": number}},
    }


def metadata(number, chance):
    """As LiteLLM writes it, as something else, or not at all."""
    if number % 29 == 0:
        return None
    if number % 31 == 0:
        return []
    return {"status": "success", "user_api_key_alias": f"alias-{number % 7}", **document(number, chance)}


def call(number, chance):
    start = start_of(number, chance)
    prompt, completion = chance.randrange(5000), chance.randrange(900)
    with_session = number % 4 == 0
    return {
        "request_id": request_id(number), "call_type": chance.choice(["acompletion", "aembedding", ""]),
        "api_key": chance.choice(KEYS), "spend": float(chance.choice(SPENDS) * (1 + number % 5)),
        "total_tokens": prompt + completion, "prompt_tokens": prompt, "completion_tokens": completion,
        "startTime": start, "endTime": start + datetime.timedelta(microseconds=chance.randrange(90_000_000)),
        "completionStartTime": start + datetime.timedelta(seconds=1) if number % 3 else None,
        "model": chance.choice(MODELS), "model_id": chance.choice(["deployment-1", "", None]),
        "model_group": chance.choice([*MODELS, None]),
        "custom_llm_provider": chance.choice(["openai", "anthropic", "", None]),
        "api_base": chance.choice(["https://api.example.com/v1?x='y'", "", None]), "user": chance.choice(USERS),
        "metadata": metadata(number, chance), "cache_hit": chance.choice(["True", "False", "", None]),
        "cache_key": chance.choice(["Cache OFF", "", None]), "request_tags": chance.choice(TAGS),
        "team_id": chance.choice(TEAM_IDS), "organization_id": chance.choice(["org-1", None]),
        "end_user": chance.choice(CUSTOMERS), "requester_ip_address": chance.choice(["2001:db8::1", "", None]),
        "messages": chance.choice([[{"role": "user", "content": chance.choice(TEXTS)}], {}, None]),
        "response": chance.choice([document(number, chance), {}, None]),
        "proxy_server_request": chance.choice([{"body": document(number, chance)}, {}, None]),
        "session_id": f"session-{number % 40}" if with_session else None,
        "status": chance.choice(["success", "failure", "", None]),
        "mcp_namespaced_tool_name": chance.choice(["server/tool", None, None, None]),
        "agent_id": chance.choice(["agent", None]), "billing_agent_id": chance.choice(["agent", None]),
        "request_duration_ms": chance.choice([0, 1234, 2_147_483_647, None]),
        "litellm_call_id": f"litellm-{number}" if number % 2 else None,
        "created_at": start + datetime.timedelta(seconds=2), "updated_at": start + datetime.timedelta(seconds=3),
    }


def calls():
    chance = random.Random(20260224)
    return [call(number, chance) for number in range(CALLS)]


def fill(connection):
    """Inserts the calls, and the keys, teams and users that they name."""
    shared.insert(connection, "LiteLLM_TeamTable", [team(team_id, alias) for team_id, alias in TEAMS.items()])
    shared.insert(connection, "LiteLLM_VerificationToken", [key(number) for number in range(3)])
    insert_calls(connection, calls())


def insert_calls(connection, listed):
    shared.insert(connection, "LiteLLM_SpendLogs", [in_json(row) for row in listed])


def in_json(row):
    """The row with texts for its times, as the shared insert takes them."""
    return {name: value.isoformat() if isinstance(value, datetime.datetime) else value for name, value in row.items()}


def team(team_id, alias):
    empty = {name: [] for name in ("admins", "members", "models", "members_with_roles")}
    return {"team_id": team_id, "team_alias": alias, **empty}


def key(number):
    return {"token": KEYS[number], "key_name": f"sk-...{number}", "key_alias": f"alias-{number}", "models": []}



def insert_large(connection, day):
    """Calls with texts of megabytes that cannot be compressed."""
    chance = random.Random(6)
    listed = []
    for number in range(6):
        body = base64.b64encode(chance.randbytes(3_000_000)).decode()
        start = datetime.datetime.fromisoformat(day) + datetime.timedelta(hours=number)
        more = {"request_id": f"large-{number}", "startTime": start, "messages": [{"content": body}],
                "response": {"number": number}, "proxy_server_request": {}}
        listed.append({**call(number, chance), **more})
    insert_calls(connection, listed)
