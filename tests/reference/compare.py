"""Sends the same random requests to LiteLLM's own code and to a litespend on the same database, and compares answers.

Numbers are equal within 1e-9. Where LiteLLM leaves an order to the database, any order is right. Where LiteLLM fails on
what a client sent (a 5xx, or no answer), litespend must refuse it: 400 or 422. Of refusals, status, envelope, type, code
and the places of wrong fields are compared, not the words.
"""

import argparse
import collections
import http.client
import json
import random
import re
import sys
import urllib.parse

import psycopg

import tables
from reference import MASTER_KEY, Reference, add_prices, package

# Paths, and the parameters of those that LiteLLM's document leaves out.
LOG_PAGE = "/spend/logs/v2"
PATHS = {
    "/spend/logs": None,
    "/spend/tags": None,
    "/global/spend/tags": None,
    "/global/spend/report": None,
    "/user/daily/activity": None,
    "/user/daily/activity/aggregated": None,
    "/user/daily/activity/aggregated/keys": None,
    "/user/daily/activity/aggregated/users": None,
    "/user/daily/activity/aggregated/model_top_keys": None,
    "/team/daily/activity": None,
    "/team/daily/activity/aggregated": None,
    "/tag/daily/activity/aggregated": None,
    LOG_PAGE: None,
    "/spend/logs/ui": LOG_PAGE,
    "/spend/logs/ui/{request_id}": ["start_date", "end_date"],
    "/spend/logs/session/ui": ["session_id", "page", "page_size"],
    "/key/spend/report": None,
    "/user/spend/report": None,
    "/team/spend/report": None,
    "/spend/keys": [],
    "/spend/users": ["user_id"],
    "/global/activity": ["start_date", "end_date"],
    "/global/activity/model": ["start_date", "end_date"],
    "/global/spend/provider": ["start_date", "end_date"],
    "/global/spend/all_tag_names": [],
    "/global/all_end_users": [],
    "/get/allowed_ips": [],
}

