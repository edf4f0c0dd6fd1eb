"""The recordings of tests/conformance: their rows, their requests, and the comparison of answers with the recorded ones.

The rules of the comparison are those of `tests/api/conformance.rs`.
"""

import gzip
import json
import re

from psycopg.types.json import Jsonb

import tables

DASHBOARD = "dashboard_reads.json.gz"
HEADERS = ["x-litellm-spend-logs-truncated", "allow"]
# The moment of loading.
IGNORED = {"/spend/keys": ["created_at", "updated_at"], "/spend/users": ["created_at", "updated_at"]}


def read(file):
    with gzip.open(f"tests/conformance/{file}") as content:
        return json.load(content)


# The rows, as `seed` in tests/api/support.rs and `dashboard_app` in tests/api/conformance.rs insert them.


def insert(connection, table, rows):
    columns = ", ".join(f'"{name}"' for name in dict.fromkeys(name for row in rows for name in row))
    connection.execute(
        f'INSERT INTO "{table}" ({columns}) SELECT {columns} FROM jsonb_populate_recordset(NULL::"{table}", %s)', [Jsonb(rows)]
    )


def seed(connection, file):
    with open("tests/conformance/seed.json") as content:
        rows = json.load(content)
    for name, table in tables.SEED_TABLES.items():
        insert(connection, table, rows[name])
    if file == DASHBOARD:
        user = {"user_id": "default_user_id", "user_role": "proxy_admin", "spend": 0.0, "models": None, "metadata": {}}
        insert(connection, "LiteLLM_UserTable", [user])
        session = {
            "token": "3e841233a23a14d102f7a268bf9726105e8276c64808dea74520afe918e86edc",
            "key_name": "sk-...4eAQ",
            "user_id": "default_user_id",
            "team_id": "litellm-dashboard",
            "max_budget": 1.0,
            "models": [],
            "expires": "2026-11-24T15:48:39.342",
        }
        insert(connection, "LiteLLM_VerificationToken", [session])


# The comparison. A difference is its place and what is wrong there; all of them are found, not the first one alone.


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def strings(value):
    if isinstance(value, dict):
        return [part for name in sorted(value) for part in [name, *strings(value[name])]]
    if isinstance(value, list):
        return [text for part in sorted(map(strings, value)) for text in part]
    # Six digits distinguish different rows and hide the last bits of a sum.
    return [f"{value:.6e}" if is_number(value) else json.dumps(value, ensure_ascii=False)]


def differences(found, recorded, as_sets=False, place="$"):
    if is_number(found) and is_number(recorded):
        if abs(found - recorded) > 1e-9 * max(abs(found), abs(recorded), 1.0):
            yield place, f"{found} instead of {recorded}"
    elif isinstance(found, list) and isinstance(recorded, list):
        if len(found) != len(recorded):
            yield place, f"{len(found)} items instead of {len(recorded)}"
        if as_sets:
            found, recorded = sorted(found, key=strings), sorted(recorded, key=strings)
        for ours, theirs in zip(found, recorded):
            yield from differences(ours, theirs, as_sets, f"{place}[]")
    elif isinstance(found, dict) and isinstance(recorded, dict):
        for name in recorded.keys() - found.keys():
            yield inside(place, name), "missing"
        for name in found.keys() - recorded.keys():
            yield inside(place, name), "new"
        for name in recorded.keys() & found.keys():
            yield from differences(found[name], recorded[name], as_sets, inside(place, name))
    elif type(found) is not type(recorded) or found != recorded:
        yield place, f"{json.dumps(found):.200} instead of {json.dumps(recorded):.200}"


# The objects whose fields are named by data.
BY_NAME = re.compile(r"\.(breakdown\.\w+|api_key_breakdown|api_keys|entities|metadata\.spend_by\w*)$")


def inside(place, name):
    return f"{place}.*" if BY_NAME.search(place) else f"{place}.{name}"


def column(rows, name):
    return [row.get(name) for row in rows] if isinstance(rows, list) else []


