"""The reads whose answers are compared, and sums that plain SQL counts as well."""

import json
from urllib.parse import quote

import rows

ACTIVITY = f"{rows.PERIOD}&page_size=1000"
UI_PERIOD = "start_date=2026-02-24%2000:00:00&end_date=2026-03-06%2023:59:59"
TIMES = "start_date=2025-12-01%2000:00:00&end_date=2026-04-30%2000:00:00"

PATHS = [
    "/spend/logs",
    "/spend/logs?limit=7",
    "/spend/logs?request_id=req-0003",
    "/spend/logs?request_id=call-0005",
    "/spend/logs?request_id=nobody",
    f"/spend/logs?api_key={rows.KEYS[1]}",
    "/spend/logs?user_id=user-2",
    f"/spend/logs?user_id={quote(rows.USERS[2])}&{rows.PERIOD}",
    f"/spend/logs?{rows.PERIOD}",
    f"/spend/logs?{rows.WHOLE}",
    f"/spend/logs?{rows.PERIOD}&summarize=false",
    f"/spend/logs?{rows.PERIOD}&summarize=false&limit=100",
    f"/spend/logs?{rows.PERIOD}&api_key={rows.KEYS[2]}",
    f"/spend/logs/ui?{UI_PERIOD}&page=2&page_size=50",
    f"/spend/logs/ui?{TIMES}&page=1&page_size=100&sort_by=spend&sort_order=asc",
    f"/spend/logs/ui?{UI_PERIOD}&team_id=team-1&status_filter=failure",
    f"/spend/logs/ui?{UI_PERIOD}&end_user=customer-1&model=gpt-4o",
    f"/spend/logs/ui?{UI_PERIOD}&group_by_session=true&page_size=20",
    f"/spend/logs/v2?{UI_PERIOD}&page=1&page_size=30",
    f"/spend/logs/v2?{UI_PERIOD}&search=naïve".replace("ï", "%C3%AF"),
    "/spend/logs/ui/req-0004?start_date=2026-02-24%2000:00:00",
    "/spend/logs/session/ui?session_id=session-7&page=1&page_size=20",
    "/spend/tags",
    f"/spend/tags?{rows.PERIOD}",
    f"/global/spend/tags?{rows.PERIOD}",
    f"/global/spend/tags?{rows.WHOLE}",
    f"/global/spend/tags?{rows.PERIOD}&tags=prod,batch",
    *(f"/global/spend/report?{rows.PERIOD}{group}" for group in [
        "", "&group_by=team", "&group_by=customer", "&group_by=api_key", "&group_by=user", "&group_by=model_name",
        f"&api_key={rows.KEYS[3]}", "&internal_user_id=user-1", "&team_id=team-1",
        "&group_by=customer&team_id=team-1&customer_id=customer-1",
    ]),
    f"/global/spend/report?{rows.WHOLE}",
    f"/global/spend/report?{rows.WHOLE}&group_by=api_key",
    f"/user/daily/activity?{ACTIVITY}",
    f"/user/daily/activity?{rows.PERIOD}&page_size=10&page=2",
    f"/user/daily/activity?{ACTIVITY}&user_id=user-1&model=gpt-4o",
    f"/user/daily/activity/aggregated?{rows.PERIOD}",
    f"/user/daily/activity/aggregated?{rows.PERIOD}&timezone=-330",
    f"/user/daily/activity/aggregated/keys?{rows.PERIOD}",
    f"/user/daily/activity/aggregated/users?{rows.PERIOD}",
    f"/user/daily/activity/aggregated/model_top_keys?{rows.PERIOD}&model_group=gpt-4o",
    f"/team/daily/activity?{ACTIVITY}",
    f"/team/daily/activity/aggregated?{rows.PERIOD}",
    f"/tag/daily/activity/aggregated?{rows.PERIOD}",
    "/spend/keys",
    "/spend/users",
    f"/key/spend/report?{rows.PERIOD}&api_key={rows.KEYS[1]}",
    f"/user/spend/report?{rows.PERIOD}&internal_user_id=user-1",
    f"/team/spend/report?{rows.PERIOD}&team_id=team-1",
    f"/global/activity?{rows.PERIOD}",
    f"/global/activity/model?{rows.PERIOD}",
    f"/global/spend/provider?{rows.PERIOD}",
    "/global/spend/all_tag_names",
    "/global/all_end_users",
    f"/key/info?key={rows.KEYS[0]}",
    "/team/list",
    "/user/info?user_id=user-1",
    "/get/allowed_ips",
]
FORMS = [
    (f"/spend/logs?{rows.PERIOD}&summarize=false&limit=1000", "application/x-ndjson"),
    (f"/spend/logs?{rows.PERIOD}&summarize=false&limit=1000", "text/csv"),
]


def answers(server):
    """The answer to every read, by path."""
    found = {path: server.get(path) for path in PATHS}
    for path, form in FORMS:
        found[f"{path} ({form})"] = server.get(path, Accept=form)
    return found


