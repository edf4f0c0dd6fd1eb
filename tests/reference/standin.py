"""Stands where Prisma's client does: LiteLLM's calls of its database, carried out by psycopg.

What PostgreSQL refuses because of the data becomes the error that Prisma raises. Everything else that goes wrong in
here, such as a call that is not provided for, is a failure of the stand-in. It is kept in `failures`, so that nobody
takes the answer that comes of it for LiteLLM's.
"""

import contextlib
import datetime
import decimal
import functools
import json
import re
import sys
import traceback
import types
import typing
import uuid

import psycopg
import psycopg.errors
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from pydantic import ConfigDict, create_model

# A statement that waits for a lock of this process's own other connection would wait forever.
OPTIONS = "-c timezone=UTC -c lock_timeout=5s"


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
    """A value for a statement that is written by hand."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, datetime.datetime) and value.tzinfo is None:
        return value.replace(tzinfo=datetime.timezone.utc)
    if isinstance(value, dict) or is_json(value):
        return Jsonb(value.data if is_json(value) else value)
    return value


class Json:
    """A value of a JSON column, as LiteLLM hands it to Prisma."""

    def __init__(self, data):
        self.data = data

    @classmethod
    def keys(cls, **data):
        return cls(data)


def is_json(value):
    return isinstance(value, Json)


def prisma_error(error, is_raw):
    """The error that Prisma raises for one of PostgreSQL; None where the statement itself is at fault."""
    from prisma import errors

    state = error.sqlstate or ""
    data = {"user_facing_error": {"message": str(error), "meta": {"message": str(error), "code": state}}}
    if state == "23505":
        data["user_facing_error"]["error_code"] = "P2002"
        kind = errors.UniqueViolationError
    elif state == "23503":
        place = error.diag.constraint_name
        data["user_facing_error"]["error_code"] = "P2003"
        data["user_facing_error"]["message"] = f"Foreign key constraint failed on the field: `{place} (index)`"
        kind = errors.ForeignKeyViolationError
    elif state == "23502":
        kind = errors.MissingRequiredValueError
    elif state[:2] in ("21", "22", "23") or state == "57014" or isinstance(error, psycopg.DataError):
        kind = errors.DataError
    else:
        return None
    return (errors.RawQueryError if is_raw else kind)(data)


def guarded(is_raw=False):
    """Turns what PostgreSQL says of the data into Prisma's errors, and keeps every other failure."""

    def decorate(method):
        @functools.wraps(method)
        async def call(self, *arguments, **named):
            from prisma.errors import PrismaError

            try:
                return await method(self, *arguments, **named)
            except PrismaError:
                raise
            except Exception as error:
                translated = prisma_error(error, is_raw) if isinstance(error, psycopg.Error) else None
                if translated is None:
                    self.fail(f"{method.__qualname__}{arguments!r:.300}{named!r:.300}")
                    raise
                raise translated from error

        return call

    return decorate


