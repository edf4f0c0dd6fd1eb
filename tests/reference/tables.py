"""LiteLLM's tables out of the schema that its package ships, and rows for them."""

import datetime
import json
import random
import re

TYPES = {
    "String": "text",
    "Int": "integer",
    "BigInt": "bigint",
    "Float": "double precision",
    "Boolean": "boolean",
    "DateTime": "timestamp(3)",
    "Json": "jsonb",
    "Decimal": "numeric",
    "Bytes": "bytea",
}


class Model:
    """A table: its columns by their names in Prisma, and what it is related to."""

    def __init__(self, name, body):
        self.name = name
        self.columns = {}
        self.relations = {}
        self.key = []
        self.unique = []
        self.references = []
        for line in body.splitlines():
            line = re.sub(r"//.*", "", line).strip()
            together = re.match(r"@@id\(\[([^\]]*)\]", line)
            if together:
                self.key = [re.sub(r"\(.*", "", part).strip() for part in together.group(1).split(",")]
            elif line.startswith("@@unique"):
                inside = re.search(r"\[([^\]]*)\]", line).group(1)
                self.unique.append([re.sub(r"\(.*", "", part).strip() for part in inside.split(",")])
            elif line and not line.startswith("@@"):
                self.add(*re.match(r"(\w+)\s+(\w+)(\[\])?(\?)?(.*)", line).groups())

    def add(self, name, kind, is_list, is_optional, rest):
        if kind not in TYPES:
            related = re.search(r"fields:\s*\[([^\]]*)\],\s*references:\s*\[([^\]]*)\]", rest)
            ends = tuple([part.strip() for part in end.split(",")] for end in related.groups()) if related else None
            self.relations[name] = (kind, bool(is_list), ends)
            if ends:
                on_delete = re.search(r"onDelete:\s*(\w+)", rest)
                default = "SetNull" if is_optional else "Restrict"
                self.references.append((kind, *ends, on_delete.group(1) if on_delete else default))
            return
        mapped = re.search(r'@map\("(\w+)"\)', rest)
        default = re.search(r"@default\((.*?)\)(?:\s|$)", rest + " ")
        self.columns[name] = {
            "column": mapped.group(1) if mapped else name,
            "type": kind,
            "list": bool(is_list),
            "optional": bool(is_optional),
            "default": default.group(1) if default else None,
            "updated": "@updatedAt" in rest.split(),
        }
        if re.search(r"@unique\b", rest):
            self.unique.append([name])
        if "@id" in rest.split():
            self.key = [name]

    def statement(self):
        parts = []
        for column in self.columns.values():
            kind, default, clause = TYPES[column["type"]], column["default"] or "", ""
            if column["list"]:
                kind += "[]"
            if default.startswith("now"):
                clause = " DEFAULT CURRENT_TIMESTAMP"
            elif default.startswith("autoincrement"):
                kind = "bigserial"
            elif default.startswith("["):
                clause = " DEFAULT '{}'"
            elif default.startswith('"'):
                clause = " DEFAULT '" + default[1:-1].replace('\\"', '"') + "'"
            elif default and not default.startswith(("uuid", "cuid", "dbgenerated")):
                clause = " DEFAULT " + default
            nullable = "" if column["optional"] or column["list"] else " NOT NULL"
            parts.append(f'"{column["column"]}" {kind}{nullable}{clause}')
        if self.key and all(name in self.columns for name in self.key):
            parts.append("PRIMARY KEY (%s)" % ", ".join(f'"{self.columns[name]["column"]}"' for name in self.key))
        parts += [f"UNIQUE ({self.quoted(names)})" for names in self.unique]
        return f'CREATE TABLE "{self.name}" ({", ".join(parts)});'

    def quoted(self, names):
        return ", ".join(f'"{self.columns[name]["column"]}"' for name in names)

    def reference_statements(self, models):
        """The foreign keys. The rows that are there already may break them."""
        for kind, mine, theirs, on_delete in self.references:
            action = {"Cascade": "CASCADE", "SetNull": "SET NULL"}.get(on_delete, "RESTRICT")
            name = f"{self.name}_{'_'.join(mine)}_fkey"
            yield (
                f'ALTER TABLE "{self.name}" ADD CONSTRAINT "{name}" FOREIGN KEY ({self.quoted(mine)}) REFERENCES "{kind}" '
                f"({models[kind].quoted(theirs)}) ON DELETE {action} ON UPDATE CASCADE NOT VALID"
            )


