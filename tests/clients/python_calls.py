"""Calls every operation of the document with the generated client; run by python.sh."""

import datetime
import importlib
import inspect
import pkgutil
import sys

from clients_python import AuthenticatedClient

base, key, document = sys.argv[1:4]
client = AuthenticatedClient(base_url=base, token=key, prefix="", auth_header_name="x-litellm-api-key")

operations = {}
for tag in pkgutil.iter_modules(importlib.import_module("clients_python.api").__path__):
    name = f"clients_python.api.{tag.name}"
    for module in pkgutil.iter_modules(importlib.import_module(name).__path__):
        operations[module.name] = importlib.import_module(f"{name}.{module.name}")

models = importlib.import_module("clients_python.models")
dates = {"start_date": datetime.date(2026, 2, 1), "end_date": datetime.date(2026, 2, 3)}
called = set()


def call(operation, status=200, **arguments):
    """Calls, checks the status, and that what came back was understood."""
    module = operations[operation]
    answer = module.sync_detailed(client=client, **arguments)
    assert int(answer.status_code) == status, (operation, arguments, answer.status_code, answer.content)
    assert answer.parsed is not None, (operation, arguments, answer.content)
    kind = type(answer.parsed).__name__
    if isinstance(answer.parsed, list) and answer.parsed:
        kind = f"list of {type(answer.parsed[0]).__name__}"
    print(f"{operation} {status}: {kind}")
    called.add(operation)
    return answer.parsed


def post(operation, value, status=200):
    """Calls with a body of the operation's own type."""
    kind = inspect.signature(operations[operation].sync_detailed).parameters["body"].annotation
    # Of several types, the one that is an object by itself.
    kind = next((each for each in getattr(kind, "__args__", [kind]) if hasattr(each, "from_dict")), kind)
    return call(operation, status, body=kind.from_dict(value))


def needs_days(operation):
    """The client itself asks for days that have to be given."""
    try:
        operations[operation].sync_detailed(client=client, start_date=dates["start_date"])
    except TypeError:
        return
    raise AssertionError(f"{operation} was called without an end")


ip = lambda text: {"body": models.IPAddress(ip=text)}

rows = call("view_spend_logs_spend_logs_get")
assert [row.request_id for row in rows] == ["b", "a"], rows
assert rows[1].end_time.isoformat() == "2026-02-01T10:00:01.500000+00:00", rows[1]
assert rows[1].messages[0]["content"] == "hi" and rows[0].messages is None
days = call("view_spend_logs_spend_logs_get", **dates)
assert days[0].spend == 0.5 and days[0].models["gpt-4o"] == 0.5, days
assert days[0].additional_properties["a" * 64] == 0.5, days
rows = call("view_spend_logs_spend_logs_get", **dates, summarize=False)
assert rows[0].request_id == "b", rows
call("view_spend_logs_spend_logs_get", status=422, **dates, summarize=False, cursor="junk")

tags = call("view_spend_tags_spend_tags_get")
assert (tags[0].individual_request_tag, tags[0].total_spend) == ("prod", 0.5), tags
ranked = call("global_view_spend_tags_global_spend_tags_get", **dates)
assert ranked.spend_per_tag[0].name == "prod", ranked
needs_days("global_view_spend_tags_global_spend_tags_get")

report = "get_global_spend_report_global_spend_report_get"
teams = call(report, **dates)
assert teams[0].teams[0].team_name == "Team" and teams[0].teams[0].total_spend == 0.5, teams
group_by = getattr(models, "GetGlobalSpendReportGlobalSpendReportGetGroupBy")
assert call(report, **dates, group_by=group_by.CUSTOMER)[0].customers[0].customer == "customer"
assert call(report, **dates, group_by=group_by.API_KEY)[0].total_cost == 0.5
assert call(report, **dates, team_id="team", customer_id="customer")[0].teams_customers[0].total_spend == 0.5
needs_days(report)

daily = call("get_user_daily_activity_user_daily_activity_get", **dates, page=1, page_size=10)
assert daily.metadata.total_spend == 0.5 and daily.results[0].breakdown.models["gpt-4o"].metrics.spend == 0.5, daily
call("get_user_daily_activity_user_daily_activity_get", status=422, **dates, page=0)
needs_days("get_user_daily_activity_user_daily_activity_get")

add, delete = "add_allowed_ip_add_allowed_ip_post", "delete_allowed_ip_delete_allowed_ip_post"
assert call(add, **ip("127.0.0.1")).status == "success"
assert call(add, status=400, **ip("127.0.0.1")).detail
assert call(add, status=422, **ip("junk")).detail
assert call("get_allowed_ips").data == ["127.0.0.1"]
assert call(delete, **ip("127.0.0.1")).status == "success"
call(delete, status=404, **ip("127.0.0.1"))
call(add, status=409, **ip("10.0.0.1"))