class Table:
    """Prisma's actions on a model."""

    COMPARISONS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<=", "equals": "="}
    ARITHMETIC = {"increment": "+", "decrement": "-", "multiply": "*", "divide": "/"}

    def __init__(self, database, model):
        self.database = database
        self.model = model
        self.row_type = database.row_type(model)

    def __getattr__(self, name):
        if not name.startswith("_"):
            self.fail(f"{self.__dict__['model'].name}.{name} is not provided")
        raise AttributeError(name)

    def fail(self, what):
        self.__dict__["database"].fail(what)

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

    def bind(self, name, value, arguments):
        if self.model.columns[name]["type"] == "DateTime":
            value = without_zone(value)
        arguments.append(value)
        return "%s"

    def condition(self, name, value, arguments):
        column = self.column(name)
        if value is None:
            return f"{column} IS NULL"
        if not isinstance(value, dict):
            return f"{column} = {self.bind(name, value, arguments)}"
        if "path" in value:
            return self.json_condition(column, value, arguments)
        parts = [
            self.operation(name, operator, operand, value, arguments)
            for operator, operand in value.items()
            if operator != "mode"
        ]
        return " AND ".join(parts) or "true"

    def json_condition(self, column, value, arguments):
        [operator] = value.keys() - {"path", "mode"}
        if operator == "string_contains":
            arguments += [list(value["path"]), f"%{value[operator]}%"]
            return f"({column} #>> %s) LIKE %s"
        if operator == "equals":
            wanted = value[operator]
            arguments += [list(value["path"]), Jsonb(wanted.data if is_json(wanted) else wanted)]
            return f"({column} #> %s) = %s"
        raise NotImplementedError(f"{operator} of a path in {column}")

    def operation(self, name, operator, operand, whole, arguments):
        column = self.column(name)
        if operator in self.COMPARISONS and operand is not None:
            return f"{column} {self.COMPARISONS[operator]} {self.bind(name, operand, arguments)}"
        if operator == "equals":
            return f"{column} IS NULL"
        if operator == "in":
            return f"{column} = ANY ({self.bind(name, list(operand), arguments)})"
        if operator in ("not_in", "notIn"):
            return f"{column} <> ALL ({self.bind(name, list(operand), arguments)})"
        if operator in ("contains", "startswith", "endswith"):
            pattern = operand + "%" if operator == "startswith" else "%" + operand
            arguments.append(pattern + "%" if operator == "contains" else pattern)
            return f"{column} {'ILIKE' if whole.get('mode') == 'insensitive' else 'LIKE'} %s"
        if operator == "has":
            return f"{self.bind(name, operand, arguments)} = ANY ({column})"
        if operator == "has_some":
            return f"{column} && {self.bind(name, list(operand), arguments)}"
        if operator in ("is_empty", "isEmpty"):
            return f"cardinality({column}) {'=' if operand else '>'} 0"
        if operator == "not" and operand is None:
            return f"{column} IS NOT NULL"
        if operator == "not" and isinstance(operand, dict):
            return f"NOT ({self.condition(name, operand, arguments)})"
        if operator == "not":
            return f"{column} <> {self.bind(name, operand, arguments)}"
        raise NotImplementedError(f"{operator} of {name}")

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
            kind, is_list, _ = self.model.relations[name]
            other = Table(self.database, self.database.models[kind])
            mine, theirs = self.ends(name)
            for row in rows:
                values = [getattr(row, field) for field in mine]
                found = [] if None in values else other.find(dict(zip(theirs, values)))
                other.include(found, wanted.get("include") if isinstance(wanted, dict) else None)
                setattr(row, name, found if is_list else next(iter(found), None))
        return rows

    def ends(self, name):
        """The columns of this and of the other table by which a relation joins them."""
        kind, _, ends = self.model.relations[name]
        if ends:
            return ends
        others = self.database.models[kind].relations.values()
        theirs, mine = next(relation[2] for relation in others if relation[0] == self.model.name and relation[2])
        return mine, theirs

    def find(self, where=None, order=None, take=None, skip=None):
        arguments = []
        statement = f'SELECT * FROM "{self.model.name}" WHERE {self.where(where, arguments)}{self.order(order)}'
        if take is not None:
            statement += f" LIMIT {int(take)}"
        if skip:
            statement += f" OFFSET {int(skip)}"
        return self.rows(statement, arguments)

    def rows(self, statement, arguments):
        return [self.row(found) for found in self.database.connection.execute(statement, arguments)]

    @guarded()
    async def find_many(self, take=None, skip=None, where=None, include=None, order=None):
        return self.include(self.find(where, order, take, skip), include)

    @guarded()
    async def find_first(self, where=None, include=None, order=None, skip=None):
        return next(iter(self.include(self.find(where, order, 1, skip), include)), None)

    @guarded()
    async def find_unique(self, where, include=None):
        return next(iter(self.include(self.find(where, None, 1), include)), None)

    @guarded()
    async def count(self, where=None, take=None, skip=None):
        arguments = []
        inner = f'SELECT 1 FROM "{self.model.name}" WHERE {self.where(where, arguments)}'
        if take is not None:
            inner += f" LIMIT {int(take)}"
        if skip:
            inner += f" OFFSET {int(skip)}"
        found = self.database.connection.execute(f"SELECT count(*) AS number FROM ({inner}) AS rows", arguments)
        return found.fetchone()["number"]

    # What writes.

    def stored(self, name, value):
        """A value as its column takes it."""
        column = self.model.columns[name]
        if value is None or column["list"]:
            return [self.stored_one(column, part) for part in value] if value is not None else None
        return self.stored_one(column, value)

    def stored_one(self, column, value):
        if column["type"] == "Json":
            if is_json(value):
                return Jsonb(value.data)
            if not isinstance(value, str):
                raise NotImplementedError(f"a {type(value).__name__} for the JSON column {column['column']}")
            try:
                return Jsonb(json.loads(value))
            except ValueError as error:
                raise data_error(f"{column['column']} is no JSON") from error
        if column["type"] == "DateTime":
            return without_zone(value)
        if not isinstance(value, PYTHON_TYPES[column["type"]]) or isinstance(value, bool) != (column["type"] == "Boolean"):
            raise data_error(f"{column['column']} takes no {type(value).__name__}")
        if column["type"] == "Int" and not -(2**31) <= value < 2**31:
            raise data_error(f"{column['column']} takes no {value}")
        return value

    def flat(self, data):
        """The columns' values, where some come as a row to connect with."""
        found = {}
        for name, value in data.items():
            if name in self.model.columns:
                found[name] = value
            elif name in self.model.relations and isinstance(value, dict) and list(value) == ["connect"]:
                mine, theirs = self.ends(name)
                found.update({own: value["connect"][other] for own, other in zip(mine, theirs)})
            elif name in self.model.relations:
                raise NotImplementedError(f"{list(value)} of the relation {name} of {self.model.name}")
            else:
                raise data_error(f"Could not find field {name} of {self.model.name}")
        return found

    def insert(self, data, ending=""):
        values = {
            name: value["set"] if isinstance(value, dict) and "set" in value else value
            for name, value in self.flat(data).items()
        }
        for name, column in self.model.columns.items():
            default = column["default"] or ""
            if name not in values and default.startswith(("uuid", "cuid")):
                values[name] = str(uuid.uuid4())
            if name not in values and column["updated"]:
                values[name] = datetime.datetime.now(datetime.timezone.utc)
        names = ", ".join(map(self.column, values))
        places = ", ".join(["%s"] * len(values))
        content = f"({names}) VALUES ({places})" if values else "DEFAULT VALUES"
        arguments = [self.stored(name, value) for name, value in values.items()]
        return self.rows(f'INSERT INTO "{self.model.name}" {content}{ending} RETURNING *', arguments)

    def assignment(self, name, value, arguments):
        column = self.column(name)
        if isinstance(value, dict):
            [(action, operand)] = value.items()
            if action in self.ARITHMETIC:
                arguments.append(operand)
                return f"{column} = {column} {self.ARITHMETIC[action]} %s"
            if action == "push":
                arguments.append(self.stored(name, list(operand) if isinstance(operand, (list, tuple)) else [operand]))
                return f"{column} = {column} || %s"
            if action != "set":
                raise NotImplementedError(f"{action} of {name}")
            value = operand
        arguments.append(self.stored(name, value))
        return f"{column} = %s"

    def change(self, where, data):
        values = self.flat(data)
        for name, column in self.model.columns.items():
            if column["updated"] and name not in values:
                values[name] = datetime.datetime.now(datetime.timezone.utc)
        if not values:
            return self.find(where)
        arguments = []
        assignments = ", ".join(self.assignment(name, value, arguments) for name, value in values.items())
        condition = self.where(where, arguments)
        return self.rows(f'UPDATE "{self.model.name}" SET {assignments} WHERE {condition} RETURNING *', arguments)

    def remove(self, where):
        arguments = []
        condition = self.where(where, arguments)
        return self.rows(f'DELETE FROM "{self.model.name}" WHERE {condition} RETURNING *', arguments)

    @guarded()
    async def create(self, data, include=None):
        return self.include(self.insert(data), include)[0]

    @guarded()
    async def create_many(self, data, skip_duplicates=False):
        ending = " ON CONFLICT DO NOTHING" if skip_duplicates else ""
        return sum(len(self.insert(row, ending)) for row in data)

    @guarded()
    async def update(self, data, where, include=None):
        return next(iter(self.include(self.change(where, data), include)), None)

    @guarded()
    async def update_many(self, data, where):
        return len(self.change(where, data))

    @guarded()
    async def upsert(self, where, data, include=None):
        if self.find(where, None, 1):
            rows = self.change(where, data["update"]) if data["update"] else self.find(where)
        else:
            rows = self.insert(data["create"])
        return self.include(rows, include)[0]

    @guarded()
    async def delete(self, where, include=None):
        found = self.include(self.find(where, None, 1), include)
        self.remove(where)
        return next(iter(found), None)

    @guarded()
    async def delete_many(self, where=None):
        return len(self.remove(where))


