"""The sums that reports answer, and the same sums by an engine that reads the archive: dictionaries from what is summed
up to (spend, whole numbers...); a sum that has no spend has None in its place."""

import datetime
import math

import calls

UNASSIGNED = "Unassigned Team"
RANGE = f"start_date={calls.FIRST_DAY}&end_date={calls.LAST_CLOSED}"
# Summaries of /spend/logs stop at the start of their last day.
DAY_AFTER = f"start_date={calls.FIRST_DAY}&end_date={calls.OPEN_DAY}"

PATHS = {
    "report by team": f"/global/spend/report?{RANGE}",
    "report by customer": f"/global/spend/report?{RANGE}&group_by=customer",
    "report by user": f"/global/spend/report?{RANGE}&group_by=user",
    "report by model": f"/global/spend/report?{RANGE}&group_by=model_name",
    "report by key": f"/global/spend/report?{RANGE}&group_by=api_key",
    "tags": f"/spend/tags?{RANGE}",
    "tags, rounded": f"/global/spend/tags?{RANGE}",
    "summary of the log": f"/spend/logs?{DAY_AFTER}&summarize=true",
    "activity": f"/global/activity?{RANGE}",
    "activity of models": f"/global/activity/model?{RANGE}",
    "report of a key": f"/global/spend/report?{RANGE}&api_key={calls.KEYS[0]}",
    "report of a user": f"/global/spend/report?{RANGE}&internal_user_id=user-1",
    "report of a team by model": f"/global/spend/report?{RANGE}&group_by=model_name&team_id=team-1",
    "/key/spend/report": f"/key/spend/report?{RANGE}&api_key={calls.KEYS[0]}",
    "/user/spend/report": f"/user/spend/report?{RANGE}&internal_user_id=user-1",
    "/team/spend/report": f"/team/spend/report?{RANGE}&team_id=team-1",
}


def add(found, place, spend, *numbers):
    before = found.get(place, (None if spend is None else 0.0, *(0 for _ in numbers)))
    total = None if spend is None else before[0] + spend
    found[place] = (total, *(old + new for old, new in zip(before[1:], numbers)))


def of_report(answer, group, name):
    found = {}
    for day in answer:
        for entry in day[group]:
            for part in entry["metadata"]:
                place = (day["group_by_day"][:10], entry[name], part["model"], part["api_key"])
                add(found, place, part["spend"], part["total_tokens"])
    return found


def of_keys(answer):
    found = {}
    for key in answer:
        numbers = key["total_input_tokens"], key["total_output_tokens"]
        add(found, (key["api_key"], "all models"), key["total_cost"], *numbers)
        for model in key["model_details"]:
            numbers = model["total_input_tokens"], model["total_output_tokens"]
            add(found, (key["api_key"], model["model"]), model["total_cost"], *numbers)
    return found


def of_summary(answer):
    found = {}
    for day in answer:
        date = day["startTime"][:10]
        # Calls that start with the last day are in it, too.
        if date == str(calls.OPEN_DAY):
            continue
        found[date, "all"] = (day["spend"],)
        parts = {"user": day["users"], "model": day["models"]}
        parts["key"] = {name: day[name] for name in day if name not in ("startTime", "spend", "users", "models")}
        for kind, members in parts.items():
            found.update({(date, kind, name): (spend,) for name, spend in members.items()})
    return found


def of_activity(answer, *place):
    found = {(*place, "all days"): (None, answer["sum_api_requests"], answer["sum_total_tokens"])}
    for day in answer["daily_data"]:
        found[*place, day["date"]] = (None, day["api_requests"], day["total_tokens"])
    return found


def answered(name, answer):
    """The sums of an answer."""
    if name in ("report by key", "report of a key", "report of a user") or name.endswith("/spend/report"):
        return of_keys(answer)
    if name == "tags":
        return {(tag["individual_request_tag"],): (tag["total_spend"], tag["log_count"]) for tag in answer}
    if name == "tags, rounded":
        return {(tag["name"],): (tag["spend"], tag["log_count"]) for tag in answer["spend_per_tag"]}
    if name == "summary of the log":
        return of_summary(answer)
    if name == "activity":
        return of_activity(answer)
    if name == "activity of models":
        return {place: sums for model in answer for place, sums in of_activity(model, model["model"]).items()}
    group, member = {
        "report by team": ("teams", "team_name"), "report by customer": ("customers", "customer"),
        "report by user": ("users", "user"), "report by model": ("models", "model"),
        "report of a team by model": ("models", "model"),
    }[name]
    return of_report(answer, group, member)