# The dashboard's reads take dates, and what else each needs.
needed = {
    "request_id": "a",
    "session_id": "none",
    "model_group": "gpt-4o",
    **dates,
    "team_id": "team",
    "internal_user_id": "u",
    "api_key": "a" * 64,
}
for module in pkgutil.iter_modules(importlib.import_module("clients_python.api.dashboard").__path__):
    taken = inspect.signature(operations[module.name].sync_detailed).parameters
    wanted = {name: value for name, value in needed.items() if name in taken}
    if module.name.startswith("ui_view") and "start_date" in taken:
        wanted |= {"start_date": "2026-02-01 00:00:00", "end_date": "2026-02-03 00:00:00"}
    if module.name.startswith("ui_view_spend_logs"):
        wanted = {name: wanted[name] for name in ["start_date", "end_date"]}
    call(module.name, **wanted)

booked = post("record_usage", {"model": "gpt-4o", "prompt_tokens": 10, "completion_tokens": 1, "idempotency_key": "c"})
assert (booked.recorded, booked.results[0].request_id) == (1, "c"), booked
payload = {"id": "d", "model": "gpt-4o", "response_cost": 0.5, "startTime": 1769940000.0, "endTime": 1769940001.0}
post("record_litellm_usage", payload)

attributes = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-4o", "gen_ai.provider.name": "openai"}
tokens = {"gen_ai.usage.input_tokens": "10", "gen_ai.usage.output_tokens": "1"}
span = {"traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174", "name": "chat gpt-4o",
        "startTimeUnixNano": "1769940000000000000", "endTimeUnixNano": "1769940001000000000",
        "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in attributes.items()]
        + [{"key": key, "value": {"intValue": value}} for key, value in tokens.items()]}
post("export_traces", {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]})
assert call("view_spend_logs_spend_logs_get", request_id=f"otel-{span['traceId']}-{span['spanId']}")[0].prompt_tokens == 10

team = post("create_team", {"team_alias": "Made here"}).to_dict()
user = post("create_user", {"user_id": "made-here", "teams": [team["team_id"]], "auto_create_key": False}).to_dict()
made = post("generate_key", {"user_id": user["user_id"], "key_alias": "made here"}).to_dict()
assert call("get_key_info", key=made["key"]).to_dict()["info"]["key_alias"] == "made here"
assert call("get_user_info", user_id="made-here").to_dict()["teams"][0]["team_id"] == team["team_id"]
assert any(each.to_dict()["team_id"] == team["team_id"] for each in call("list_teams"))
assert post("block_key", {"key": made["key"]}).to_dict()["blocked"] is True
assert post("unblock_key", {"key": made["key"]}).to_dict()["blocked"] is False
post("delete_keys", {"keys": [made["key"]]})
post("delete_keys", {"keys": [made["key"]]}, status=404)

assert call("global_spend_reset_global_spend_reset_post").status == "success"
for probe in ["get_health_liveliness", "get_health_liveness"]:
    assert call(probe) == "I'm alive!"
assert call("get_health_readiness").db == "connected"
assert "litespend_http_requests_total" in call("get_metrics")
assert "litellm_spend_metric_total{" in call("get_spend_metrics")

calculate = "calculate_spend_spend_calculate_post"
request = getattr(models, "SpendCalculateRequest", None)
if request is None:
    operations.pop(calculate)
    print(f"{calculate}: the document has no request for it")
else:
    body = request.from_dict({"model": "gpt-4o", "messages": [{"role": "user", "content": "Hey, how's it going?"}]})
    assert call(calculate, body=body).cost > 0
    call(calculate, status=400, body=request.from_dict({}))

# Others come and go; what a key may not do is understood as well.
answer = operations["get_allowed_ips"].sync_detailed(client=AuthenticatedClient(
    base_url=base, token="sk-nobody", prefix="", auth_header_name="x-litellm-api-key"))
assert int(answer.status_code) == 401 and answer.parsed.error.type_ == "token_not_found_in_db", answer

# Last, for it locks this client out.
assert call(add, **ip("10.0.0.1"), force=True).status == "success"
refused = call("get_allowed_ips", status=403)
assert refused.error.type_ == "auth_error", refused

missing = sorted(set(operations) - called)
assert not missing, f"not called: {missing}"
print(f"{len(called)} operations called")