PYTHON_TYPES = {
    "String": str,
    "Int": int,
    "BigInt": int,
    "Float": (int, float),
    "Boolean": bool,
    "Decimal": (int, float, decimal.Decimal),
    "Bytes": (bytes, str),
}


def data_error(message):
    from prisma.errors import DataError

    return DataError({"user_facing_error": {"message": message, "meta": {}}})


def without_zone(value):
    if isinstance(value, str):
        value = datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
    if isinstance(value, datetime.datetime) and value.tzinfo:
        value = value.astimezone(datetime.timezone.utc).replace(tzinfo=None)
    return value


class Database:
    """What LiteLLM takes for its Prisma client."""

    engine_generation = 0

    def __init__(self, url, models):
        self.url = url
        self.models = models
        self.by_name = {name.lower(): model for name, model in models.items()}
        self.failures = []
        self.row_types = {}
        self.idle = []
        self.connection = self.connect_to_postgresql()

    def connect_to_postgresql(self):
        return psycopg.connect(self.url, autocommit=True, row_factory=dict_row, options=OPTIONS)

    def __getattr__(self, name):
        if name in self.__dict__.get("by_name", {}):
            return Table(self, self.by_name[name])
        if not name.startswith("_"):
            self.fail(f"{name} is not provided")
        raise AttributeError(name)

    def fail(self, what):
        trace = traceback.format_exc(limit=-4) if sys.exc_info()[0] else "".join(traceback.format_stack(limit=8)[:-2])
        self.failures.append(f"{what}\n{trace}")

    def row_type(self, model):
        if model.name not in self.row_types:
            fields = {name: (typing.Any, None) for name in [*model.columns, *model.relations]}
            self.row_types[model.name] = create_model(model.name, __config__=ConfigDict(protected_namespaces=()), **fields)
        return self.row_types[model.name]

    def execute(self, statement, arguments):
        if not arguments:
            return self.connection.execute(statement)
        statement = re.sub(r"\$(\d+)", r"%(a\1)s", statement.replace("%", "%%"))
        return self.connection.execute(statement, {f"a{index}": argument(value) for index, value in enumerate(arguments, 1)})

    @guarded(is_raw=True)
    async def query_raw(self, statement, *arguments):
        found = self.execute(statement, arguments)
        return [{name: raw(value) for name, value in row.items()} for row in found] if found.description else []

    @guarded(is_raw=True)
    async def query_first(self, statement, *arguments):
        return next(iter([{name: raw(value) for name, value in row.items()} for row in self.execute(statement, arguments)]), None)

    @guarded(is_raw=True)
    async def execute_raw(self, statement, *arguments):
        return self.execute(statement, arguments).rowcount

    def tx(self, *, max_wait=None, timeout=None):
        return Transaction(self)

    def batch_(self):
        return Batch(self)

    def is_connected(self):
        return True

    @property
    def read_target(self):
        return self

    @property
    def writer(self):
        return self


