"""What LiteLLM answers to GET requests on an empty database, for scripts/follow.py.

    empty_answers.py --database URL --requests REQUESTS --answers ANSWERS

REQUESTS is a JSON list of objects with "path" and "query". ANSWERS becomes a JSON list of objects with the path pattern of
LiteLLM's route ("pattern", null if it has none), the empty answer that its OpenAPI document allows ("schema", absent if the
document does not say), what its code answers to an admin ("status", "body"), the status of its answer to a user without rights
("user") and whether it takes requests without a key ("open").
"""

import argparse
import json
import os
import re
import shutil
import socket

import httpx
import psycopg

import tables
from reference import MASTER_KEY, Reference, StandInFailed, package

MASTER = {"Authorization": f"Bearer {MASTER_KEY}"}


class NotStated(Exception):
    """The document does not say what an answer looks like."""


def resolve(document, schema):
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    return schema


OF_TYPE = {"array": [], "string": "", "integer": 0, "number": 0, "boolean": False, "null": None}


def empty_object(document, schema):
    """All stated fields. Of an object without stated fields, its name-value pairs must be stated at least."""
    if "properties" in schema:
        return {name: empty(document, field) for name, field in schema["properties"].items()}
    if isinstance(schema.get("additionalProperties"), dict) and schema["additionalProperties"]:
        return {}
    raise NotStated


def empty(document, schema):
    """The emptiest value that a schema allows."""
    schema = resolve(document, schema)
    for word in ("default", "const"):
        if word in schema:
            return schema[word]
    if "enum" in schema:
        return schema["enum"][0]
    choices = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    if choices:
        is_optional = any(choice.get("type") == "null" for choice in choices)
        return None if is_optional else empty(document, choices[0])
    if schema.get("type") == "object":
        return empty_object(document, schema)
    if schema.get("type") not in OF_TYPE:
        raise NotStated
    if schema.get("format") in ("date", "date-time"):
        return {"date": "1970-01-01", "date-time": "1970-01-01T00:00:00Z"}[schema["format"]]
    return schema.get("minimum", OF_TYPE[schema["type"]])


def stated(document, operation):
    """The empty answer by the document, as a dictionary that has it or is empty."""
    content = operation.get("responses", {}).get("200", {}).get("content", {}).get("application/json", {})
    try:
        return {"schema": empty(document, content.get("schema", {}))}
    except (NotStated, RecursionError):
        return {}


def documented_pattern(document, path):
    """LiteLLM loads some routes when they are asked for first; those are found in the document only."""
    for pattern, operations in document["paths"].items():
        if "get" in operations and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", pattern), path):
            return pattern
    return None


class Ask:
    """Asks the LiteLLM of this process, and sees which route it takes."""

    def __init__(self, reference):
        self.reference = reference
        self.scope = {}
        app = reference.proxy_server.app

        async def watched(scope, receive, send):
            # The proxy's start, which the reference leaves out, publishes this. LiteLLM allows for none.
            scope["state"] = {"database": None}
            self.scope = scope
            await app(scope, receive, send)

        transport = httpx.ASGITransport(watched, raise_app_exceptions=False, client=("127.0.0.1", 50000))
        reference.client = httpx.AsyncClient(transport=transport, base_url="http://testserver", follow_redirects=False)

    def get(self, request, headers):
        """Status and body; the status is 0 where the stand-in for the database failed."""
        self.scope = {}
        try:
            status, _, body = self.reference.ask("GET", request["path"], request["query"], headers)
        except StandInFailed as failure:
            return 0, str(failure)
        return status, body

    def pattern(self, path):
        """The pattern of the route that the last request took; null if there was none."""
        if "endpoint" not in self.scope:
            return None
        names = {value: name for name, value in self.scope.get("path_params", {}).items()}
        return "/".join(f"{{{names[part]}}}" if part in names else part for part in path.split("/"))


def is_open(ask, request):
    """Whether LiteLLM takes the request without a key."""
    from litellm.proxy._types import LiteLLMRoutes

    return request["path"] in LiteLLMRoutes.public_routes.value or ask.get(request, {})[0] == 200


def answer(ask, document, request, user):
    status, body = ask.get(request, MASTER)
    pattern = ask.pattern(request["path"]) or documented_pattern(document, request["path"])
    if pattern is None or status == 405:
        return {"pattern": None}
    operation = document["paths"].get(pattern, {}).get("get", {})
    return {
        "pattern": pattern,
        **stated(document, operation),
        "status": status,
        "body": body,
        "user": ask.get(request, user)[0],
        "open": is_open(ask, request),
    }


def new_user(reference):
    """The headers of a user without rights."""
    _, _, made = reference.ask("POST", "/user/new", {}, MASTER, {"user_id": "nobody", "user_role": "internal_user"})
    return {"Authorization": f"Bearer {made['key']}"}


def take_its_own_prices():
    """Undoes what add_prices() of an earlier comparison has done to the package."""
    place = f"{package()}/model_prices_and_context_window_backup.json"
    if os.path.exists(f"{place}.original"):
        shutil.copyfile(f"{place}.original", place)


def stay_on_this_machine():
    """Requests of LiteLLM's to the network fail at once, so that answers do not depend on it."""
    connect = socket.getaddrinfo

    def refuse(host, *arguments, **named):
        if host in (None, "localhost", "127.0.0.1", "::1"):
            return connect(host, *arguments, **named)
        raise socket.gaierror(socket.EAI_NONAME, "no network in this comparison")

    socket.getaddrinfo = refuse


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--database", required=True, help="an empty one")
    arguments.add_argument("--requests", required=True)
    arguments.add_argument("--answers", required=True)
    arguments = arguments.parse_args()
    with psycopg.connect(arguments.database, autocommit=True) as connection:
        tables.create(connection, tables.read_schema(f"{package()}/proxy/schema.prisma"))
    take_its_own_prices()
    stay_on_this_machine()
    reference = Reference(arguments.database)
    with open(arguments.requests) as file:
        requests = json.load(file)
    document, user, ask = reference.proxy_server.app.openapi(), new_user(reference), Ask(reference)
    answers = [answer(ask, document, request, user) for request in requests]
    with open(arguments.answers, "w") as file:
        json.dump(answers, file, indent=1)


if __name__ == "__main__":
    main()
