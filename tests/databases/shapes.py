"""The databases: LiteLLM's tables in a version and a shape."""

import datetime
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

import postgresql
import rows

# The newest version of the package with LiteLLM's migrations. `./dev follow` moves it.
NEWEST = Path(__file__).with_name("VERSION").read_text().strip()
OLDER = ["0.2.0", "0.4.0", "0.4.50"]
LEGACY = "LiteLLM_SpendLogs_legacy"

# The indexes that the log has after LiteLLM's runbook, as far as the columns exist.
RUNBOOK_INDEXES = {
    "startTime_idx": ["startTime"], "startTime_request_id_idx": ["startTime", "request_id"],
    "end_user_idx": ["end_user"], "session_id_idx": ["session_id"],
    "api_key_startTime_spend_idx": ["api_key", "startTime", "spend"],
}


@dataclass(frozen=True)
class Shape:
    """What is special about a database. The default is what LiteLLM's migrations make."""

    name: str
    version: str = NEWEST
    partitions: str = ""  # day, week or month
    timestamptz: bool = False
    schema: str = "public"
    time_zone: str = ""
    role: str = postgresql.OWNER
    pgbouncer: str = ""  # session, transaction or statement
    pgbouncer_settings: dict = field(default_factory=dict, hash=False)
    only_reads: bool = False
    short: bool = False

    @property
    def reads_only_role(self):
        return self.role == postgresql.READER

    @property
    def is_old(self):
        return self.version != NEWEST

    @property
    def is_plain_newest(self):
        return self == Shape(self.name, short=self.short)


SQLX = {"ignore_startup_parameters": "extra_float_digits"}
SHAPES = [
    Shape("plain", short=True),
    Shape("partitioned by day", partitions="day", short=True),
    Shape("partitioned by week", partitions="week"),
    Shape("partitioned by month", partitions="month"),
    Shape("timestamptz", timestamptz=True),
    Shape("timestamptz, partitioned by day", timestamptz=True, partitions="day"),
    Shape("schema litellm", schema="litellm"),
    Shape("schema litellm, partitioned by day", schema="litellm", partitions="day"),
    Shape("role with SELECT only", role=postgresql.READER),
    Shape("time zone Asia/Kolkata", time_zone="Asia/Kolkata"),
    Shape("time zone Asia/Kolkata, partitioned by day", time_zone="Asia/Kolkata", partitions="day"),
    Shape("time zone Asia/Kolkata, timestamptz", time_zone="Asia/Kolkata", timestamptz=True),
    Shape("pgbouncer, session mode", pgbouncer="session", pgbouncer_settings=SQLX),
    Shape("pgbouncer, session mode, default settings", pgbouncer="session", only_reads=True),
    Shape("pgbouncer, transaction mode", pgbouncer="transaction", pgbouncer_settings=SQLX),
    Shape("pgbouncer, transaction mode, pool of one", pgbouncer="transaction",
          pgbouncer_settings={**SQLX, "default_pool_size": 1}),
    Shape("pgbouncer, statement mode", pgbouncer="statement", pgbouncer_settings=SQLX),
    *(
        Shape(f"{version} {'partitioned by day' if partitions else 'plain'}", version=version, partitions=partitions)
        for version in OLDER for partitions in ["", "day"]
    ),
]


class Database:
    """A database on a cluster, which steps may change as they like."""

    def __init__(self, cluster, shape, name, bouncer=None):
        self.cluster, self.shape, self.name, self.bouncer = cluster, shape, name, bouncer

    @property
    def url(self):
        port = self.bouncer.port if self.bouncer else self.cluster.port
        address = f"postgresql://{self.shape.role}@127.0.0.1:{port}/{quote(self.name)}"
        return address if self.shape.schema == "public" else f"{address}?schema={self.shape.schema}"

    def of_owner(self):
        """The same database, for a program that connects as the owner."""
        return Database(self.cluster, replace(self.shape, role=postgresql.OWNER), self.name, self.bouncer)

    def without_pooler(self):
        """The same database, reached directly."""
        return Database(self.cluster, self.shape, self.name)

    def connect(self, user=postgresql.OWNER, utc=True):
        """A connection as LiteLLM has one. Without `utc`, it has the time zone of the database."""
        options = f"-c search_path={self.shape.schema}" + (" -c timezone=UTC" if utc else "")
        return self.cluster.connect(self.name, user, options=options)

    def execute(self, *statements):
        """Runs statements as LiteLLM would: as the owner, in the database's time zone."""
        with self.connect(utc=False) as connection:
            for statement in statements:
                connection.execute(statement)

    def query(self, statement, arguments=None):
        with self.connect() as connection:
            return connection.execute(statement, arguments).fetchall()

    def value(self, statement, arguments=None):
        return self.query(statement, arguments)[0][0]