class Transaction(Database):
    """A transaction on a connection of its own."""

    def __init__(self, root):
        self.__dict__.update({name: getattr(root, name) for name in ["url", "models", "by_name", "failures", "row_types"]})
        self.root = root

    async def __aenter__(self):
        self.connection = self.root.idle.pop() if self.root.idle else self.root.connect_to_postgresql()
        self.connection.execute("BEGIN")
        return self

    async def __aexit__(self, kind, error, trace):
        try:
            await self.end("ROLLBACK" if kind else "COMMIT")
        finally:
            self.root.idle.append(self.connection)
        return False

    @guarded()
    async def end(self, statement):
        self.connection.execute(statement)

    def tx(self, **_):
        raise NotImplementedError("a transaction in a transaction")


class QueuedTable:
    """A table of a batch: its actions wait until the batch is committed."""

    def __init__(self, batch, table):
        self.batch = batch
        self.table = table

    def __getattr__(self, name):
        def action(database):
            return getattr(Table(database, self.table.model), name)

        return lambda *arguments, **named: self.batch.queue.append((action, arguments, named))


class Batch:
    """Actions that take effect together."""

    def __init__(self, database):
        self.database = database
        self.queue = []

    def __getattr__(self, name):
        return QueuedTable(self, getattr(self.database, name))

    def execute_raw(self, statement, *arguments):
        self.queue.append((lambda database: database.execute_raw, (statement, *arguments), {}))

    def query_raw(self, statement, *arguments):
        self.queue.append((lambda database: database.query_raw, (statement, *arguments), {}))

    async def commit(self):
        queue, self.queue = self.queue, []
        inside = isinstance(self.database, Transaction)
        async with contextlib.nullcontext(self.database) if inside else self.database.tx() as database:
            for action, arguments, named in queue:
                await action(database)(*arguments, **named)

    async def __aenter__(self):
        return self

    async def __aexit__(self, kind, error, trace):
        if kind is None:
            await self.commit()
        return False


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
    fields = types.ModuleType("prisma.fields")
    fields.Json = Json
    fields.__getattr__ = find
    sys.modules["prisma.fields"] = prisma.fields = fields
    prisma.Json = Json
    prisma.Prisma = Anything
