"""Makes up requests at random, with values that are in the database, that are not, and that are no values at all."""

import json
import re

from reference import MASTER_KEY

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
class Requests:
    """Makes requests up, with values that are in the database, that are not, and that are no values at all."""

    def __init__(self, choose, connection, seed, reference, paths=PATHS):
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
            "key": self.raw_keys + hashes + ["sk-unknown", ""],
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
        self.absent = []
        for path, parameters in paths.items():
            names = self.names_of(path, parameters, reference)
            if names is None:
                self.absent.append(path)
            else:
                self.parameters[path] = names

    def names_of(self, path, parameters, reference):
        """The names of a path's parameters; None where LiteLLM does not have the path."""
        if not reference.has(path):
            return None
        names = reference.parameters(parameters or path) if parameters is None or isinstance(parameters, str) else parameters
        return ["start_date", "end_date"] if names is None else names

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
