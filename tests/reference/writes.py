"""Sends the same random writes to LiteLLM's own code and to a litespend, each on a database of its own that began equal.

After each write, the answers are compared, and what it has changed in the tables. Generated keys, ids and times have no
equal, so a sign stands for them. Fields that docs/compatibility.md lists as absent may be absent.
"""

import datetime
import json
import re
import string

import psycopg
from psycopg.rows import dict_row

from judge import compare, differences
from reference import MASTER_KEY, StandInFailed

TABLES = {
    "LiteLLM_VerificationToken": "token",
    "LiteLLM_DeletedVerificationToken": "token",
    "LiteLLM_TeamTable": "team_id",
    "LiteLLM_UserTable": "user_id",
    "LiteLLM_TeamMembership": "user_id",
    "LiteLLM_OrganizationMembership": "user_id",
    "LiteLLM_BudgetTable": "budget_id",
    "LiteLLM_Config": "param_name",
}
# What LiteLLM's background work and its caches may still do once the answer is there.
PATIENCE = 0.3
UUID = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")
HASH = re.compile(r"^[0-9a-f]{64}$")
MOMENT = re.compile(r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d")


def absent_fields():
    """The names that the documentation lists as absent from answers about keys, teams and users."""
    with open("docs/compatibility.md") as file:
        text = file.read()
    text = text[text.index("## Keys, teams and users") :]
    text = text[: text.index("litespend stores and shows")]
    return set(re.findall(r"`(\w+)`", text[text.index("These fields of LiteLLM's answers") :]))


class Writes:
    """Makes writes up: of things that are there, that are not, and that are no values at all."""

    def __init__(self, choose, raw_keys):
        self.choose = choose
        self.raw_keys = raw_keys
        self.keys, self.aliases, self.teams, self.users = [], [], ["team-alpha", "team-ghost"], ["u-int", "u-nobody"]
        self.addresses, self.number = [], 0

    def name(self, kind):
        self.number += 1
        return f"{kind}-{self.number:04}"

    def some(self, body, often):
        """Some of the fields, now and then one with a value of a wrong type."""
        found = {name: value for name, value in body.items() if self.choose.random() < often}
        if found and self.choose.random() < 0.07:
            found[self.choose.choice(list(found))] = self.choose.choice([7, "text", [1], {"a": 1}, True])
        return found

    def owned(self):
        choose = self.choose
        return {
            "models": choose.choice([[], ["gpt-4o"], ["gpt-4o", "all-team-models"]]),
            "max_budget": choose.choice([0, 1, 12.5]),
            "metadata": choose.choice([{}, {"a": 1}, {"tags": ["x"], "n": {"m": None}}]),
            "blocked": choose.choice([True, False]),
        }

    def generate_key(self):
        key = f"sk-made-up-{self.name('key')}-{''.join(self.choose.choices(string.ascii_letters, k=8))}"
        self.keys.append(key)
        alias = self.choose.choice([self.name("alias"), *self.aliases[-3:]])
        self.aliases.append(alias)
        fields = {
            "key_alias": alias,
            "duration": self.choose.choice(["30d", "1h", "90s", "2w", "1mo", "x", "0d"]),
            "user_id": self.choose.choice(self.users),
            "team_id": self.choose.choice(self.teams),
            "allowed_routes": self.choose.choice([[], ["/spend/logs"], ["management_routes"], ["/spend/*"]]),
            "permissions": self.choose.choice([{}, {"get_spend_routes": True}]),
            **self.owned(),
        }
        return "/key/generate", {"key": key, **self.some(fields, 0.3)}

    def known_key(self):
        return self.choose.choice([*self.keys[-20:], *self.raw_keys, "sk-unknown-key-00001"])

    def delete_keys(self):
        bodies = [
            {"keys": [self.known_key()]},
            {"keys": [self.known_key(), self.known_key()]},
            {"key_aliases": [self.choose.choice(self.aliases or ["none"])]},
            {"keys": []},
            {},
            {"keys": "text"},
        ]
        return "/key/delete", self.choose.choices(bodies, [5, 2, 3, 1, 1, 1])[0]

    def block_key(self):
        path = self.choose.choice(["/key/block", "/key/unblock"])
        return path, self.choose.choices([{"key": self.known_key()}, {}, {"key": 7}], [8, 1, 1])[0]

    def new_team(self):
        team = self.choose.choice([self.name("team"), self.choose.choice(self.teams)])
        self.teams.append(team)
        members = [{"user_id": self.choose.choice(self.users), "role": self.choose.choice(["user", "admin"])}]
        fields = {
            "team_alias": self.choose.choice(["Alpha Team", self.name("Team")]),
            "members_with_roles": self.choose.choice([[], members]),
            **self.owned(),
        }
        return "/team/new", {"team_id": team, **self.some(fields, 0.4)}

    def new_user(self):
        user = self.choose.choice([self.name("user"), self.choose.choice(self.users)])
        self.users.append(user)
        roles = ["proxy_admin", "proxy_admin_viewer", "internal_user", "internal_user_viewer", "none"]
        fields = {
            "user_email": self.choose.choice([f"{user}@example.com", "u-int@example.com"]),
            "user_alias": self.name("User"),
            "user_role": self.choose.choice(roles),
            "teams": self.choose.choice([[], [self.choose.choice(self.teams)]]),
            **{name: value for name, value in self.owned().items() if name != "blocked"},
        }
        return "/user/new", {"user_id": user, "auto_create_key": False, **self.some(fields, 0.35)}

    def allowed_ip(self):
        if "127.0.0.1" not in self.addresses:
            # The caller's own address: without it, the list would shut out the caller.
            self.addresses.append("127.0.0.1")
            return "/add/allowed_ip", {"ip": "127.0.0.1"}
        address = self.choose.choice(["10.0.0.1", "10.0.0.2", "192.0.2.7", "2001:db8::1"])
        path = self.choose.choice(["/add/allowed_ip", "/delete/allowed_ip"])
        return path, self.choose.choices([{"ip": address}, {}, {"ip": 7}], [8, 1, 1])[0]

    def reset(self):
        return "/global/spend/reset", None

    def next(self):
        makers = [self.generate_key, self.delete_keys, self.block_key, self.new_team, self.new_user, self.allowed_ip, self.reset]
        path, body = self.choose.choices(makers, [8, 3, 4, 4, 4, 3, 1])[0]()
        key = self.choose.choices([MASTER_KEY, self.choice_of_others(), None], [30, 3, 1])[0]
        return path, body, {"Authorization": f"Bearer {key}"} if key else {}

    def choice_of_others(self):
        return self.choose.choice([key for key in self.raw_keys if "admin" not in key] or ["sk-unknown-key-00001"])


class Tables:
    """What is in the tables of one of the two databases, and what has changed since the last look."""

    def __init__(self, url):
        self.connection = psycopg.connect(url, autocommit=True, row_factory=dict_row, options="-c timezone=UTC")
        self.last = self.look()

    def look(self):
        found = {}
        for table, key in TABLES.items():
            rows = self.connection.execute(f'SELECT to_jsonb(t) AS row FROM "{table}" t').fetchall()
            found[table] = {self.name_of(row["row"], key): row["row"] for row in rows}
        return found

    @staticmethod
    def name_of(row, key):
        return " ".join(str(row.get(part)) for part in (key, "team_id") if part in row)

    def spends(self):
        return {
            table: {name: row["spend"] for name, row in rows.items() if "spend" in row} for table, rows in self.last.items()
        }

    def columns(self):
        statement = "SELECT column_name FROM information_schema.columns WHERE table_name = ANY (%s)"
        return {row["column_name"] for row in self.connection.execute(statement, [list(TABLES)])}

    def changes(self):
        before, self.last = self.last, self.look()
        found = {}
        for table, rows in self.last.items():
            gone = {name: "deleted" for name in before[table].keys() - rows.keys()}
            changed = {name: row for name, row in rows.items() if before[table].get(name) != row}
            if gone or changed:
                found[table] = {**gone, **changed}
        return found


def signs(value, given, name=""):
    """A value in which a sign stands for what was generated. What the request gave stays."""
    if isinstance(value, dict):
        return {signs(part, given) if HASH.match(part) else part: signs(inner, given, part) for part, inner in value.items()}
    if isinstance(value, list):
        return [signs(part, given, name) for part in value]
    if not isinstance(value, str) or value in given:
        return value
    if UUID.match(value):
        return "<id>"
    if name == "key" and value.startswith("sk-"):
        return "<key>"
    if MOMENT.match(value):
        return sign_of_moment(value)
    return value


def sign_of_moment(value):
    """How far a moment is from now, in minutes: long past moments stay."""
    moment = datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
    moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)
    minutes = round((moment - datetime.datetime.now(datetime.timezone.utc)).total_seconds() / 60)
    return value if minutes < -120 else f"<in {minutes} minutes>" if abs(minutes) > 1 else "<now>"