def read_schema(path):
    with open(path) as file:
        found = re.findall(r"^model (\w+) \{(.*?)^\}", file.read(), re.MULTILINE | re.DOTALL)
    return {name: Model(name, body) for name, body in found}


def together(schemas):
    """The tables of several versions as one schema, with every column that one of them has."""
    found = {}
    for schema in schemas:
        for name, model in schema.items():
            kept = found.setdefault(name, model)
            for column, description in model.columns.items():
                optional = description["optional"] or description["default"] is None
                kept.columns.setdefault(column, {**description, "optional": optional})
    return found


def create(connection, models):
    for model in models.values():
        connection.execute(model.statement())
    connection.execute("CREATE TABLE _prisma_migrations (id text PRIMARY KEY)")


def add_references(connection, models):
    for model in models.values():
        for statement in model.reference_statements(models):
            connection.execute(statement)


def insert(connection, table, row):
    columns = ", ".join(f'"{name}"' for name in row)
    connection.execute(
        f'INSERT INTO "{table}" ({columns}) SELECT {columns} FROM json_populate_record(NULL::"{table}", %s::json) '
        # A row that was made up may have the key of another one.
        "ON CONFLICT DO NOTHING",
        [json.dumps(row)],
    )


SEED_TABLES = {
    "teams": "LiteLLM_TeamTable",
    "users": "LiteLLM_UserTable",
    "keys": "LiteLLM_VerificationToken",
    "deleted_keys": "LiteLLM_DeletedVerificationToken",
    "spend_logs": "LiteLLM_SpendLogs",
    "daily_user_spend": "LiteLLM_DailyUserSpend",
}


def load(connection, seed, number):
    """The rows of the recordings, and as many again that are stranger than those."""
    for name, table in SEED_TABLES.items():
        for row in seed[name]:
            insert(connection, table, row)
    choose = random.Random(number)
    values = {
        "keys": sorted({row["api_key"] for row in seed["spend_logs"]} | {row["token"] for row in seed["keys"]}),
        "users": sorted({row["user"] or "" for row in seed["spend_logs"]} | {"default_user_id"}),
        "teams": [row["team_id"] for row in seed["teams"]] + ["team-ghost"],
        "models": sorted({row["model"] for row in seed["spend_logs"]}),
        "tags": ["prod", "dev", "équipe", " spaced ", "a,b", "PROD", "User-Agent: curl/8.5", 'x"y', ""],
    }
    for index in range(1500):
        insert(connection, "LiteLLM_SpendLogs", call(choose, values, index))
    for table, entity, entities in [
        ("LiteLLM_DailyUserSpend", "user_id", values["users"] + [None]),
        ("LiteLLM_DailyTeamSpend", "team_id", values["teams"] + [None]),
        ("LiteLLM_DailyTagSpend", "tag", values["tags"] + [None]),
    ]:
        for index in range(700):
            insert(connection, table, {entity: choose.choice(entities), **day(choose, values, f"{entity}-{index}")})
    connection.execute(
        """UPDATE "LiteLLM_UserTable" SET teams = '{team-beta,team-gamma}' WHERE user_id = 'u-int';
           UPDATE "LiteLLM_UserTable" SET teams = '{team-alpha}' WHERE user_id = 'u-norole';
           UPDATE "LiteLLM_TeamTable" SET team_member_permissions = '{/team/daily/activity}', members_with_roles =
               '[{"role": "user", "user_id": "u-norole"}, {"role": "admin", "user_id": "ishaan@example.com"}]'
           WHERE team_id = 'team-alpha';
           UPDATE "LiteLLM_VerificationToken" SET models = '{gpt-4o}' WHERE key_alias = 'int key';
           UPDATE "LiteLLM_VerificationToken" SET max_budget = 0.000001 WHERE key_alias = 'viewer key';
           UPDATE "LiteLLM_VerificationToken" SET allowed_routes = '{self_managed_routes,/spend/logs}'
           WHERE key_alias = 'ishaan key';
           UPDATE "LiteLLM_VerificationToken" SET allowed_routes = '{management_routes}' WHERE key_alias = 'team-only key';
           UPDATE "LiteLLM_UserTable" SET max_budget = 0.000001, models = '{gpt-4}' WHERE user_id = 'u-norole';
           UPDATE "LiteLLM_TeamTable" SET blocked = true WHERE team_id = 'team-beta';
           -- LiteLLM always writes the address of a member, too.
           UPDATE "LiteLLM_TeamTable" SET members_with_roles = (SELECT jsonb_agg('{"user_email": null}' || member)
               FROM jsonb_array_elements(members_with_roles) AS member)
           WHERE jsonb_array_length(members_with_roles) > 0"""
    )


