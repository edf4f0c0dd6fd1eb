"""LiteLLM's own proxy in this process, on a database: its code answers, and psycopg stands where Prisma's engine does.

Only what reading needs is there; anything else fails loudly.
"""

import asyncio
import datetime
import decimal
import importlib.util
import json
import logging
import os
import re
import sys
import types
import typing

import psycopg
from psycopg.rows import dict_row
from pydantic import ConfigDict, create_model

import tables

MASTER_KEY = "sk-master-1234"


def package():
    return os.path.dirname(importlib.util.find_spec("litellm").origin)


def add_prices(path):
    """Models that are priced here and not there, such as those that LiteLLM has dropped: the recordings had them, too."""
    place = os.path.join(package(), "model_prices_and_context_window_backup.json")
    with open(place) as file:
        theirs = json.load(file)
    with open(path) as file:
        ours = json.load(file)
    for name, entry in ours.items():
        theirs.setdefault(name, {field: value for field, value in entry.items() if field != "retired"})
    with open(place, "w") as file:
        json.dump(theirs, file)
    return [name for name in theirs if not name.startswith(("github_copilot", "chatgpt/", "sample_spec"))]


def raw(value):
    """A column as Prisma gives it for a query that is written by hand."""
    if isinstance(value, datetime.datetime):
        return value.replace(tzinfo=datetime.timezone.utc).isoformat(timespec="milliseconds" if value.microsecond else "auto")
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return float(value)
    return value


def argument(value):
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, datetime.datetime) and value.tzinfo is None:
        return value.replace(tzinfo=datetime.timezone.utc)
    return value


class Table:
    """Prisma's actions on a model, those that read."""

    COMPARISONS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<=", "equals": "="}

    def __init__(self, database, model):
        self.database = database
        self.model = model
        fields = {name: (typing.Any, None) for name in [*model.columns, *model.relations]}
        self.row_type = create_model(model.name, __config__=ConfigDict(protected_namespaces=()), **fields)

    def column(self, name):
        return f'"{self.model.columns[name]["column"]}"'

    def where(self, conditions, arguments):
        found = []
        for name, value in (conditions or {}).items():
            several = list(value) if isinstance(value, (list, tuple)) else [value]
            if name in ("AND", "OR"):
                word = f" {name} "
                parts = [self.where(part, arguments) for part in several]
                found.append(f"({word.join(parts)})" if parts else ("true" if name == "AND" else "false"))
            elif name == "NOT":
                found += [f"NOT ({self.where(part, arguments)})" for part in several]
            elif name in self.model.columns:
                found.append(self.condition(name, value, arguments))
            elif isinstance(value, dict) and name not in self.model.relations:
                # A key of several columns, by its name.
                found.append(self.where(value, arguments))
            else:
                raise NotImplementedError(f"a condition on {name} of {self.model.name}")
        return " AND ".join(found) or "true"

    def condition(self, name, value, arguments):
        column = self.column(name)

        def bind(value):
            if self.model.columns[name]["type"] == "DateTime":
                if isinstance(value, str):
                    value = datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
                if value.tzinfo:
                    value = value.astimezone(datetime.timezone.utc).replace(tzinfo=None)
            arguments.append(value)
            return "%s"

        if value is None:
            return f"{column} IS NULL"
        if not isinstance(value, dict):
            return f"{column} = {bind(value)}"
        if "path" in value:
            arguments += [list(value["path"]), f"%{value['string_contains']}%"]
            return f"({column} #>> %s) LIKE %s"
        found = []
        for operator, operand in value.items():
            if operator == "mode":
                continue
            if operator in self.COMPARISONS and operand is not None:
                found.append(f"{column} {self.COMPARISONS[operator]} {bind(operand)}")
            elif operator == "equals":
                found.append(f"{column} IS NULL")
            elif operator == "in":
                found.append(f"{column} = ANY ({bind(list(operand))})")
            elif operator == "not_in":
                found.append(f"{column} <> ALL ({bind(list(operand))})")
            elif operator in ("contains", "startswith", "endswith"):
                pattern = operand + "%" if operator == "startswith" else "%" + operand
                arguments.append(pattern + "%" if operator == "contains" else pattern)
                found.append(f"{column} {'ILIKE' if value.get('mode') == 'insensitive' else 'LIKE'} %s")
            elif operator == "has":
                found.append(f"{bind(operand)} = ANY ({column})")
            elif operator == "not" and operand is None:
                found.append(f"{column} IS NOT NULL")
            elif operator == "not" and isinstance(operand, dict):
                found.append(f"NOT ({self.condition(name, operand, arguments)})")
            elif operator == "not":
                found.append(f"{column} <> {bind(operand)}")
            else:
                raise NotImplementedError(f"{operator} of {name}")
        return " AND ".join(found) or "true"

    def order(self, order):
        parts = []
        for part in order if isinstance(order, (list, tuple)) else [order] if order else []:
            for name, direction in part.items():
                if isinstance(direction, dict):
                    nulls = f" NULLS {direction['nulls']}" if "nulls" in direction else ""
                    direction = direction["sort"] + nulls
                parts.append(f"{self.column(name)} {direction}")
        return " ORDER BY " + ", ".join(parts) if parts else ""

    def row(self, found):
        fields = {name: None for name in self.model.relations}
        for name, column in self.model.columns.items():
            value = found[column["column"]]
            if isinstance(value, datetime.datetime):
                value = value.replace(tzinfo=datetime.timezone.utc)
            fields[name] = [] if column["list"] and value is None else value
        return self.row_type(**fields)

    def include(self, rows, relations):
        for name, wanted in (relations or {}).items():
            if not wanted:
                continue
            kind, is_list, ends = self.model.relations[name]
            other = Table(self.database, self.database.models[kind])
            if ends:
                mine, theirs = ends
            else:
                theirs, mine = next(
                    relation[2] for relation in other.model.relations.values() if relation[0] == self.model.name and relation[2]
                )
            for row in rows:
                values = [getattr(row, field) for field in mine]
                found = [] if None in values else other.find(dict(zip(theirs, values)))
                other.include(found, wanted.get("include") if isinstance(wanted, dict) else None)
                setattr(row, name, found if is_list else next(iter(found), None))
        return rows

    def find(self, where=None, order=None, take=None, skip=None):
        arguments = []
        statement = f'SELECT * FROM "{self.model.name}" WHERE {self.where(where, arguments)}{self.order(order)}'
        if take is not None:
            statement += f" LIMIT {int(take)}"
        if skip:
            statement += f" OFFSET {int(skip)}"
        return [self.row(found) for found in self.database.connection.execute(statement, arguments)]

    async def find_many(self, take=None, skip=None, where=None, include=None, order=None):
        return self.include(self.find(where, order, take, skip), include)

    async def find_first(self, where=None, include=None, order=None, skip=None):
        return next(iter(self.include(self.find(where, order, 1, skip), include)), None)

    async def find_unique(self, where, include=None):
        return await self.find_first(where, include)

    async def count(self, where=None, take=None):
        arguments = []
        inner = f'SELECT 1 FROM "{self.model.name}" WHERE {self.where(where, arguments)}'
        if take is not None:
            inner += f" LIMIT {int(take)}"
        found = self.database.connection.execute(f"SELECT count(*) AS number FROM ({inner}) AS rows", arguments)
        return found.fetchone()["number"]