DAYS = "2026-01-29 2026-01-30 2026-01-31 2026-02-01 2026-02-02 2026-02-03 2026-02-15 2026-02-28 2026-03-01 2026-03-05 2024-02-29".split()
TIMESTAMP = re.compile(r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d")
TRUNCATED = "x-litellm-spend-logs-truncated"


class Requests:
    """Makes requests up, with values that are in the database, that are not, and that are no values at all."""

    def __init__(self, choose, connection, seed, reference):
        self.choose = choose
        self.raw_keys = sorted(set(re.findall(r"sk-[\w-]+", json.dumps(seed["raw_keys"]))))

        def column(statement):
            return sorted(str(row[0]) for row in connection.execute(statement) if row[0] is not None)

        hashes = column('SELECT token FROM "LiteLLM_VerificationToken" UNION SELECT api_key FROM "LiteLLM_SpendLogs"')
        users = column('SELECT user_id FROM "LiteLLM_UserTable" UNION SELECT "user" FROM "LiteLLM_SpendLogs"')
        teams = column('SELECT team_id FROM "LiteLLM_TeamTable" UNION SELECT team_id FROM "LiteLLM_SpendLogs"')
        self.calls = column('SELECT request_id FROM "LiteLLM_SpendLogs"')
        models = column('SELECT model FROM "LiteLLM_SpendLogs" UNION SELECT model_id FROM "LiteLLM_SpendLogs"')
        tags = column('SELECT DISTINCT jsonb_array_elements_text(request_tags) FROM "LiteLLM_SpendLogs"')
        ends = column('SELECT DISTINCT end_user FROM "LiteLLM_SpendLogs"')
        self.values = {
            "api_key": self.raw_keys + hashes + ["sk-unknown", ""],
            "user_id": users + ["nobody", ""],
            "internal_user_id": users + ["nobody", ""],
            "team_id": teams + ["none", ""],
            "team_ids": teams + ["none", "", ",".join(teams[:2])],
            "exclude_team_ids": teams + ["none", ""],
            "customer_id": ends + ["none", ""],
            "end_user": ends + ["none", ""],
            "model": models + ["none", ""],
            "model_id": models + ["none", ""],
            "model_group": column('SELECT DISTINCT model_group FROM "LiteLLM_SpendLogs"') + ["none"],
            "tags": tags + ["all-tags", "none", "", ",".join(tags[:3])],
            "request_id": self.calls[:60] + ["none", ""],
            "session_id": column('SELECT DISTINCT session_id FROM "LiteLLM_SpendLogs"') + ["none", ""],
            "key_alias": column('SELECT DISTINCT key_alias FROM "LiteLLM_VerificationToken"') + ["none"],
            "summarize": ["true", "false", "True", "0", "1", "maybe"],
            "group_by": ["team", "customer", "api_key", "none", ""],
            "page": ["1", "1", "2", "3", "7", "0", "-1", "x", "100"],
            "page_size": ["1", "10", "25", "50", "100", "1000", "0", "101", "1001", "x"],
            "limit": ["1", "3", "5", "100", "0", "-1", "x"],
            "offset": ["0", "1", "5", "-1", "x"],
            "api_key_limit": ["1", "5", "0", "x"],
            "timezone": ["0", "-330", "480", "-60", "900", "-840", "1440", "x"],
            "status_filter": ["success", "failure", "other", ""],
            "min_spend": ["0", "0.01", "1", "-1", "1e-3", "x"],
            "max_spend": ["0", "0.01", "1", "-1", "1e-3", "x"],
            "sort_by": "spend total_tokens startTime endTime request_duration_ms model none ttft_ms prompt_tokens".split(),
            "sort_order": ["asc", "desc", "up", ""],
            "error_code": ["429", "500", "x"],
            "error_message": ["rate", "x", "%"],
        }
        self.parameters = {}
        for path, parameters in PATHS.items():
            parameters = self.parameters.get(parameters) if isinstance(parameters, str) else parameters
            self.parameters[path] = reference.parameters(path) if parameters is None else parameters

    def value(self, path, name):
        if name in ("start_date", "end_date"):
            times = ["", "", " 00:00:00", " 23:59:59", " 12:34:56"] if path.startswith("/spend/logs/") else [""]
            return self.choose.choice(DAYS) + self.choose.choice(times)
        return self.choose.choice(self.values.get(name, ["", "x", "1", "true", "false", "a,b"]))

    def next(self):
        path = self.choose.choice(list(self.parameters))
        names = self.parameters[path]
        usual = 0.08 if len(names) > 12 else 0.2
        query = {
            name: self.value(path, name)
            for name in names
            if self.choose.random() < (0.9 if name in ("start_date", "end_date") else usual)
        }
        real = path.replace("{request_id}", self.choose.choice(self.calls[:40] + ["none"]))
        key = self.choose.choices([None, MASTER_KEY, self.choose.choice(self.raw_keys), "sk-unknown"], [2, 48, 48, 2])[0]
        return path, real, query, {"Authorization": f"Bearer {key}"} if key else {}


class Server:
    """The litespend under test."""

    def __init__(self, address):
        self.connection = http.client.HTTPConnection(address)

    def ask(self, method, path, query, headers, body=None):
        if query:
            path += "?" + urllib.parse.urlencode(query)
        if body is not None:
            body = json.dumps(body)
            headers = {**headers, "Content-Type": "application/json"}
        # A connection that was idle for long may be closed.
        self.connection.close()
        self.connection.request(method, path, body, headers)
        answer = self.connection.getresponse()
        text = answer.read()
        try:
            return answer.status, answer.headers, json.loads(text)
        except ValueError:
            return answer.status, answer.headers, text.decode()


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def same_form(value):
    """A value in a form in which equal ones are equal: numbers rounded, lists sorted, moments in one notation."""
    if is_number(value):
        return float(f"{value:.9g}") + 0.0
    if isinstance(value, dict):
        return {name: same_form(part) for name, part in value.items()}
    if isinstance(value, list):
        return sorted((same_form(part) for part in value), key=lambda part: json.dumps(part, sort_keys=True))
    if isinstance(value, str) and TIMESTAMP.match(value):
        value = value.replace("+00:00", "").rstrip("Z").replace(" ", "T")
        return value.rstrip("0").rstrip(".") if "." in value else value
    return value


def by_texts(value):
    def texts(value):
        if isinstance(value, dict):
            return {name: texts(part) for name, part in value.items() if not is_number(part)}
        return sorted(map(json.dumps, map(texts, value))) if isinstance(value, list) else value

    # Numbers decide last, and coarsely.
    return json.dumps(texts(value), sort_keys=True), f"{value:.5g}" if is_number(value) else ""


def differences(expected, found, place=""):
    if is_number(expected) and is_number(found):
        return [] if abs(expected - found) <= 1e-9 * max(1, abs(expected)) else [(place, expected, found)]
    if isinstance(expected, dict) and isinstance(found, dict):
        parts = []
        for name in expected.keys() | found.keys():
            if name not in expected or name not in found:
                parts.append((f"{place}.{name}", name in expected, name in found))
            else:
                parts += differences(expected[name], found[name], f"{place}.{name}")
        return parts
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        if same_form(expected) == same_form(found):
            return []
        # Rounding alone may make forms differ: in the order of their texts, equals stand beside equals.
        pairs = zip(sorted(expected, key=by_texts), sorted(found, key=by_texts))
        return [part for index, pair in enumerate(pairs) for part in differences(*pair, f"{place}[{index}]")]
    return [] if same_form(expected) == same_form(found) else [(place, str(expected)[:150], str(found)[:150])]


def refusal(status, body):
    """What two refusals must have in common."""
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        return status, "error", body["error"].get("type"), body["error"].get("code")
    if isinstance(body, dict) and isinstance(body.get("detail"), list):
        return status, "detail", sorted(json.dumps(part["loc"]) for part in body["detail"])
    return status, "detail" if isinstance(body, dict) and "detail" in body else ""


def rows_of(body):
    rows = body.get("data") if isinstance(body, dict) else body
    is_log = isinstance(rows, list) and rows and isinstance(rows[0], dict) and "request_id" in rows[0]
    return rows if is_log else None


def compare_rows(expected, found, sort_by):
    """Pages of the log: the sequence of the sort key, and every row found in both; rows that tie have no order."""
    if len(expected) != len(found):
        return [("rows", len(expected), len(found))]
    by_id = {row["request_id"]: row for row in expected}
    parts = [
        part
        for row in found
        if row["request_id"] in by_id
        for part in differences(by_id[row["request_id"]], row, row["request_id"])
    ]
    sequences = [[same_form(row.get(sort_by)) for row in rows] for rows in (expected, found)]
    return parts if sequences[0] == sequences[1] else [*parts, (f"the order by {sort_by}", "", "")]


def compare(query, expected, found):
    """How two answers differ."""
    (status, headers, body), (our_status, our_headers, our_body) = expected, found
    if status == 0 or status >= 500:
        return [] if our_status in (400, 422) else [("status", status, our_status, str(body)[:200])]
    if status == 403 and "model_access_denied" in str(body):
        # A model to filter by is not a model to call.
        return []
    if status >= 400:
        one, other = refusal(status, body), refusal(our_status, our_body)
        return [] if one == other else [("refusal", one, other, str(body)[:200])]
    if our_status != status:
        return [("status", status, our_status, str(our_body)[:200])]
    rows, our_rows = rows_of(body), rows_of(our_body)
    if rows and our_rows:
        parts = compare_rows(rows, our_rows, query.get("sort_by", "startTime"))
        if isinstance(body, dict):
            parts += differences({**body, "data": None}, {**our_body, "data": None})
    else:
        parts = differences(body, our_body)
    if headers.get(TRUNCATED) != our_headers.get(TRUNCATED):
        parts.append((TRUNCATED, headers.get(TRUNCATED), our_headers.get(TRUNCATED)))
    return parts


TOKENS = [0, 1, 9, 1000, 32_001, 127_999, 128_000, 128_001, 200_000, 200_001, 250_001, 256_001, 272_000, 272_001, 1_000_001]


def usage(choose):
    """Usage as providers state it: details inside and beside, tiers, tools."""
    prompt, completion = choose.choice(TOKENS), choose.choice([0, 12, 600, 4321])
    found = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    part = max(1, prompt // choose.choice([2, 3, 10]))
    inside = {}
    for name in ["cached_tokens", "audio_tokens", "image_tokens", "text_tokens", "cache_creation_tokens", "video_tokens"]:
        if choose.random() < 0.15:
            inside[name] = part
    if "cache_creation_tokens" in inside and choose.random() < 0.5:
        inside["cache_creation_token_details"] = {
            "ephemeral_5m_input_tokens": part - part // 3,
            "ephemeral_1h_input_tokens": part // 3,
        }
    if choose.random() < 0.05:
        inside["web_search_requests"] = 3
    if inside:
        found["prompt_tokens_details"] = inside
    outside = {
        name: max(1, completion // 3)
        for name in ["reasoning_tokens", "audio_tokens", "image_tokens", "text_tokens"]
        if choose.random() < 0.12
    }
    if outside:
        found["completion_tokens_details"] = outside
    for name, value, often in [
        ("cache_read_input_tokens", part, 0.1),
        ("cache_creation_input_tokens", part, 0.1),
        ("service_tier", choose.choice(["priority", "flex", "batches", "default", "auto"]), 0.2),
        ("server_tool_use", {"web_search_requests": 4}, 0.05),
        ("inference_geo", choose.choice(["us", "global"]), 0.05),
        ("speed", "fast", 0.05),
        ("citation_tokens", 50, 0.03),
        ("num_search_queries", 3, 0.03),
        ("cost", 0.123, 0.02),
    ]:
        if choose.random() < often:
            found[name] = value
    return found


TEXTS = ["Hey, how's it going?", "naïve 東京 🙂 👨‍👩‍👧", "<|endoftext|> \n\n  12345 foo_bar()", "a" * 700, "", "x" * 5 + " " * 90]


def message(choose):
    found = {"role": choose.choice(["user", "assistant", "system", "tool"])}
    parts = [
        {"type": "text", "text": choose.choice(TEXTS)},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": choose.choice(["low", "auto"])}},
        {"type": "tool_use", "id": "1", "name": "f", "input": {"a": choose.choice(TEXTS[:2])}},
        {"type": "thinking", "thinking": choose.choice(TEXTS)},
        {"type": "unknown"},
        choose.choice(TEXTS),
    ]
    found["content"] = choose.choice([choose.choice(TEXTS), choose.choice(TEXTS), choose.sample(parts, 2), None])
    if choose.random() < 0.2:
        found["name"] = "bob"
    if choose.random() < 0.2:
        found["tool_calls"] = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]
    return found


def pricing(choose, models):
    model = choose.choice(models)
    if choose.random() < 0.25:
        return {"model": model, "messages": [message(choose) for _ in range(choose.choice([0, 1, 1, 2, 4]))]}
    answer = {"role": "assistant", "content": choose.choice(TEXTS)}
    response = {
        "id": "chatcmpl-123",
        "object": "chat.completion",
        "created": 1677652288,
        "model": model,
        "choices": [{"index": 0, "message": answer, "finish_reason": "stop"}],
    }
    if choose.random() < 0.95:
        response["usage"] = usage(choose)
    if choose.random() < 0.1:
        response["service_tier"] = choose.choice(["priority", "flex"])
    return {"completion_response": response}


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--database", required=True, help="an empty database")
    arguments.add_argument("--prepare", action="store_true", help="make the tables and their rows, and end")
    arguments.add_argument("--address", help="of the litespend on it")
    arguments.add_argument("--seed", type=int, required=True)
    arguments.add_argument("--requests", type=int, default=2000)
    arguments.add_argument("--costs", type=int, default=20_000)
    arguments.add_argument("--every-model", action="store_true", help="price each model with each body of the recordings")
    arguments = arguments.parse_args()
    with open("tests/conformance/seed.json") as file:
        seed = json.load(file)
    connection = psycopg.connect(arguments.database, autocommit=True)
    if arguments.prepare:
        tables.create(connection, tables.read_schema(f"{package()}/proxy/schema.prisma"))
        tables.load(connection, seed, arguments.seed)
        return
    models = add_prices("crates/pricing/data/model_prices.json")
    reference, server = Reference(arguments.database), Server(arguments.address)
    choose = random.Random(arguments.seed)
    requests = Requests(choose, connection, seed, reference)
    same, different = collections.Counter(), 0

    def ask_both(name, method, path, query, headers, body=None):
        nonlocal different
        found = server.ask(method, path, query, headers, body)
        parts = compare(query, reference.ask(method, path, query, headers, body), found)
        if not parts:
            same[name] += 1
            return
        different += 1
        if different <= 20:
            print(f"DIFFERENT {method} {path} {query} {headers} {json.dumps(body)[:600]}\n    {str(parts[:3])[:800]}")

    for _ in range(arguments.requests):
        path, real, query, headers = requests.next()
        ask_both(path, "GET", real, query, headers)
    master = {"Authorization": f"Bearer {MASTER_KEY}"}
    for _ in range(arguments.costs):
        ask_both("/spend/calculate", "POST", "/spend/calculate", {}, master, pricing(choose, models))
    if arguments.every_model:
        with open("tests/conformance/cost_variants.json") as file:
            variants = [json.dumps(body) for body in json.load(file).values()]
        for model in models:
            for variant in variants:
                body = json.loads(variant.replace("$MODEL", json.dumps(model)[1:-1]))
                ask_both("every model", "POST", "/spend/calculate", {}, master, body)
    for name, number in sorted(same.items()):
        print(f"{number:8} {name}")
    print(f"{sum(same.values())} answers are LiteLLM's, {different} are not")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
