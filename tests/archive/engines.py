"""DuckDB and ClickHouse's engine, which read an archive by the statements that litespend prints."""

import json

import chdb.session
import duckdb

# Both name the columns like the log.
TIMES = ["startTime", "endTime", "completionStartTime", "created_at", "updated_at"]
NUMBERS = ["spend", "total_tokens", "prompt_tokens", "completion_tokens", "request_duration_ms"]
TEXTS = [
    "request_id", "call_type", "api_key", "model", "model_id", "model_group", "custom_llm_provider", "api_base", "user",
    "metadata", "cache_hit", "cache_key", "request_tags", "team_id", "end_user", "requester_ip_address", "messages",
    "response", "proxy_server_request", "session_id", "status", "mcp_namespaced_tool_name", "organization_id",
    "agent_id", "litellm_call_id", "billing_agent_id",
]
COLUMNS = [*TEXTS, *NUMBERS, *TIMES]


class DuckDb:
    name = "DuckDB"

    def __init__(self, schema):
        self.connection = duckdb.connect()
        self.connection.execute("SET TimeZone = 'Asia/Kolkata'")
        self.connection.execute(schema)

    def close(self):
        self.connection.close()

    def rows(self, statement):
        return self.connection.execute(statement).fetchall()

    def tags(self, source):
        return (
            "SELECT tag, sum(spend), count(*) FROM "
            "(SELECT spend, unnest(from_json(request_tags, '[\"VARCHAR\"]')) AS tag "
            f"FROM ({source}) WHERE json_type(request_tags) = 'ARRAY') GROUP BY 1"
        )

    def microseconds(self, column):
        return f'epoch_us("{column}")'

    def date(self, column):
        return f"CAST(CAST(\"{column}\" AT TIME ZONE 'UTC' AS DATE) AS VARCHAR)"


class ClickHouse:
    """One session at a time can be open in a process."""

    name = "ClickHouse"

    def __init__(self, schema):
        self.session = chdb.session.Session()
        try:
            self.session.query(schema)
        except BaseException:
            self.close()
            raise

    def close(self):
        self.session.close()

    def rows(self, statement):
        settings = "SETTINGS output_format_json_quote_64bit_integers = 0"
        found = self.session.query(f"{statement} {settings}", "JSONCompactEachRow").bytes().decode()
        return [tuple(json.loads(line)) for line in found.split("\n") if line]

    def tags(self, source):
        return (
            "SELECT arrayJoin(JSONExtract(request_tags, 'Array(String)')) AS tag, sum(spend), count(*) FROM "
            f"(SELECT spend, assumeNotNull(request_tags) AS request_tags FROM ({source}) "
            "WHERE JSONType(ifNull(request_tags, '')) = 'Array') GROUP BY 1"
        )

    def microseconds(self, column):
        return f'toUnixTimestamp64Micro("{column}")'

    def date(self, column):
        return f"CAST(toDate(\"{column}\", 'UTC') AS String)"


ENGINES = {"duckdb": DuckDb, "clickhouse": ClickHouse}


def archived(engine):
    """All rows of the archive, by their ids."""
    listed = ", ".join([
        *(f'"{name}"' for name in [*TEXTS, *NUMBERS]), *(engine.microseconds(name) for name in TIMES),
    ])
    found = engine.rows(f"SELECT {listed} FROM spend_logs")
    if len({row[0] for row in found}) != len(found):
        raise RuntimeError(f"{engine.name}: {len(found)} rows have {len({row[0] for row in found})} ids")
    return {row[0]: dict(zip(COLUMNS, row)) for row in found}


def logged(database, first, last, known):
    """The same rows of the log. JSON is the text that the database makes of it."""
    texts = [f'"{name}"::text' if name in known else "NULL::text" for name in TEXTS]
    numbers = [f'"{name}"' if name in known else "NULL" for name in NUMBERS]
    times = [
        f"(extract(epoch FROM \"{name}\") * 1000000)::bigint" if name in known else "NULL::bigint" for name in TIMES
    ]
    found = database.query(
        f'SELECT {", ".join([*texts, *numbers, *times])} FROM "LiteLLM_SpendLogs" '
        'WHERE "startTime" >= %s::text::date AND "startTime" < %s::text::date + 1', [str(first), str(last)])
    return {row[0]: dict(zip(COLUMNS, row)) for row in found}


def first_difference(wanted, found):
    """A line about the first row that differs, or nothing."""
    missing, additional = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or additional:
        return f"{len(missing)} rows are missing ({missing[:1]}), {len(additional)} are added ({additional[:1]})"
    for name, row in wanted.items():
        for column, value in row.items():
            if type(found[name][column]) is not type(value) and column != "spend" or found[name][column] != value:
                return f"{name!r}, {column}: {found[name][column]!r:.200} instead of {value!r:.200}"
    return ""