class Database:
    """What LiteLLM takes for its Prisma client."""

    engine_generation = 0

    def __init__(self, url, models):
        self.models = models
        self.by_name = {name.lower(): model for name, model in models.items()}
        self.connection = psycopg.connect(url, autocommit=True, row_factory=dict_row, options="-c timezone=UTC")

    def __getattr__(self, name):
        if name in self.__dict__.get("by_name", {}):
            return Table(self, self.by_name[name])
        raise AttributeError(name)

    def execute(self, statement, arguments):
        if not arguments:
            return self.connection.execute(statement)
        statement = re.sub(r"\$(\d+)", r"%(a\1)s", statement.replace("%", "%%"))
        return self.connection.execute(statement, {f"a{index}": argument(value) for index, value in enumerate(arguments, 1)})

    async def query_raw(self, statement, *arguments):
        return [{name: raw(value) for name, value in row.items()} for row in self.execute(statement, arguments)]

    async def query_first(self, statement, *arguments):
        return next(iter(await self.query_raw(statement, *arguments)), None)

    async def execute_raw(self, statement, *arguments):
        return self.execute(statement, arguments).rowcount

    def is_connected(self):
        return True


def stand_in_for_the_generated_client():
    """Prisma's generated modules, whose names LiteLLM imports for its annotations."""
    import prisma

    class Anything:
        def __class_getitem__(cls, _):
            return cls

    def find(name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything

    for name in ["models", "types", "enums", "partials", "bases", "actions", "client"]:
        module = types.ModuleType(f"prisma.{name}")
        module.__getattr__ = find
        sys.modules[module.__name__] = module
        setattr(prisma, name, module)
    prisma.Json = Anything
    prisma.Prisma = Anything


class Reference:
    """Answers requests as LiteLLM does."""

    def __init__(self, url):
        os.environ.update(LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_MASTER_KEY=MASTER_KEY, DATABASE_URL=url, TZ="UTC")
        logging.disable(logging.CRITICAL)
        stand_in_for_the_generated_client()
        from fastapi.testclient import TestClient
        from litellm.proxy import proxy_server
        from litellm.proxy.db.create_views import create_missing_views
        from litellm.proxy.utils import PrismaClient

        self.proxy_server = proxy_server
        database = Database(url, tables.read_schema(os.path.join(package(), "proxy", "schema.prisma")))
        asyncio.run(create_missing_views(db=database))
        client = object.__new__(PrismaClient)
        client.__dict__.update(db=database, proxy_logging_obj=proxy_server.proxy_logging_obj, token_auth=None, _closing=False)
        proxy_server.prisma_client = client
        proxy_server.master_key = MASTER_KEY
        proxy_server.litellm_master_key_hash = proxy_server.hash_token(MASTER_KEY)
        # What it sells a licence for is served here without one.
        proxy_server.premium_user = True
        proxy_server.general_settings = {"master_key": MASTER_KEY}
        self.client = TestClient(proxy_server.app, raise_server_exceptions=False, follow_redirects=False)

    def parameters(self, path):
        """The names of a path's parameters; nothing where it is not in the document."""
        operation = self.proxy_server.app.openapi()["paths"].get(path, {}).get("get")
        return operation and [each["name"] for each in operation.get("parameters", []) if each["in"] == "query"]

    def ask(self, method, path, query, headers, body=None):
        """Status, headers and body; status 0 where it does not answer at all."""
        self.proxy_server.user_api_key_cache.in_memory_cache.flush_cache()
        try:
            answer = self.client.request(method, path, params=query, headers=headers, json=body)
        except Exception as error:
            return 0, {}, repr(error)
        try:
            return answer.status_code, answer.headers, answer.json()
        except ValueError:
            return answer.status_code, answer.headers, answer.text
