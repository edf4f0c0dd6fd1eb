"""The writes that LiteLLM and litespend answer differently on purpose.

Each rule names the words of docs/compatibility.md that state it, and covers exactly the answers and the changes of tables that
these words mean. What no rule covers is a difference. `python3 tests/reference/deliberate.py` checks that the words are there.
"""

import collections.abc
import dataclasses
import hashlib
import ipaddress
import re
import sys

DOCUMENT = "docs/compatibility.md"
OWN_ADDRESS = "127.0.0.1"

KEYS, DELETED, TEAMS = "LiteLLM_VerificationToken", "LiteLLM_DeletedVerificationToken", "LiteLLM_TeamTable"
USERS, MEMBERS, CONFIG = "LiteLLM_UserTable", "LiteLLM_TeamMembership", "LiteLLM_Config"
MASTER = "master key"
ADMINS = {MASTER, "proxy_admin"}
INTERNAL_USERS = {"internal_user", "no role"}


@dataclasses.dataclass
class Write:
    """A write, both answers, and what it has changed in the two databases, which were equal before it."""

    path: str
    body: object
    query: dict
    # Who sends it, and the role of that user.
    user: str | None
    role: str
    # LiteLLM's rows before it, by table and key.
    before: dict
    # Status, headers and body.
    expected: tuple
    found: tuple
    # The rows that each has changed, by table and key. A row that is gone is "deleted".
    theirs: dict
    ours: dict
    # Every difference between the answers and between the changed rows.
    parts: list

    @property
    def statuses(self):
        return self.expected[0], self.found[0]

    def given(self, name):
        return self.body.get(name) if isinstance(self.body, dict) else None

    def listed(self, name):
        """The strings in a list of the body; none where it is no list."""
        value = self.given(name)
        return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []

    def by_admin(self, *paths):
        return self.path in paths and self.role in ADMINS

    def only_theirs(self, *tables):
        """LiteLLM has changed rows of these tables and of no other, and litespend nothing."""
        return bool(self.theirs) and self.theirs.keys() <= set(tables) and not self.ours

    def nothing_changed(self):
        return not self.theirs and not self.ours


def hash_of(key):
    return hashlib.sha256(key.encode()).hexdigest() if key.startswith("sk-") else key


def caller_of(rows, key, master_key):
    """The user whose key it is, and the user's role, or why there is none."""
    if key is None or key == master_key:
        return ("default_user_id", MASTER) if key else (None, "no key")
    row = rows[KEYS].get(hash_of(key))
    if row is None or not row["user_id"]:
        return None, "no user" if row else "unknown key"
    user = rows[USERS].get(row["user_id"])
    return row["user_id"], "no such user" if user is None else user["user_role"] or "no role"


def error_of(answer):
    """Type, param and message of an error."""
    body = answer[2]
    error = body.get("error") if isinstance(body, dict) else None
    return (error.get("type"), error.get("param"), error.get("message") or "") if isinstance(error, dict) else (None, None, "")


def detail_of(answer):
    body = answer[2]
    detail = body.get("detail") if isinstance(body, dict) else None
    return detail.get("error", "") if isinstance(detail, dict) else str(detail)


def wrong_fields(answer):
    """The places that a 422 names, without the types that a field may have."""
    body = answer[2]
    detail = body.get("detail") if isinstance(body, dict) else None
    if not isinstance(detail, list):
        return set()
    return {".".join(str(part) for part in each["loc"] if "[" not in str(part)) for each in detail}


def allowed_addresses(rows):
    """The stored list; None where there is none."""
    row = rows[CONFIG].get("general_settings")
    return (row["param_value"] or {}).get("allowed_ips") if row else None


def added_or_deleted(write):
    """The list as LiteLLM leaves it."""
    row = write.theirs.get(CONFIG, {}).get("general_settings")
    return row["param_value"]["allowed_ips"] if isinstance(row, dict) else None


def has_wrong_duration(write):
    duration = write.given("duration")
    return isinstance(duration, str) and not re.fullmatch(r"\d+(s|m|h|d|w|mo)", duration)


def only_admins(write, paths, refusals):
    kind, _, message = error_of(write.found)
    if write.path not in paths or write.role not in INTERNAL_USERS or (write.found[0], kind) != (401, "auth_error"):
        return False
    if "Only proxy admin can be used" not in message:
        return False
    if write.expected[0] == 200:
        return write.only_theirs(KEYS, DELETED)
    return write.expected[0] in refusals and write.nothing_changed()


