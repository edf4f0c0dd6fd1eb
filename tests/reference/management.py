"""Reads of keys and teams among the random requests, and what docs/compatibility.md states of their answers."""

from deliberate import KEYS, TEAMS
from writes import absent_fields, without

PATHS = {"/key/info": ["key"], "/team/list": ["user_id"]}


def is_for_admins(found):
    """Whether litespend has refused a caller who is no admin, or may not call the path."""
    status, _, body = found
    error = body.get("error") if isinstance(body, dict) else None
    return status == 401 and isinstance(error, dict) and "Only proxy admin can be used" in str(error.get("message"))


class Stated:
    """Leaves the differences out that the document states."""

    def __init__(self, models):
        self.absent = absent_fields()
        self.columns = {each["column"] for table in (KEYS, TEAMS) for each in models[table].columns.values()}

    def unstated(self, path, query, expected, found, parts):
        if path not in PATHS or not parts:
            return parts
        if is_for_admins(found) and expected[0] in (200, 401, 403, 404):
            return []
        key = query.get("key", "")
        # LiteLLM repeats the key that it was asked for.
        short_form = (".key", key, f"sk-...{key[-4:]}")
        return [part for part in without(parts, self.absent, self.columns) if part[:3] != short_form]