def without(parts, absent, columns):
    """The differences without what the documentation states: fields that are absent, and columns that are there."""
    found = []
    for part in parts:
        name = part[0].split(".")[-1]
        is_stated = (part[1:] == (True, False) and name in absent) or (part[1:] == (False, True) and name in columns)
        if not is_stated:
            found.append(part)
    return found


def compare_changes(path, theirs, ours, given):
    changes = [tables.changes() for tables in (theirs, ours)]
    if path == "/global/spend/reset":
        # Here, only the rows are written that have to change. The sums are then the same.
        changes = [tables.spends() for tables in (theirs, ours)]
    parts = differences(*(signs(each, given) for each in changes))
    return [(f"tables{place}", *rest) for place, *rest in parts]


def compare_writes(judge, reference, server, writes, number, urls):
    """Judges as many writes as asked for. Both databases are looked into after each."""
    absent = absent_fields()
    theirs, ours = (Tables(url) for url in urls)
    columns = theirs.columns()
    for _ in range(number):
        path, body, headers = writes.next()
        request = f"POST {path} {headers.get('Authorization')} {json.dumps(body)}"
        given = set(re.findall(r'"([^"]*)"', json.dumps(body)))
        try:
            expected = reference.ask("POST", path, {}, headers, body, PATIENCE)
        except StandInFailed as failure:
            judge.not_judged(request, failure)
            theirs.changes()
            align(theirs, ours)
            continue
        found = server.ask("POST", path, {}, headers, body)
        parts = without(compare({}, with_signs(expected, given), with_signs(found, given)), absent, columns)
        parts += compare_changes(path, theirs, ours, given)
        judge.judge(f"POST {path}", request, expected, found, parts)
        if any(part[0].startswith("tables") for part in parts):
            # From here on, the databases are not equal, so the next writes start from LiteLLM's rows.
            align(theirs, ours)


def with_signs(answer, given):
    status, headers, body = answer
    return status, headers, signs(body, given)


def align(theirs, ours):
    for table in TABLES:
        ours.connection.execute(f'DELETE FROM "{table}"')
    for table in reversed(list(TABLES)):
        for row in theirs.last[table].values():
            ours.connection.execute(
                f'INSERT INTO "{table}" SELECT * FROM jsonb_populate_record(NULL::"{table}", %s::jsonb)', [json.dumps(row)]
            )
    ours.last = ours.look()