def only_admins_make_keys(write):
    refusals = {400, 403, 404, 422} | ({500} if has_wrong_duration(write) else set())
    return only_admins(write, ("/key/generate", "/key/delete"), refusals)


def only_admins_block_keys(write):
    return only_admins(write, ("/key/block", "/key/unblock"), {403, 404, 422})


def key_for_no_team(write):
    return (
        write.by_admin("/key/generate")
        and write.statuses == (200, 404)
        and write.given("team_id") not in write.before[TEAMS]
        and detail_of(write.found) == "The team does not exist."
        and write.only_theirs(KEYS)
    )


def user_for_no_team(write):
    return (
        write.by_admin("/user/new")
        and write.statuses == (200, 404)
        and not set(write.listed("teams")) <= write.before[TEAMS].keys()
        and detail_of(write.found) == "The team does not exist."
        and write.only_theirs(USERS, KEYS, TEAMS, MEMBERS)
    )


def all_or_none(write):
    keys, aliases = write.listed("keys"), write.listed("key_aliases")
    tokens = {row["key_alias"]: token for token, row in write.before[KEYS].items()}
    named = [hash_of(key) for key in keys] + [tokens.get(alias) for alias in aliases]
    known = [token in write.before[KEYS] for token in named]
    # LiteLLM looks at one of the lists.
    gone = {token for token in named[: len(keys) or None] if token in write.before[KEYS]}
    return (
        write.by_admin("/key/delete")
        and write.statuses == (200, 404)
        and any(known)
        and not all(known)
        and write.only_theirs(KEYS, DELETED)
        and write.theirs[KEYS] == dict.fromkeys(gone, "deleted")
    )


def keys_and_aliases(write):
    keys = {hash_of(key) for key in write.listed("keys")}
    named = {token for token, row in write.before[KEYS].items() if row["key_alias"] in write.listed("key_aliases")}
    gone = [changes.get(KEYS, {}).keys() for changes in (write.theirs, write.ours)]
    return (
        write.by_admin("/key/delete")
        and write.statuses == (200, 200)
        and gone == [keys, keys | named]
        and all(changes.keys() == {KEYS, DELETED} for changes in (write.theirs, write.ours))
        and all(row == "deleted" for changes in (write.theirs, write.ours) for row in changes[KEYS].values())
        and all(place.startswith((".deleted_keys", f"tables.{KEYS}", f"tables.{DELETED}")) for place, *_ in write.parts)
        # The rows that both have deleted must still be the same.
        and not any(place.startswith(f"tables.{DELETED}.{key}") for place, *_ in write.parts for key in keys)
    )


def key_of_a_new_user(write):
    """The hash is in the answer, the row names its maker, and the key may be given. Everything else is the same."""
    if not (write.by_admin("/user/new") and write.statuses == (200, 200) and write.given("auto_create_key") is True):
        return False
    answers, given = (write.expected[2], write.found[2]), write.given("key")
    if answers[0]["token"] or answers[0]["token_id"] or (given and answers[1]["key"] != given):
        return False
    hashes = [hash_of(answer["key"]) for answer in answers]
    rows = [changes.get(KEYS, {}) for changes in (write.theirs, write.ours)]
    if [list(each) for each in rows] != [[each] for each in hashes]:
        return False
    theirs, ours = rows[0][hashes[0]], rows[1][hashes[1]]
    other = dict.fromkeys(["token", "key_name", "created_at", "updated_at", "created_by", "updated_by"])
    places = {".token", ".token_id"} | ({".key", ".key_name"} if given else set())
    return (
        answers[1]["token"] == answers[1]["token_id"] == hashes[1]
        and theirs["created_by"] is theirs["updated_by"] is None
        and ours["created_by"] == ours["updated_by"] == write.user
        and {**theirs, **other} == {**ours, **other}
        and all(place in places or place.startswith(f"tables.{KEYS}.") for place, *_ in write.parts)
    )


def is_taken(write):
    """LiteLLM has refused an id, an alias or an address that another row has."""
    user_ids = write.before[USERS].keys()
    addresses = {(row["user_email"] or "").lower() for row in write.before[USERS].values()}
    taken = {
        "/key/generate": (400, error_of(write.expected)[1] == "key_alias"),
        "/team/new": (400, str(write.given("team_id")) in write.before[TEAMS]),
        "/user/new": (409, str(write.given("user_id")) in user_ids or str(write.given("user_email")).lower() in addresses),
    }
    return taken.get(write.path) == (write.expected[0], True) and write.nothing_changed()