class Maker:
    """Makes databases on one cluster. Databases of the same version are copies of one that was migrated."""

    def __init__(self, cluster, packages):
        self.cluster, self.packages = cluster, packages
        self.migrated = {}
        self.count = 0

    def new_name(self, what):
        self.count += 1
        return f"{what}_{self.count}"

    def migrate(self, version, schema):
        """The name of a database with LiteLLM's tables of this version, and nothing in them."""
        if (version, schema) not in self.migrated:
            database = Database(self.cluster, Shape("", version, schema=schema), self.new_name("migrated"))
            self.cluster.create(database.name)
            with database.connect() as connection:
                if schema != "public":
                    connection.execute(f'CREATE SCHEMA "{schema}"')
                connection.execute(
                    "CREATE TABLE _prisma_migrations (id varchar(36) PRIMARY KEY, checksum varchar(64) NOT NULL, "
                    "finished_at timestamptz, migration_name varchar(255) NOT NULL, logs text, "
                    "rolled_back_at timestamptz, started_at timestamptz NOT NULL DEFAULT now(), "
                    "applied_steps_count integer NOT NULL DEFAULT 0)"
                )
            for name, script in self.packages.migrations(version):
                apply_migration(database, name, script)
            self.migrated[version, schema] = database.name
        return self.migrated[version, schema]

    def columns(self, version):
        with self.cluster.connect(self.migrate(version, "public")) as connection:
            return rows.columns(connection)

    def make(self, shape, bouncer=None, fill=rows.fill):
        """A database of the shape with the rows that `fill` inserts."""
        database = Database(self.cluster, shape, self.new_name("shape"), bouncer)
        self.cluster.create(database.name, self.migrate(shape.version, shape.schema))
        with database.connect() as connection:
            if shape.timestamptz:
                change_to_timestamptz(connection)
            fill(connection)
            if shape.partitions:
                partition(connection, shape.partitions)
                backfill(connection)
                connection.execute(f'DROP TABLE "{LEGACY}"')
            connection.execute(f'GRANT USAGE ON SCHEMA "{shape.schema}" TO {postgresql.READER}')
            connection.execute(f'GRANT SELECT ON ALL TABLES IN SCHEMA "{shape.schema}" TO {postgresql.READER}')
            connection.execute("ANALYZE")
        self.set_time_zone(database)
        return database

    def copy(self, database):
        """A copy that a step may change."""
        copied = Database(self.cluster, database.shape, self.new_name("copy"), database.bouncer)
        self.cluster.create(copied.name, database.name)
        self.set_time_zone(copied)
        return copied

    def set_time_zone(self, database):
        if database.shape.time_zone:
            self.cluster.execute(f"ALTER DATABASE \"{database.name}\" SET timezone = '{database.shape.time_zone}'")

    def drop(self, database):
        self.cluster.drop(database.name)


def apply_migration(database, name, script):
    """Runs a migration as Prisma does, as one script, and notes it."""
    with database.connect() as connection:
        connection.execute(script)
        connection.execute(
            "INSERT INTO _prisma_migrations (id, checksum, finished_at, migration_name, applied_steps_count) "
            "VALUES (gen_random_uuid()::text, '', now(), %s, 1)", [name]
        )


def change_to_timestamptz(connection):
    """Changes every timestamp of LiteLLM's tables, as some operators did by hand."""
    found = connection.execute(
        "SELECT table_name, string_agg(format('ALTER COLUMN %I TYPE timestamptz(3) USING %I AT TIME ZONE ''UTC''', "
        "column_name, column_name), ', ') FROM information_schema.columns JOIN information_schema.tables "
        "USING (table_schema, table_name) WHERE table_schema = current_schema() AND table_type = 'BASE TABLE' "
        "AND data_type = 'timestamp without time zone' GROUP BY 1"
    ).fetchall()
    for table, changes in found:
        connection.execute(f'ALTER TABLE "{table}" {changes}')


def period(day, kind):
    """The first day of the day, week or month of a day, and the first day after it."""
    if kind == "day":
        return day, day + datetime.timedelta(days=1)
    if kind == "week":
        first = day - datetime.timedelta(days=day.weekday())
        return first, first + datetime.timedelta(days=7)
    first = day.replace(day=1)
    return first, (first + datetime.timedelta(days=31)).replace(day=1)


def partition_of(day, kind):
    """The name of the partition with a day, as LiteLLM names it."""
    return f"LiteLLM_SpendLogs_p{period(day, kind)[0]:%Y%m%d}"


def partition_bounds(day, kind):
    first, end = period(day, kind)
    return f"FROM ('{first} 00:00:00Z') TO ('{end} 00:00:00Z')"


def partition(connection, kind):
    """What LiteLLM's runbook does, and the partitions that LiteLLM's clean-up job then makes."""
    with connection.transaction():
        connection.execute(f'ALTER TABLE "LiteLLM_SpendLogs" RENAME TO "{LEGACY}"')
        present = rows.columns(connection)[LEGACY]
        wanted = {name: on for name, on in RUNBOOK_INDEXES.items() if set(on) <= present}
        for name in ["pkey", *wanted]:
            connection.execute(f'ALTER INDEX IF EXISTS "LiteLLM_SpendLogs_{name}" RENAME TO "{LEGACY}_{name}"')
        connection.execute(
            f'CREATE TABLE "LiteLLM_SpendLogs" (LIKE "{LEGACY}" INCLUDING DEFAULTS INCLUDING GENERATED) '
            'PARTITION BY RANGE ("startTime")'
        )
        connection.execute('ALTER TABLE "LiteLLM_SpendLogs" ADD PRIMARY KEY (request_id, "startTime")')
        for name, on in wanted.items():
            listed = ", ".join(f'"{column}"' for column in on)
            connection.execute(f'CREATE INDEX "LiteLLM_SpendLogs_{name}" ON "LiteLLM_SpendLogs" ({listed})')
        connection.execute('CREATE TABLE "LiteLLM_SpendLogs_pdefault" PARTITION OF "LiteLLM_SpendLogs" DEFAULT')
    for number in range(rows.DAYS):
        make_partition(connection, rows.FIRST_DAY + datetime.timedelta(days=number), kind)


def make_partition(connection, day, kind):
    name, bounds = partition_of(day, kind), partition_bounds(day, kind)
    connection.execute(f'CREATE TABLE IF NOT EXISTS "{name}" PARTITION OF "LiteLLM_SpendLogs" FOR VALUES {bounds}')


def backfill(connection):
    connection.execute(f'INSERT INTO "LiteLLM_SpendLogs" SELECT * FROM "{LEGACY}"')