def read(server):
    """The sums that the server answers, by name, and the answers."""
    found = {}
    for name, path in PATHS.items():
        answer = server.get(path)
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer}")
        found[name] = answer.json()
    return found


def label(day):
    return datetime.date.fromisoformat(day).strftime("%b %d")


class Summed:
    """The sums that an engine reads from the archive."""

    def __init__(self, engine):
        self.engine = engine

    def by(self, *columns, sums=("spend", "total_tokens"), where="1 = 1"):
        """Rows of these columns and their sums, of the closed days."""
        listed = ", ".join("CAST(day AS String) AS day_text" if name == "day" else f'"{name}"' for name in columns)
        counted = ", ".join(f"sum({name})" for name in sums)
        groups = ", ".join(str(number + 1) for number in range(len(columns)))
        return self.engine.rows(
            f"SELECT {listed}, {counted}, count(*) FROM spend_logs WHERE day BETWEEN '{calls.FIRST_DAY}' AND "
            f"'{calls.LAST_CLOSED}' AND {where} GROUP BY {groups}"
        )

    def report(self, column, named=lambda value: value, where="1 = 1"):
        found = {}
        for day, value, model, key, spend, tokens, _ in self.by("day", column, "model", "api_key", where=where):
            add(found, (day, named(value), model, key), spend, tokens)
        return found

    def keys(self, where="1 = 1"):
        found = {}
        sums = ("spend", "prompt_tokens", "completion_tokens")
        for key, model, spend, prompt, completion, _ in self.by("api_key", "model", sums=sums, where=where):
            add(found, (key, model), spend, prompt, completion)
            add(found, (key, "all models"), spend, prompt, completion)
        return found

    def tags(self):
        return {(tag,): (spend, count) for tag, spend, count in self.engine.rows(self.engine.tags(
            f"SELECT * FROM spend_logs WHERE day BETWEEN '{calls.FIRST_DAY}' AND '{calls.LAST_CLOSED}'"))}

    def summary(self):
        found = {}
        for day, key, user, model, spend, _ in self.by("day", "api_key", "user", "model", sums=("spend",)):
            for place in [("all",), ("key", key), ("user", "null" if user is None else user), ("model", model)]:
                add(found, (day, *place), spend)
        return found

    def activity(self, *columns):
        found = {}
        for *place, day, tokens, count in self.by(*columns, "day", sums=("total_tokens",)):
            add(found, (*place, label(day)), None, count, tokens)
            add(found, (*place, "all days"), None, count, tokens)
        return found

    def all(self):
        tags = self.tags()
        of_key, of_user = self.keys(f"api_key = '{calls.KEYS[0]}'"), self.keys("\"user\" = 'user-1'")
        return {
            "report by team": self.report("team_id", lambda team: calls.TEAMS.get(team) or UNASSIGNED),
            "report by customer": self.report("end_user"), "report by user": self.report("user"),
            "report by model": self.report("model"), "report by key": self.keys(),
            "tags": tags, "tags, rounded": tags, "summary of the log": self.summary(),
            "activity": self.activity(), "activity of models": self.activity("model_group"),
            "report of a key": of_key, "report of a user": of_user,
            "report of a team by model": self.report("model", where="team_id = 'team-1'"),
            "/key/spend/report": of_key, "/user/spend/report": of_user,
            "/team/spend/report": self.keys("team_id = 'team-1'"),
        }


def agree(one, other, rounded=False):
    if len(one) != len(other) or one[1:] != other[1:]:
        return False
    if one[0] is None or other[0] is None:
        return one[0] is other[0]
    # /global/spend/tags rounds to four places.
    limit = 0.5001e-4 if rounded else 1e-9 * max(1.0, abs(one[0]), abs(other[0]))
    return math.isfinite(one[0]) and abs(one[0] - other[0]) <= limit


def difference(name, wanted, found):
    """What differs first, in a line, or nothing."""
    wrong = [
        place for place in sorted(set(wanted) | set(found), key=repr)
        if place not in wanted or place not in found or not agree(wanted[place], found[place], name == "tags, rounded")
    ]
    if not wrong:
        return ""
    first = wrong[0]
    return f"{len(wrong)} of {len(wanted)} sums, first {first!r}: {found.get(first)} instead of {wanted.get(first)}"