def differences(expected, found, but=frozenset()):
    """A line for each read that is answered differently. Members named in `but` are left out."""
    lines = []
    for path, wanted in expected.items():
        answer = found[path]
        if wanted.status == answer.status and wanted.body == answer.body:
            continue
        if wanted.status == answer.status == 200 and same_values(path, wanted, answer, but):
            continue
        lines.append(f"{path}: {describe(wanted, answer, but)}")
    return lines


def same_values(path, wanted, answer, but):
    """Whether the answers are the same without the members that do not count. Within a day, the report has no order:
    LiteLLM's statement has none."""
    unordered = path.startswith("/global/spend/report")
    if not but and not unordered:
        return False
    try:
        one, other = stripped(wanted.json(), but), stripped(answer.json(), but)
    except ValueError:
        # CSV and lines of JSON have all columns; rows of /spend/logs are compared anyway.
        return True
    return (in_order(one) == in_order(other)) if unordered else one == other


def in_order(value):
    if isinstance(value, dict):
        return {name: in_order(member) for name, member in value.items()}
    return sorted(map(in_order, value), key=json.dumps) if isinstance(value, list) else value


def stripped(value, but):
    if isinstance(value, dict):
        return {name: stripped(member, but) for name, member in value.items() if name not in but}
    return [stripped(member, but) for member in value] if isinstance(value, list) else value


def describe(wanted, answer, but=frozenset()):
    if answer.status != wanted.status:
        return f"{answer} instead of {wanted.status}"
    try:
        one, other = stripped(wanted.json(), but), stripped(answer.json(), but)
    except ValueError:
        one, other = wanted.body.decode().splitlines(), answer.body.decode().splitlines()
    if sorted(map(json.dumps, one)) == sorted(map(json.dumps, other)) if isinstance(one, list) else False:
        return "the same entries in another order"
    return first_difference(one, other)


def first_difference(one, other, place=""):
    """Where two values differ first."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in [*one, *(name for name in other if name not in one)]:
            if one.get(name) != other.get(name):
                return first_difference(one.get(name), other.get(name), f"{place}.{name}")
    if isinstance(one, list) and isinstance(other, list):
        for index, (left, right) in enumerate(zip(one, other)):
            if left != right:
                return first_difference(left, right, f"{place}[{index}]")
        return f"{place} has {len(other)} entries instead of {len(one)}"
    return f"{place} is {json.dumps(other)[:200]} instead of {json.dumps(one)[:200]}"


REPORT = """
    SELECT "startTime"::date::text, COALESCE(team_alias, 'Unassigned Team'), model, api_key, sum(log.spend),
           sum(total_tokens)::float
    FROM "LiteLLM_SpendLogs" log LEFT JOIN "LiteLLM_TeamTable" team USING (team_id) GROUP BY 1, 2, 3, 4"""
TAGS = """
    SELECT tag, sum(spend), count(*)
    FROM (SELECT spend, CASE WHEN jsonb_typeof(request_tags) = 'array' THEN request_tags ELSE '[]' END AS tags
          FROM "LiteLLM_SpendLogs") log, jsonb_array_elements_text(tags) AS tag GROUP BY 1"""
DAILY = 'SELECT date, sum(spend), sum(api_requests)::bigint FROM "LiteLLM_DailyUserSpend" GROUP BY 1'


def wrong_sums(server, database):
    """Compares the report, the tags and the activity with sums that plain SQL counts now. Returns a line for each
    that differs."""
    checks = [
        ("report", report_sums(server), {row[:4]: row[4:] for row in database.query(REPORT)}),
        ("tags", tag_sums(server), {row[:1]: row[1:] for row in database.query(TAGS)}),
        ("activity", activity_sums(server, ""), {row[:1]: row[1:] for row in database.query(DAILY)}),
        ("aggregated activity", activity_sums(server, "/aggregated"),
         {row[:1]: row[1:] for row in database.query(DAILY)}),
    ]
    lines = []
    for name, counted, logged in checks:
        entries = sorted(set(counted) | set(logged), key=str)
        wrong = [entry for entry in entries if counted.get(entry) != logged.get(entry)]
        if wrong:
            first = wrong[0]
            lines.append(f"{name}: {len(wrong)} of {len(entries)} sums are wrong, first {first}: "
                         f"{counted.get(first)} instead of {logged.get(first)}")
    return lines


def report_sums(server):
    found = {}
    for day in taken(server, f"/global/spend/report?{rows.WHOLE}"):
        for team in day["teams"]:
            for entry in team["metadata"]:
                place = (day["group_by_day"][:10], team["team_name"], entry["model"], entry["api_key"])
                found[place] = (entry["spend"], float(entry["total_tokens"]))
    return found


def tag_sums(server):
    listed = taken(server, f"/global/spend/tags?{rows.WHOLE}")["spend_per_tag"]
    return {(entry["name"],): (entry["spend"], entry["log_count"]) for entry in listed}


def activity_sums(server, kind):
    listed = taken(server, f"/user/daily/activity{kind}?{rows.WHOLE}&page_size=1000")["results"]
    return {
        (day["date"],): (day["metrics"]["spend"], day["metrics"]["api_requests"]) for day in listed
    }


def taken(server, path):
    answer = server.get(path)
    if answer.status != 200:
        raise AssertionError(f"{path}: {answer}")
    return answer.json()