def member_without_id(write):
    members = write.given("members_with_roles")
    nameless = {
        f"body.members_with_roles.{index}"
        for index, member in enumerate(members if isinstance(members, list) else [])
        if isinstance(member, dict) and member.keys() == {"user_email", "role"}
    }
    return (
        write.by_admin("/team/new")
        and bool(nameless)
        and write.found[0] == 422
        and wrong_fields(write.found) == nameless
        # As any wrong field, it is found before a taken id.
        and (write.only_theirs(TEAMS, USERS, MEMBERS) if write.expected[0] == 200 else is_taken(write))
    )


def wrong_duration(write):
    """It is found before a taken alias, and together with other wrong fields."""
    others = wrong_fields(write.found) - {"body.duration"}
    found_too_late = is_taken(write) and not others
    return (
        write.by_admin("/key/generate")
        and has_wrong_duration(write)
        and write.found[0] == 422
        and wrong_fields(write.found) == others | {"body.duration"}
        and (found_too_late or (write.expected[0] == 422 and wrong_fields(write.expected) == others != set()))
        and write.nothing_changed()
    )


def type_of_teams(write):
    if not (write.by_admin("/user/new") and write.statuses == (422, 422) and write.nothing_changed()):
        return False
    places = [[each["loc"] for each in answer[2]["detail"]] for answer in (write.expected, write.found)]
    of_teams = [[loc for loc in each if loc[1:2] == ["teams"]] for each in places]
    of_others = [sorted(str(loc) for loc in each if loc[1:2] != ["teams"]) for each in places]
    return (
        wrong_fields(write.expected) == wrong_fields(write.found)
        and len(of_teams[0]) == 2 * len(of_teams[1]) > 0
        and of_others[0] == of_others[1]
    )


def true_as_a_number(write):
    return (
        write.by_admin("/key/generate", "/team/new", "/user/new")
        and write.found[0] == 422
        and write.given("max_budget") is True
        and wrong_fields(write.found) == {"body.max_budget"}
        and (write.only_theirs(KEYS, TEAMS, USERS, MEMBERS) if write.expected[0] == 200 else is_taken(write))
    )


def reset_of_zeros(write):
    """LiteLLM also writes the rows that had nothing to reset: their updated_at is new, and nothing else."""
    if write.path != "/global/spend/reset" or write.role != MASTER or write.statuses != (200, 200):
        return False
    places = set()
    for table, rows in write.theirs.items():
        for name, row in rows.items():
            before = write.before[table][name]
            if before.get("spend") == 0 and name not in write.ours.get(table, {}):
                if {**row, "updated_at": None} != {**before, "updated_at": None}:
                    return False
                places.add(f"tables.{table}.{name.replace('.', '·')}")
    whole = {f"tables.{table}" for table in write.theirs.keys() - write.ours.keys()}
    return write.theirs.keys() <= {KEYS, TEAMS} and {place for place, *_ in write.parts} <= places | whole


def lock_out(write):
    list_after = added_or_deleted(write)
    return (
        write.by_admin("/add/allowed_ip", "/delete/allowed_ip")
        and write.statuses == (200, 409)
        and not write.query
        and bool(list_after)
        and OWN_ADDRESS not in list_after
        and "does not allow your own address" in detail_of(write.found)
        and write.only_theirs(CONFIG)
    )


def no_address(write):
    try:
        ipaddress.ip_network(write.given("ip"), strict=False)
    except ValueError:
        return (
            write.by_admin("/add/allowed_ip")
            and write.statuses == (200, 422)
            and wrong_fields(write.found) == {"body.ip"}
            and write.only_theirs(CONFIG)
        )
    return False


def mapped_address(write):
    ip = str(write.given("ip")).removeprefix("::ffff:")
    return (
        write.by_admin("/add/allowed_ip")
        and write.statuses == (200, 400)
        and write.given("ip") == f"::ffff:{ip}"
        and ip in (allowed_addresses(write.before) or [])
        and detail_of(write.found) == "IP address already exists"
        and write.only_theirs(CONFIG)
    )