def moment(choose):
    day = datetime.datetime(2026, 1, 28) + datetime.timedelta(days=choose.randrange(38))
    within = [0, 86_399_999, 43_200_000, choose.randrange(86_400_000)]
    return day + datetime.timedelta(milliseconds=choose.choice(within))


METADATA = [
    {},
    None,
    {"status": "success"},
    {
        "status": "failure",
        "error_information": {"error_code": "429", "error_class": "RateLimitError", "error_message": "rate limit"},
    },
    {"user_api_key_alias": "int key", "user_api_key_team_alias": "Alpha Team"},
    {"user_api_key_alias": "x%y_z"},
    {"internal_call_origin": "health_check"},
    {"used_client_oauth_token": True},
]


def call(choose, values, index):
    start = moment(choose)
    end = start + datetime.timedelta(milliseconds=choose.randrange(100_000))
    tags = [[], choose.sample(values["tags"], 3), ["prod", "prod"], None, [choose.choice(values["tags"])], [1, 2]]
    return {
        "request_id": f"made-up-{index:06}",
        "call_type": choose.choice(["acompletion", "aembedding", "pass_through_endpoint", "", "call_mcp_tool"]),
        "api_key": choose.choice(values["keys"]),
        "spend": choose.choice([0, 0.1, choose.random(), -0.5, 1e-12, 12345.678]),
        "total_tokens": choose.choice([0, 10, choose.randrange(5000)]),
        "prompt_tokens": choose.randrange(3000),
        "completion_tokens": choose.randrange(2000),
        "startTime": start.isoformat(),
        "endTime": end.isoformat(),
        "completionStartTime": choose.choice([None, end.isoformat()]),
        "request_duration_ms": choose.choice([None, choose.randrange(9999)]),
        "model": choose.choice(values["models"]),
        "model_id": choose.choice(["", "deployment-1", None]),
        "model_group": choose.choice(["", "group-1", None]),
        "custom_llm_provider": choose.choice(["openai", "anthropic", "", None]),
        "user": choose.choice(values["users"]),
        "metadata": choose.choice(METADATA),
        "cache_hit": choose.choice(["True", "False", "None", "", None]),
        "request_tags": choose.choice(tags),
        "team_id": choose.choice(values["teams"] + ["", None, "litellm-dashboard"]),
        "end_user": choose.choice(["cust-1", "cust-2", "", None, "新"]),
        "session_id": choose.choice([None, "s-1", "s-2", "s-3", ""]),
        "status": choose.choice(["success", "failure", None, ""]),
        "messages": choose.choice([{}, [{"role": "user", "content": "hi"}], "text", None]),
        "response": choose.choice([{}, {"a": 1}, None]),
        "proxy_server_request": choose.choice([{}, {"x": 1}, None]),
        "created_at": start.isoformat(),
        "updated_at": end.isoformat(),
    }


def day(choose, values, name):
    return {
        "id": name,
        "date": moment(choose).strftime("%Y-%m-%d"),
        "api_key": choose.choice(values["keys"]),
        "model": choose.choice(values["models"] + [None, ""]),
        "model_group": choose.choice([None, "", "group-1", "gpt-4o"]),
        "custom_llm_provider": choose.choice(["openai", "anthropic", "", None]),
        "mcp_namespaced_tool_name": choose.choice([None, "", "server/tool"]),
        "endpoint": choose.choice([None, "", "/chat/completions"]),
        "spend": choose.choice([0, choose.random() * 10]),
        "updated_at": "2026-03-01T00:00:00",
        "created_at": "2026-03-01T00:00:00",
        **{
            name: choose.randrange(1000)
            for name in [
                "prompt_tokens",
                "completion_tokens",
                "cache_read_input_tokens",
                "cache_creation_input_tokens",
                "api_requests",
                "successful_requests",
                "failed_requests",
            ]
        },
    }
