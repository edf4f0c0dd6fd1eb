"""Compares two answers, and counts and groups how answers differ.

Numbers are equal within 1e-9. Where LiteLLM leaves an order to the database, any order is right. Where LiteLLM fails on
what a client sent (a 5xx, or no answer), litespend must refuse it: 400 or 422. Of refusals, status, envelope, type, code
and the places of wrong fields are compared, not the words.
"""

import collections
import json
import re

from reference import StandInFailed

TIMESTAMP = re.compile(r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d")
TRUNCATED = "x-litellm-spend-logs-truncated"


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


def inside(place, name):
    return f"{place}.{name.replace('.', '·')}"


# Fields that tell which of the rows of an answer is which.
IDENTITIES = ["date", "request_id", "token", "group_by_day"]


def pairs_of(expected, found):
    """The elements of two lists, each with the one that it is to equal."""
    for name in IDENTITIES:
        names = [[part.get(name) if isinstance(part, dict) else None for part in rows] for rows in (expected, found)]
        known = all(isinstance(value, str) for value in names[0])
        if known and len(set(names[0])) == len(names[0]) and set(names[0]) == set(names[1]):
            by_name = {part[name]: part for part in found}
            return [(part, by_name[part[name]]) for part in expected]
    # Rounding alone may make forms differ: in the order of their texts, equals stand beside equals.
    return zip(sorted(expected, key=by_texts), sorted(found, key=by_texts))


def differences(expected, found, place=""):
    if is_number(expected) and is_number(found):
        return [] if abs(expected - found) <= 1e-9 * max(1, abs(expected)) else [(place, expected, found)]
    if isinstance(expected, dict) and isinstance(found, dict):
        parts = []
        for name in expected.keys() | found.keys():
            if name not in expected or name not in found:
                parts.append((inside(place, name), name in expected, name in found))
            else:
                parts += differences(expected[name], found[name], inside(place, name))
        return parts
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        if same_form(expected) == same_form(found):
            return []
        pairs = enumerate(pairs_of(expected, found))
        return [part for index, pair in pairs for part in differences(*pair, f"{place}[{index}]")]
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


# Objects whose names are data: days' parts, keys, users.
MAPS = "api_key_breakdown|api_keys|endpoints|entities|mcp_servers|model_groups|models|providers"


def kind_of(part):
    """The kind of a difference, which it shares with others of the same cause."""
    place, expected, found = part[:3]
    place = re.sub(r"\[\d+\]", "[]", place)
    place = re.sub(rf"(\.breakdown\.(?:{MAPS})|\.(?:api_key_breakdown|entity_total_api_keys))\.[^.]*", r"\1.*", place)
    place = re.sub(r"^(made-up-\d+|[0-9a-f-]{36}|chatcmpl-[\w-]+|req[\w-]*)", "row", place)
    place = re.sub(r"^(tables\.\w+)\.[^.]*", r"\1.*", place)
    if (expected, found) in ((True, False), (False, True)) and "." in place:
        return place, "missing" if expected else "too much"
    if place in ("status", "refusal"):
        return place, f"{expected} -> {found}"
    return place, "null" if "None" in (str(expected), str(found)) else "value"


class Judge:
    """Counts answers that are the same, and keeps an example of every kind of difference."""

    def __init__(self, names=("LiteLLM", "litespend"), shown=20):
        self.names = names
        self.shown = shown
        self.same = collections.Counter()
        self.different = collections.Counter()
        self.groups = collections.Counter()
        self.examples = {}
        # Differences that the documentation states, by the names of their rules.
        self.deliberate = collections.Counter()
        self.failures = collections.Counter()

    def judge(self, name, request, expected, found, parts, rule=None):
        """Counts an answer. With a rule of deliberate.py, its differences are deliberate."""
        if not parts:
            self.same[name] += 1
            return
        if rule:
            self.deliberate[rule.name] += 1
            return
        self.different[name] += 1
        for place, kind in sorted({kind_of(part) for part in parts}):
            group = (name, place, kind)
            self.groups[group] += 1
            self.examples.setdefault(group, (request, expected, found, parts))
        if sum(self.different.values()) <= self.shown:
            print(f"DIFFERENT {request}\n    {str(parts[:3])[:800]}", flush=True)

    def not_judged(self, request, failure):
        """The stand-in failed, so that nothing is known of LiteLLM's answer."""
        name = str(failure).splitlines()[0][:150]
        self.failures[name] += 1
        if self.failures[name] == 1:
            print(f"NOT JUDGED {request}: {failure}", flush=True)

    def summary(self, title):
        for name, number in sorted(self.same.items()):
            print(f"{number:8} {name}")
        for name, number in sorted(self.deliberate.items()):
            print(f"{number:8} deliberate: {name}")
        deliberate = f"{sum(self.deliberate.values())} differ deliberately, " if self.deliberate else ""
        print(f"{sum(self.same.values())} answers are {title}'s, {deliberate}{sum(self.different.values())} are not")
        for (name, place, kind), number in self.groups.most_common(60):
            print(f"{number:8} {name}: {place} ({kind})")
        if self.failures:
            print(f"{sum(self.failures.values())} requests were not judged, because the stand-in for Prisma failed")
        return 1 if self.different or self.failures else 0

    def report(self, path, title):
        """Appends every kind of difference with an example to a file of Markdown."""
        with open(path, "a") as file:
            print(f"# {title}\n\n{sum(self.same.values())} answers agree, {sum(self.different.values())} differ.\n", file=file)
            for group, number in self.groups.most_common():
                request, expected, found, parts = self.examples[group]
                print(f"## {group[0]}: `{group[1]}` ({group[2]}), {number} times\n\n`{request}`\n", file=file)
                for who, (status, _, body) in zip(self.names, (expected, found)):
                    print(f"- {who}: {status} `{json.dumps(body)[:1200]}`", file=file)
                print(f"- differences: `{str(parts[:4])[:1000]}`\n", file=file)


def by_id(answer):
    """An answer with teams, and the keys of each, by their IDs: LiteLLM asks the database for no order."""
    status, headers, teams = answer
    if status != 200 or not isinstance(teams, list):
        return answer
    teams = [{**team, "keys": sorted(team.get("keys") or [], key=lambda key: key["token"])} for team in teams]
    return status, headers, sorted(teams, key=lambda team: team["team_id"])


def ask_both(judge, reference, server, name, method, path, query, headers, body=None, unstated=None):
    """Sends a request to both and judges the answers. `unstated` leaves differences out."""
    request = f"{method} {path} {query} {headers.get('Authorization')} {json.dumps(body)[:600]}"
    try:
        expected = reference.ask(method, path, query, headers, body)
    except StandInFailed as failure:
        judge.not_judged(request, failure)
        return
    found = server.ask(method, path, query, headers, body)
    if path == "/team/list":
        expected, found = by_id(expected), by_id(found)
    parts = compare(query, expected, found)
    judge.judge(name, request, expected, found, unstated(name, query, expected, found, parts) if unstated else parts)