def emptied_list(write):
    return (
        allowed_addresses(write.before) == []
        and write.path == "/key/block"
        and write.role == MASTER
        and write.statuses == (403, 404)
        and error_of(write.expected)[2] == f"Access forbidden: IP address {OWN_ADDRESS} not allowed."
        and write.nothing_changed()
    )


@dataclasses.dataclass(frozen=True)
class Rule:
    """A deliberate difference: the words that state it, and whether a write is a case of it."""

    name: str
    words: str | list[str]
    covers: collections.abc.Callable[[Write], bool]
    # Afterwards, both databases have litespend's rows, because LiteLLM could not go on with its own.
    undone: bool = False


RULES = [
    Rule(
        "only admins make and delete keys",
        "| internal users may call `/key/generate` and `/key/delete`, within limits | 401: admins only |",
        only_admins_make_keys,
    ),
    Rule(
        "only admins block keys",
        "| internal users may call `/key/block` and `/key/unblock` for keys of teams whose admins they are | 401: admins only |",
        only_admins_block_keys,
    ),
    Rule(
        "no key for a team that does not exist",
        "| an admin may create a key for a team that does not exist; `/user/new` leaves such a team out and answers 200 | 404, "
        "nothing is created |",
        key_for_no_team,
    ),
    Rule(
        "no user for a team that does not exist",
        "`/user/new` leaves such a team out and answers 200 | 404, nothing is created |",
        user_for_no_team,
    ),
    Rule(
        "all of the keys are deleted, or none",
        "| `/key/delete` deletes those of the keys that exist, and names all of them as deleted; with `keys`, it ignores "
        "`key_aliases` | all or none: 404 if one does not exist; deletes what both lists name |",
        all_or_none,
    ),
    Rule(
        "keys and aliases are both deleted",
        "with `keys`, it ignores `key_aliases` | all or none: 404 if one does not exist; deletes what both lists name |",
        keys_and_aliases,
    ),
    Rule(
        "the key of a new user",
        [
            "| `/user/new` answers with `token` and `token_id` null, even if it creates a key | the hash of the key |",
            "| `/user/new` ignores `key` | it is the new user's key |",
            "| the key that `/user/new` creates has `created_by` and `updated_by` null | they name the caller |",
        ],
        key_of_a_new_user,
    ),
    Rule(
        "a member has a user_id",
        "| a member of a new team may be named by an e-mail address alone | 422: a member has a `user_id` |",
        member_without_id,
    ),
    Rule(
        "a wrong duration is found first",
        "| a wrong `duration` is a 500, found after a taken alias | 422, found first, as any wrong field |",
        wrong_duration,
    ),
    Rule(
        "a wrong type of teams is named once",
        "| a wrong type of `teams` is named once for each of the two types that it may have | named once |",
        type_of_teams,
    ),
    Rule("true is no number", "| `max_budget: true` is a budget of 1 | 422 |", true_as_a_number),
    Rule(
        "a reset leaves the rows alone whose spend is 0",
        "| reset writes every row | reset writes only rows whose spend is not 0 |",
        reset_of_zeros,
    ),
    Rule(
        "no lock-out",
        "| a change of the list may lock out the caller who makes it | 409, unless `?force=true` |",
        lock_out,
        True,
    ),
    Rule(
        "only addresses are allowed",
        "| stores any string as an allowed address, which then locks everybody out | accepts addresses and CIDR ranges, and "
        "answers 422 to anything else;",
        no_address,
        True,
    ),
    Rule(
        "an IPv4-mapped address is the IPv4 address",
        "an IPv4-mapped IPv6 address equals the IPv4 address |",
        mapped_address,
        True,
    ),
    Rule(
        "an emptied list restricts nothing",
        "| an address list emptied by deletes denies everybody | an empty list restricts nothing |",
        emptied_list,
    ),
]


def rule_for(write):
    return next((rule for rule in RULES if rule.covers(write)), None)


def check_words():
    """Ends the program if the document does not state a rule, or no longer in these words."""
    with open(DOCUMENT) as file:
        text = " ".join(file.read().split())
    stated = [(rule.name, words) for rule in RULES for words in ([rule.words] if isinstance(rule.words, str) else rule.words)]
    missing = [f"{DOCUMENT} does not state “{name}” in these words: {words}" for name, words in stated if words not in text]
    if missing:
        sys.exit("\n".join(missing))


if __name__ == "__main__":
    check_words()