def sequence(found, recorded, name):
    found, recorded = column(found, name), column(recorded, name)
    return [(f"order of {name}", what) for _, what in differences(found, recorded)]


def pages(found, recorded, sort_by):
    yield from differences({**found, "data": None}, {**recorded, "data": None})
    yield from sequence(found["data"], recorded["data"], sort_by)
    others = {row["request_id"]: row for row in reversed(recorded["data"])}
    for row in found["data"]:
        if row["request_id"] in others:
            yield from differences(row, others[row["request_id"]], place="$.data[]")


def without(rows, names):
    return [{name: value for name, value in row.items() if name not in names} for row in rows]


def bodies(recording, found, recorded):
    path, query = recording["path"], recording["query"]
    if path in ("/spend/logs/ui", "/spend/logs/v2"):
        return pages(found, recorded, query.get("sort_by", "startTime"))
    if path == "/spend/logs/session/ui":
        return pages(found, recorded, "startTime")
    if path in IGNORED:
        found, recorded = without(found, IGNORED[path]), without(recorded, IGNORED[path])
        everyone = path == "/spend/users" or "u-admin" in column(recorded, "user_id")
        return [*(sequence(found, recorded, "spend") if everyone else []), *differences(found, recorded, True)]
    if path == "/global/activity/model":
        return [*sequence(found, recorded, "sum_api_requests"), *differences(found, recorded, True)]
    if path == "/spend/logs" and recorded and isinstance(recorded, list) and "request_id" in recorded[0]:
        return [*sequence(found, recorded, "startTime"), *differences(found, recorded, True)]
    if path.endswith("/spend/report"):
        return [*sequence(found, recorded, "group_by_day"), *differences(found, recorded, True)]
    as_sets = ["/global/spend/all_tag_names", "/global/all_end_users", "/spend/tags", "/global/spend/tags"]
    return differences(found, recorded, path in as_sets)


def errors(status, found, recorded):
    for envelope in ["error", "detail"]:
        if (envelope in found) != (envelope in recorded):
            yield f"$.{envelope}", "missing" if envelope in recorded else "new"
    for name in ["type", "code"]:
        ours, theirs = ((body.get("error") or {}).get(name) for body in (found, recorded))
        if ours != theirs:
            yield f"$.error.{name}", f"{ours} instead of {theirs}"
    if status == 422 and "detail" in found and "detail" in recorded:
        yield from differences(column(found["detail"], "loc"), column(recorded["detail"], "loc"), place="$.detail")


def as_text(body):
    return json.dumps(body, sort_keys=True)


def compare(recording, answer):
    status, headers, body = answer
    recorded = recording["answer"]
    if status != recorded["status"]:
        return [("status", f"{status} instead of {recorded['status']}")]
    if status == 0:
        return []
    found = []
    for name in HEADERS:
        if headers.get(name) != recorded["headers"].get(name):
            found.append((f"header {name}", f"{headers.get(name)} instead of {recorded['headers'].get(name)}"))
    # Equal texts are the usual case, and quickly seen.
    if recording["method"] != "HEAD" and as_text(body) != as_text(recorded["body"]):
        found += errors(status, body, recorded["body"]) if status >= 400 else bodies(recording, body, recorded["body"])
    return found


# The requests.


def text(value):
    return value if isinstance(value, str) else json.dumps(value)


def body_of(recording):
    if "raw_body" in recording:
        return recording["raw_body"].encode()
    return json.dumps(recording["body"]).encode() if recording.get("body") is not None else None


def query_of(recording):
    """The query as a list of pairs."""
    query = []
    for name, value in recording["query"].items():
        query += [(name, text(each)) for each in (value if isinstance(value, list) else [value])]
    return query


def headers_of(recording):
    headers = {name.lower(): text(value) for name, value in recording["headers"].items()}
    if body_of(recording) is not None:
        headers.setdefault("content-type", "application/json")
    return headers


def is_replaced(recording):
    """Whether the reference failed, and litespend's answer therefore is another one on purpose."""
    return recording["answer"]["status"] == 0 or recording["answer"]["status"] >= 500
