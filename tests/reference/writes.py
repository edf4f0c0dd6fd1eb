"""Sends the same random writes to LiteLLM's own code and to a litespend, each on a database of its own that began equal.

After each write, the answers are compared, and what it has changed in the tables. Generated keys, ids and times have no
equal, so a sign stands for them. Fields that docs/compatibility.md lists as absent may be absent. deliberate.py states what
else may differ. Then, the databases are made equal, so that every write is judged alone.
"""

import datetime
import json
import math
import re
import string
import sys
import time

import psycopg
from psycopg.rows import dict_row

from deliberate import CONFIG, DELETED, KEYS, OWN_ADDRESS, Write, allowed_addresses, caller_of, hash_of, rule_for
from judge import compare, differences
from reference import MASTER_KEY, StandInFailed

# The columns that tell which row is which.
TABLES = {
    "LiteLLM_VerificationToken": ["token"],
    "LiteLLM_DeletedVerificationToken": ["token"],
    "LiteLLM_TeamTable": ["team_id"],
    "LiteLLM_UserTable": ["user_id"],
    "LiteLLM_TeamMembership": ["user_id", "team_id"],
    "LiteLLM_OrganizationMembership": ["user_id", "organization_id"],
    "LiteLLM_BudgetTable": ["budget_id"],
    "LiteLLM_Config": ["param_name"],
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
        # The allowed addresses as they are stored.
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
        alias = self.choose.choice(self.aliases or ["none"])
        bodies = [
            {"keys": [self.known_key()]},
            {"keys": [self.known_key(), self.known_key()]},
            {"key_aliases": [alias]},
            {"keys": [self.known_key()], "key_aliases": [alias]},
            {"keys": []},
            {},
            {"keys": "text"},
        ]
        return "/key/delete", self.choose.choices(bodies, [5, 2, 3, 1, 1, 1, 1])[0]

    def block_key(self):
        path = self.choose.choice(["/key/block", "/key/unblock"])
        return path, self.choose.choices([{"key": self.known_key()}, {}, {"key": 7}], [8, 1, 1])[0]

    def new_team(self):
        team = self.choose.choice([self.name("team"), self.choose.choice(self.teams)])
        self.teams.append(team)
        role = self.choose.choice(["user", "admin"])
        members = [{"user_id": self.choose.choice(self.users), "role": role}]
        by_address = [{"user_email": f"{self.name('member')}@example.com", "role": role}]
        fields = {
            "team_alias": self.choose.choice(["Alpha Team", self.name("Team")]),
            "members_with_roles": self.choose.choices([[], members, by_address], [4, 4, 1])[0],
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
        body = {"user_id": user, "auto_create_key": False, **self.some(fields, 0.35)}
        if self.choose.random() < 0.15:
            key = {"key": f"sk-made-up-{self.name('key-of-user')}"}
            body = {**body, "auto_create_key": True, **self.choose.choice([{}, key])}
        return "/user/new", body

    def allowed_ip(self):
        if OWN_ADDRESS not in self.addresses:
            # As long as there is no list, anything but the caller's own address would lock out the caller.
            return "/add/allowed_ip", {"ip": self.choose.choice([OWN_ADDRESS, "10.0.0.1"])}
        if self.choose.random() < (0.4 if len(self.addresses) == 1 else 0.1):
            return "/delete/allowed_ip", {"ip": OWN_ADDRESS}
        address = self.choose.choice(["10.0.0.1", "10.0.0.2", "192.0.2.7", "2001:db8::1", "198.51.100.0/24"])
        others = [each for each in self.addresses if each != OWN_ADDRESS] or [address]
        adds = [{"ip": address}, {}, {"ip": 7}, {"ip": "text"}, {"ip": f"::ffff:{OWN_ADDRESS}"}]
        deletes = [{"ip": self.choose.choice(others)}, {"ip": address}, {}, {"ip": 7}, {"ip": "text"}]
        path, bodies = self.choose.choice([("/add/allowed_ip", adds), ("/delete/allowed_ip", deletes)])
        return path, self.choose.choices(bodies, [12, 3, 1, 1, 1])[0]

    def reset(self):
        return "/global/spend/reset", None

    def next(self):
        """Path, query, body and key."""
        makers = [self.generate_key, self.delete_keys, self.block_key, self.new_team, self.new_user, self.allowed_ip, self.reset]
        path, body = self.choose.choices(makers, [8, 3, 4, 4, 4, 3, 1])[0]()
        forced = path.endswith("/allowed_ip") and self.choose.random() < 0.2
        return path, {"force": "true"} if forced else {}, body, self.caller()

    def caller(self):
        admins = [key for key in self.raw_keys if "admin" in key]
        others = [key for key in self.raw_keys if "admin" not in key]
        kinds = [[MASTER_KEY], admins or [MASTER_KEY], others or ["sk-unknown-key-00001"], [None]]
        return self.choose.choice(self.choose.choices(kinds, [30, 2, 3, 1])[0])


class Tables:
    """What is in the tables of one of the two databases, and what has changed since the last look."""

    def __init__(self, url):
        self.connection = psycopg.connect(url, autocommit=True, row_factory=dict_row, options="-c timezone=UTC")
        self.last = self.look()

    def look(self):
        found = {}
        for table, columns in TABLES.items():
            rows = self.connection.execute(f'SELECT to_jsonb(t) AS row FROM "{table}" t').fetchall()
            found[table] = {" ".join(row["row"][name] for name in columns): row["row"] for row in rows}
        return found

    def take(self, wanted):
        """Changes the rows that are not as wanted."""
        with self.connection.transaction():
            for table, columns in TABLES.items():
                for name in self.last[table].keys() - wanted[table].keys():
                    self.delete(table, columns, self.last[table][name])
            for table, columns in reversed(TABLES.items()):
                for name, row in wanted[table].items():
                    if self.last[table].get(name) != row:
                        self.write(table, columns, row, name in self.last[table])
        self.last = self.look()
        if self.last != wanted:
            sys.exit("The two databases can't be made equal.")

    def delete(self, table, columns, row):
        condition = " AND ".join(f'"{name}" = %s' for name in columns)
        self.connection.execute(f'DELETE FROM "{table}" WHERE {condition}', [row[name] for name in columns])

    def write(self, table, columns, row, exists):
        record = f'jsonb_populate_record(NULL::"{table}", %s::jsonb)'
        if not exists:
            self.connection.execute(f'INSERT INTO "{table}" SELECT * FROM {record}', [json.dumps(row)])
            return
        names = ", ".join(f'"{name}"' for name in row)
        condition = " AND ".join(f't."{name}" = %s' for name in columns)
        self.connection.execute(
            f'UPDATE "{table}" AS t SET ({names}) = (SELECT {names} FROM {record}) WHERE {condition}',
            [json.dumps(row), *(row[name] for name in columns)],
        )

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


def signs(value, given, start, name=""):
    """A value in which a sign stands for what was generated. What the request gave, or what was there before, stays."""
    if isinstance(value, dict):
        return {signs(part, given, start): signs(inner, given, start, part) for part, inner in value.items()}
    if isinstance(value, list):
        return [signs(part, given, start, name) for part in value]
    if not isinstance(value, str) or value in given:
        return value
    if UUID.match(value):
        return "<id>"
    if HASH.match(value):
        return "<hash>"
    if name in ("key", "key_name") and value.startswith("sk-"):
        return f"<{name}>"
    if MOMENT.match(value):
        return sign_of_moment(value, start)
    return value


def known_strings(body, rows):
    """What is not generated: what the request gives, and keys that are there already."""
    given = set(re.findall(r'"([^"]*)"', json.dumps(body)))
    keys = [row for table in (KEYS, DELETED) for row in rows[table].values()]
    return (
        given
        | {hash_of(each) for each in given}
        | {f"sk-...{each[-4:]}" for each in given}
        | {row["token"] for row in keys}
        | {row["key_name"] for row in keys}
    )


def sign_of_moment(value, start):
    """How long after the start of the write a moment is, in whole minutes. Moments before it stay."""
    moment = datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
    moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)
    minutes = math.floor((moment - start).total_seconds() / 60)
    return value if minutes < 0 else f"<in {minutes} minutes>" if minutes else "<now>"


def now():
    """In whole milliseconds, as the tables have it."""
    moment = datetime.datetime.now(datetime.timezone.utc)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def without(parts, absent, columns):
    """The differences without what the documentation states: fields that are absent, and columns that are there."""
    found = []
    for part in parts:
        name = part[0].split(".")[-1]
        is_stated = (part[1:] == (True, False) and name in absent) or (part[1:] == (False, True) and name in columns)
        if not is_stated:
            found.append(part)
    return found


def headers_of(key):
    return {"Authorization": f"Bearer {key}"} if key else {}


class Pair:
    """LiteLLM and litespend, each with its database. The databases are equal before each write."""

    def __init__(self, judge, reference, server, urls):
        self.judge, self.reference, self.server = judge, reference, server
        self.theirs, self.ours = (Tables(url) for url in urls)
        self.absent = absent_fields()
        self.columns = self.theirs.columns()
        if self.theirs.last != self.ours.last:
            sys.exit("The two databases are not equal.")

    def rows(self):
        return self.theirs.last

    def send(self, path, query, body, key):
        """Sends a write to both, judges the answers and the changes, and makes the databases equal."""
        before, start, headers = self.rows(), now(), headers_of(key)
        request = f"POST {path} {query or ''} {headers.get('Authorization')} {json.dumps(body)}"
        try:
            expected = self.reference.ask("POST", path, query, headers, body, PATIENCE)
        except StandInFailed as failure:
            self.judge.not_judged(request, failure)
            self.theirs.changes()
            self.take(self.theirs.last, is_known=False)
            return
        found = self.server.ask("POST", path, query, headers, body)
        given = known_strings(body, before)
        answers = [(status, headers, signs(text, given, start)) for status, headers, text in (expected, found)]
        parts = without(compare({}, *answers), self.absent, self.columns)
        changes = [tables.changes() for tables in (self.theirs, self.ours)]
        between = differences(*(signs(each, given, start) for each in changes))
        parts += [(f"tables{place}", *rest) for place, *rest in between]
        caller = caller_of(before, key, MASTER_KEY)
        rule = rule_for(Write(path, body, query, *caller, before, expected, found, *changes, parts)) if parts else None
        self.judge.judge(f"POST {path}", request, expected, found, parts, rule)
        wanted = self.ours.last if rule and rule.undone else self.theirs.last
        if between and locks_out(wanted):
            # With this list, LiteLLM would answer nothing any more, and litespend does not have it.
            wanted = {**wanted, CONFIG: before[CONFIG]}
        self.take(wanted, is_known=not between)

    def take(self, rows, is_known):
        """Gives both databases these rows. `is_known` says that the servers know what is in them, apart from signs."""
        remembered = allowed_addresses(self.theirs.last)
        for tables in (self.theirs, self.ours):
            if tables.last != rows:
                tables.take(rows)
        if allowed_addresses(rows) != remembered:
            self.reference.allow(allowed_addresses(rows))
        if not is_known:
            self.refresh()

    def refresh(self):
        """Waits until litespend reads the allowed addresses again, and lets it forget the keys that it has looked up."""
        master, deadline = headers_of(MASTER_KEY), time.monotonic() + 10
        expected = (200, {"data": allowed_addresses(self.rows())})
        while (answer := self.server.ask("GET", "/get/allowed_ips", {}, master))[::2] != expected:
            if time.monotonic() > deadline:
                sys.exit(f"litespend does not see the allowed addresses that are stored: {answer}")
            time.sleep(0.1)
        # Whatever comes of it, a new team makes it forget all keys. This one is refused, because there is one already.
        taken = {"team_id": next(iter(self.rows()["LiteLLM_TeamTable"]))}
        status, _, answer = self.server.ask("POST", "/team/new", {}, master, taken)
        if status != 400:
            sys.exit(f"litespend did not refuse a team that exists: {answer}")


def locks_out(rows):
    addresses = allowed_addresses(rows)
    return addresses is not None and OWN_ADDRESS not in addresses


def compare_writes(judge, reference, server, writes, number, urls):
    """Judges as many writes as asked for. Both databases are looked into after each."""
    pair = Pair(judge, reference, server, urls)
    for _ in range(number):
        before = pair.rows()
        pair.send(*writes.next())
        if locks_out(pair.rows()):
            # Both have saved a list that locks the caller out. After one more request, the list before it comes back.
            pair.send("/key/block", {}, {"key": "sk-unknown-key-00001"}, MASTER_KEY)
            pair.take({**pair.rows(), CONFIG: before[CONFIG]}, is_known=False)
        writes.addresses = allowed_addresses(pair.rows()) or []
