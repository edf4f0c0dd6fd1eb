"""The steps that are checked on each database. A step returns a note or nothing, or raises Refused or Failed."""

import datetime
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg

import deliveries
import reads
import recorded
import rows
import shapes
from litespend import NotStarted

# A running server notices rollups within three seconds.
NOTICE = 3.5
# A running server looks for partitions that came or went at least every 32 seconds, and then counts their days.
FOLLOWED = 45
BACKFILL_ROWS = 200_000
# How many times as long the backfill may take with triggers.
BACKFILL_RATIO = 3


class Refused(Exception):
    """litespend says that it will not do this here, and why."""


class Failed(Exception):
    """Something is wrong. The first argument is short; the second has the details."""


class Skipped(Exception):
    """The step does not belong to this database."""


class Findings:
    """What is found in a step that goes on after the first mistake."""

    def __init__(self):
        self.wrong, self.details = [], []

    def expect(self, what, good, detail):
        self.details.append(f"{what}: {detail}")
        if not good:
            self.wrong.append(what)

    def sums(self, what, server, database):
        try:
            found = reads.wrong_sums(server, database)
        except AssertionError as error:
            found = [str(error)]
        self.expect(f"sums {what}", not found, "; ".join(found) or "right")

    def reads(self, what, server, expected, but):
        found = reads.differences(expected, reads.answers(server), but)
        name = f"{len(found)} of {len(expected)} reads differ {what}" if found else f"reads {what}"
        self.expect(name, not found, "\n".join(found) or "equal")

    def recordings(self, what, server, file):
        wrong, number = recorded.wrong_answers(server, file)
        name = f"{len(wrong)} of {number} recorded answers of {file} differ {what}" if wrong else f"{file} {what}"
        self.expect(name, not wrong, "\n".join(wrong) or f"{number} equal")

    def command(self, context, database, *arguments):
        ended = context.litespend.run(database, *arguments)
        self.expect(f"`{' '.join(arguments)}`", ended.code == 0, f"exit code {ended.code}: {ended.last_line()}")

    def booking(self, context, server, database):
        try:
            book_everything(context, server, database)
        except Failed as error:
            self.expect(error.args[0], False, error.args[1])

    def finish(self, server):
        if self.wrong:
            details = "\n".join([*self.details, *server.warnings()])
            raise Failed("not right: " + "; ".join(dict.fromkeys(self.wrong)), details)


class Context:
    """A database, and what the steps need for it."""

    def __init__(self, maker, litespend, database, expected):
        self.maker, self.litespend, self.database = maker, litespend, database
        # The answers of the plain newest database, and the columns that do not count.
        self.expected, self.not_compared = expected

    @property
    def shape(self):
        return self.database.shape

    def copy(self):
        return self.maker.copy(self.database)

    def command(self, database, *arguments):
        """Runs a command, which has to end well."""
        ended = self.litespend.run(database, *arguments)
        if ended.code == 0:
            return ended.output
        name = " ".join(arguments)
        no_right = "permission denied" in ended.errors or "must be owner" in ended.errors
        if ended.code == 2 or (database.shape.reads_only_role and no_right):
            raise Refused(f"`{name}`: {ended.last_line()}")
        raise Failed(f"`{name}` fails", f"exit code {ended.code}\n{ended.output}{ended.errors}")

    def check_reads(self, server, expected=None):
        """Compares the reads with those of the plain newest database, or with others."""
        expected = expected or self.expected
        wrong = reads.differences(expected, reads.answers(server), self.not_compared)
        if wrong:
            raise Failed(f"{len(wrong)} of {len(expected)} reads differ", "\n".join([*wrong, *server.warnings()]))


def check_sums(server, database):
    wrong = reads.wrong_sums(server, database)
    if wrong:
        raise Failed("wrong sums", "\n".join(wrong))


def start(context):
    database = context.database
    try:
        with context.litespend.serve(database) as server:
            ready = server.get("/health/readiness")
            if ready.status != 200:
                raise Failed("not ready", str(ready))
            noted = server.warnings()
            return f"{len(noted)} warnings: {noted[0]}" if noted else None
    except NotStarted as error:
        raise (Refused(str(error)) if error.code == 2 else Failed("does not start", error.log)) from None


def refusal_of_pooler(context):
    """A pooler in transaction or statement mode can't work: the server has to say so at its start, also when the pooler
    is busy, and when it is in front of the replica. With the direct URL, the server works."""
    pooled, direct = context.database, context.database.without_pooler()
    behind = context.litespend.with_settings({"DATABASE_URL_READ_REPLICA": pooled.url})
    refused_start(behind, direct, f"DATABASE_URL_READ_REPLICA: a connection pooler in {context.shape.pgbouncer} mode")
    with context.litespend.with_settings({"DIRECT_URL": direct.url}).serve(pooled) as server:
        context.check_reads(server)
    expected = f"DATABASE_URL: a connection pooler in {context.shape.pgbouncer} mode"
    with busy(pooled):
        for _ in range(5):
            refused_start(context.litespend, pooled, expected)
    raise Refused(refused_start(context.litespend, pooled, expected))


def refused_start(litespend, database, expected):
    """The last line of a server that must not start."""
    try:
        with litespend.serve(database) as server:
            statuses = [server.get(path).status for path in reads.PATHS * 3]
            wrong = sum(status != 200 for status in statuses)
            raise Failed("starts, instead of refusing", f"{wrong} of {len(statuses)} reads fail\n{server.log()}")
    except NotStarted as error:
        if error.code == 2 and expected in str(error):
            return str(error)
        raise Failed("does not start, and does not say why", error.log) from None


@contextmanager
def busy(database, clients=3):
    """Other clients of the pooler, which use its sessions all the time."""
    ended = threading.Event()

    def work():
        with psycopg.connect(database.url.split("?")[0], autocommit=True, prepare_threshold=None) as connection:
            while not ended.is_set():
                connection.execute("SELECT pg_sleep(0.005)")

    with ThreadPoolExecutor(clients) as pool:
        working = [pool.submit(work) for _ in range(clients)]
        try:
            yield
        finally:
            ended.set()
        for one in working:
            one.result()


def read(context):
    with context.litespend.serve(context.database) as server:
        context.check_reads(server)


def recorded_reads(context):
    """The reads that were recorded from LiteLLM, on the rows that it had, without rollups and with them. That the other
    databases are read as the plain one, another step says."""
    if not context.shape.short:
        raise Skipped
    litespend = context.litespend.with_settings({"LITELLM_MASTER_KEY": recorded.MASTER_KEY})
    findings = Findings()
    for file in recorded.FILES:
        database = context.maker.make(context.shape, context.database.bouncer, recorded.fill(file))
        with litespend.serve(database) as server:
            findings.recordings("without rollups", server, file)
            findings.command(context, database.of_owner(), "rollups", "install")
            time.sleep(NOTICE)
            findings.recordings("with rollups", server, file)
            findings.finish(server)
        context.maker.drop(database)


def rollups(context):
    """Installs the rollups, changes the log through the table itself, and removes them again."""
    if context.shape.reads_only_role:
        return rollups_of_owner(context)
    database = context.copy()
    findings = Findings()
    with context.litespend.serve(database) as server:
        # What is wrong without rollups is said by the step before.
        before = reads.answers(server)
        context.command(database, "rollups", "install")
        time.sleep(NOTICE)
        findings.reads("with rollups", server, before, context.not_compared)
        findings.command(context, database, "rollups", "verify")
        change_log(database)
        findings.sums("after changes", server, database)
        findings.command(context, database, "rollups", "verify")
        database.execute('TRUNCATE "LiteLLM_SpendLogs"')
        findings.sums("after TRUNCATE", server, database)
        tries = remove_rollups(context, database)
        left = database.value("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'litespend%'")
        findings.expect("no triggers are left", left == 0, left)
        time.sleep(NOTICE)
        findings.sums("without rollups again", server, database)
        findings.finish(server)
    context.maker.drop(database)
    return f"`rollups remove` took {tries} tries" if tries > 1 else None


def rollups_of_owner(context):
    """A role that may only read can't install rollups. Where the owner did, it has to read rightly all the same."""
    database = context.copy()
    with context.litespend.serve(database) as server:
        before = reads.answers(server)
        context.command(database.of_owner(), "rollups", "install")
        time.sleep(NOTICE)
        context.check_reads(server, before)
        change_log(database)
        check_sums(server, database)
        for granted in ["USAGE ON SCHEMA litespend", "SELECT ON ALL TABLES IN SCHEMA litespend"]:
            database.of_owner().execute(f"GRANT {granted} TO PUBLIC")
        time.sleep(NOTICE)
        check_sums(server, database)
        # A scrape has counters where the server reads the rollups.
        if "litellm_spend_metric_total{" not in server.get("/metrics/spend").body.decode():
            raise Failed("the granted rollups are not read", "\n".join(server.warnings()))
    context.maker.drop(database)
    database = context.copy()
    try:
        context.command(database, "rollups", "install")
    finally:
        context.maker.drop(database)


def remove_rollups(context, database):
    """Removes the rollups beside a server that is counting. It may say that it has to be tried again. Returns how often
    it was tried."""
    for tries in range(1, 5):
        try:
            context.command(database, "rollups", "remove")
            return tries
        except Failed as error:
            if "try again" not in error.args[1] or tries == 4:
                raise


def change_log(database):
    """Inserts, updates and deletes rows as LiteLLM does, also so that they change to another day."""
    with database.connect(utc=False) as connection:
        new = [rows.log_row(number, rows.moment(number)) for number in range(600, 650)]
        rows.insert(connection, "LiteLLM_SpendLogs", new)
        connection.execute('UPDATE "LiteLLM_SpendLogs" SET spend = spend + 1 WHERE request_id LIKE \'req-01%\'')
        connection.execute(
            'UPDATE "LiteLLM_SpendLogs" SET "startTime" = "startTime" + interval \'1 day\' '
            "WHERE request_id LIKE 'req-021%'"
        )
        connection.execute('DELETE FROM "LiteLLM_SpendLogs" WHERE request_id LIKE \'req-03%\'')
        connection.execute('UPDATE "LiteLLM_DailyUserSpend" SET spend = spend + 1 WHERE id LIKE \'%-001%\'')
        connection.execute('DELETE FROM "LiteLLM_DailyUserSpend" WHERE id LIKE \'%-002%\'')


def partition_changes(context):
    """Changes that do not go through the table itself. Reads have to be right at once, and the server has to count the
    change soon."""
    if not context.shape.partitions:
        raise Skipped
    database = context.copy()
    events = PartitionEvents(database)
    findings = Findings()
    with context.litespend.serve(database) as server:
        context.command(database, "rollups", "install")
        time.sleep(NOTICE)
        expect_counting(findings, "after `rollups install`", server, database)
        for event in events.all():
            name = f"after {event.__doc__}"
            event()
            findings.sums(name, server, database)
            expect_counting(findings, name, server, database)
            findings.sums(f"{name}, counted", server, database)
        findings.command(context, database, "rollups", "verify")
        findings.finish(server)
    context.maker.drop(database)


# Whether the rollups count the log's partitions, and no day waits to be counted.
COUNTED = """
    SELECT litespend.partitions_are_counted('"LiteLLM_SpendLogs"')
       AND NOT EXISTS (SELECT FROM litespend.deltas WHERE sign = 0)"""


def expect_counting(findings, when, server, database):
    """Waits until sums are read from the rollups."""
    until = time.monotonic() + FOLLOWED
    counted = database.value(COUNTED)
    while not counted and time.monotonic() < until:
        time.sleep(0.2)
        counted = database.value(COUNTED)
    findings.expect(f"followed {when}", counted, f"within {FOLLOWED} s: {counted}")
    state = server.get("/health/readiness").json()["rollups"]
    findings.expect(f"counting {when}", state == "counting", state)


class PartitionEvents:
    """Changes of one partition after the other."""

    def __init__(self, database):
        self.database, self.kind = database, database.shape.partitions
        self.first = shapes.partition_of(rows.FIRST_DAY, self.kind)
        self.last_day = rows.FIRST_DAY + datetime.timedelta(days=rows.DAYS - 1)
        self.last = shapes.partition_of(self.last_day, self.kind)
        self.new_day = datetime.date(2026, 4, 1)
        self.new = shapes.partition_of(self.new_day, self.kind)

    def all(self):
        return [
            self.created, self.inserted, self.updated, self.deleted, self.detached, self.attached, self.truncated,
            self.dropped, self.moved, self.detached_elsewhere, self.detached_and_moved,
        ]

    def created(self):
        """a new partition"""
        with self.database.connect(utc=False) as connection:
            shapes.make_partition(connection, self.new_day, self.kind)
            start = datetime.datetime.combine(self.new_day, datetime.time(12))
            rows.insert(connection, "LiteLLM_SpendLogs", [rows.log_row(800, start)])

    def inserted(self):
        """INSERT into a partition"""
        with self.database.connect(utc=False) as connection:
            start = datetime.datetime.combine(rows.FIRST_DAY, datetime.time(12))
            rows.insert(connection, self.first, [rows.log_row(number, start) for number in range(700, 710)])

    def updated(self):
        """UPDATE of a partition"""
        self.database.execute(f'UPDATE "{self.first}" SET spend = spend + 1')

    def deleted(self):
        """DELETE from a partition"""
        self.database.execute(f'DELETE FROM "{self.first}" WHERE model = \'gpt-4o\'')

    def detached(self):
        """DETACH of a partition"""
        self.database.execute(f'ALTER TABLE "LiteLLM_SpendLogs" DETACH PARTITION "{self.last}"')

    def attached(self):
        """ATTACH of one with rows"""
        bounds = shapes.partition_bounds(self.last_day, self.kind)
        self.database.execute(
            f'ALTER TABLE "LiteLLM_SpendLogs" ATTACH PARTITION "{self.last}" FOR VALUES {bounds}'
        )

    def truncated(self):
        """TRUNCATE of a partition"""
        self.database.execute(f'TRUNCATE "{self.first}"')

    def dropped(self):
        """DROP of a partition"""
        self.database.execute(f'DROP TABLE "{self.last}"')

    def moved(self):
        """SET SCHEMA of a partition"""
        self.database.execute(
            "CREATE SCHEMA archive", f'ALTER TABLE "{self.new}" SET SCHEMA archive',
            f'UPDATE archive."{self.new}" SET spend = spend + 1',
        )

    def detached_elsewhere(self):
        """DETACH of a partition in another schema"""
        self.database.execute(
            f'ALTER TABLE "LiteLLM_SpendLogs" DETACH PARTITION archive."{self.new}"',
            f'UPDATE archive."{self.new}" SET spend = spend + 1',
        )

    def detached_and_moved(self):
        """DETACH and SET SCHEMA of a partition"""
        with self.database.connect(utc=False) as connection, connection.transaction():
            start = datetime.datetime.combine(rows.FIRST_DAY, datetime.time(13))
            rows.insert(connection, self.first, [rows.log_row(number, start) for number in range(720, 730)])
            connection.execute(f'ALTER TABLE "LiteLLM_SpendLogs" DETACH PARTITION "{self.first}"')
            connection.execute(f'ALTER TABLE "{self.first}" SET SCHEMA archive')


INDEXES = "SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'litespend_%'"
INVALID = "SELECT string_agg(indexrelid::regclass::text, ', ') FROM pg_index WHERE NOT indisvalid"


def indexes(context):
    """Advises, installs and removes indexes. A small table needs none, so there are more rows here."""
    database = context.copy()
    add_many_rows(database, "LiteLLM_SpendLogs", 20_000)
    database.execute('ANALYZE "LiteLLM_SpendLogs"')
    with context.litespend.serve(database) as server:
        advised = context.command(database, "indexes", "advise").count("CREATE INDEX")
        try:
            context.command(database, "indexes", "install")
        except Failed as error:
            left = database.value(INVALID)
            raise Failed(error.args[0], f"{error.args[1]}\n{advised} were advised; left invalid: {left}") from None
        if database.value(INVALID):
            raise Failed("invalid indexes", database.value(INVALID))
        again = context.command(database, "indexes", "advise").count("CREATE INDEX")
        made = database.value(INDEXES)
        check_sums(server, database)
        context.command(database, "indexes", "remove")
        left = database.value(INDEXES)
    context.maker.drop(database)
    if not advised or not made or again or left:
        raise Failed("indexes", f"{advised} advised, {made} made, {again} advised again, {left} left after remove")


def add_many_rows(database, table, count):
    """Adds rows of many days in one statement."""
    database.execute(f"""
        INSERT INTO "{table}" (request_id, call_type, api_key, spend, total_tokens, prompt_tokens, completion_tokens,
                               "startTime", "endTime", model, "user", team_id, end_user, request_tags, metadata)
        SELECT 'many-' || n, 'acompletion', 'key-' || n % 50, n % 1024 / 16.0, 3, 2, 1, moment, moment,
               'model-' || n % 7, 'user-' || n % 20, 'team-' || n % 5, 'customer-' || n % 100,
               CASE WHEN n % 3 = 0 THEN '["prod", "batch"]' ELSE '["prod"]' END::jsonb, '{{"status": "success"}}'
        FROM (SELECT n, timestamp '2026-02-24' + n % 10 * interval '1 day' + n % 86400 * interval '1 second' AS moment
              FROM generate_series(1, {count}) AS n) AS made""")


def booking(context):
    database = context.copy()
    with context.litespend.serve(database) as server:
        if context.shape.reads_only_role:
            context.command(database.of_owner(), "booking", "install")
            expect_refusal(server.post("/spend/usage", record("one")), server)
        context.command(database, "booking", "install")
        book_everything(context, server, database)
    context.maker.drop(database)


def expect_refusal(answer, server):
    """A role that may only read can't write: the answer has to say so, and that it is not the sender's fault."""
    if answer.status in (200, 500):
        raise Failed(f"answered with {answer.status}", "\n".join([str(answer), *server.warnings()]))
    raise Refused(str(answer))


def record(name, start="2026-03-01T10:00:00Z", **more):
    return {
        "model": "gpt-4o", "prompt_tokens": 8, "completion_tokens": 2, "cost": 0.5, "start_time": start,
        "idempotency_key": name, "api_key": rows.KEYS[0], "tags": ["prod"], **more,
    }


def book(server, sent, path="/spend/usage"):
    """The status of one record: recorded, duplicate or error."""
    answer = server.post(path, sent)
    if answer.status >= 500:
        raise Failed("booking fails", "\n".join([str(answer), *server.warnings()]))
    try:
        return answer.json()["results"][0]["status"]
    except (KeyError, IndexError):
        raise Refused(f"{answer}") from None


class Count:
    """How many rows, and which sums, were booked for a key."""

    def __init__(self, database, api_key=rows.KEYS[0]):
        self.database, self.api_key = database, api_key

    def rows(self, request_id):
        return self.database.value('SELECT count(*) FROM "LiteLLM_SpendLogs" WHERE request_id = %s', [request_id])

    def sums(self):
        """The rows and the spend of the log, of the daily rows, and of the key."""
        [log] = self.database.query(
            'SELECT count(*), COALESCE(sum(spend), 0) FROM "LiteLLM_SpendLogs" WHERE api_key = %s', [self.api_key])
        [daily] = self.database.query(
            'SELECT COALESCE(sum(api_requests), 0)::bigint, COALESCE(sum(spend), 0) FROM "LiteLLM_DailyUserSpend" '
            "WHERE api_key = %s", [self.api_key])
        [key] = self.database.query('SELECT spend FROM "LiteLLM_VerificationToken" WHERE token = %s', [self.api_key])
        return [*log, *daily, *key]


def book_everything(context, server, database):
    count = Count(database)
    before = count.sums()
    wrong = []

    def expect(what, found, wanted):
        if found not in (wanted if isinstance(wanted, tuple) else (wanted,)):
            wrong.append(f"{what}: {found} instead of {wanted}")

    expect("a new record", book(server, record("one")), "recorded")
    expect("sent again", book(server, record("one")), "duplicate")
    # Another record with the same id is refused: its digest differs.
    expect("sent again with another day", book(server, record("one", "2026-03-04T10:00:00Z")), ("duplicate", "error"))
    expect("rows of the record", count.rows("one"), 1)
    expect("the sums", [now - then for now, then in zip(count.sums(), before)], [1, 0.5, 1, 0.5, 0.5])
    book_concurrently(context, server, database, count, expect)
    book_as_sdk(server, count, expect)
    book_what_litellm_wrote(context, server, database, count, expect)
    if wrong:
        raise Failed("booking is wrong", "\n".join([*wrong, *server.warnings()]))


def book_concurrently(context, server, database, count, expect):
    """Each of 40 ids is sent three times at the same time, by way of two servers, with different days."""
    before = count.sums()
    sent = [record(f"many-{number}", f"2026-03-0{1 + number % 5}T10:00:00Z") for number in range(40) for _ in range(3)]
    with context.litespend.serve(database) as second, ThreadPoolExecutor(8) as pool:
        servers = [server, second] * (len(sent) // 2)
        statuses = list(pool.map(book, servers, sent))
    expect("recorded of 40 ids sent three times", statuses.count("recorded"), 40)
    expect("duplicates of 40 ids sent three times", statuses.count("duplicate"), 80)
    expect("their sums", [now - then for now, then in zip(count.sums(), before)], [40, 20.0, 40, 20.0, 20.0])
    expect("rows of an id", [count.rows(f"many-{number}") for number in range(40)], [1] * 40)


def book_as_sdk(server, count, expect):
    """What LiteLLM's SDK sends, twice, and once more with another day."""
    start = datetime.datetime(2026, 3, 3, 9, tzinfo=datetime.timezone.utc).timestamp()
    payload = {
        "id": "of-the-sdk", "call_type": "acompletion", "model": "gpt-4o", "prompt_tokens": 8, "completion_tokens": 2,
        "total_tokens": 10, "response_cost": 0.5, "status": "success", "startTime": start, "endTime": start + 1,
        "metadata": {"user_api_key_hash": rows.KEYS[0]},
    }
    later = {**payload, "startTime": start + 86400, "endTime": start + 86401}
    path = "/spend/usage/litellm"
    expect("a call of the SDK", book(server, payload, path), "recorded")
    expect("the SDK's call again", book(server, payload, path), "duplicate")
    expect("the SDK's call with another day", book(server, later, path), ("duplicate", "error"))
    expect("rows of the SDK's call", count.rows("of-the-sdk"), 1)


def book_what_litellm_wrote(context, server, database, count, expect):
    """An id of a row that LiteLLM itself wrote, and of a record whose id litespend no longer knows."""
    start = datetime.datetime(2026, 3, 2, 9)
    with database.connect(utc=False) as connection:
        own = {**rows.log_row(900, start), "request_id": "litellms-own", "api_key": rows.KEYS[0], "spend": 0.5}
        rows.insert(connection, "LiteLLM_SpendLogs", [own])
    before = count.sums()
    expect("an id of LiteLLM's", book(server, record("litellms-own", rows.stamp(start))), "duplicate")
    expect("an id of LiteLLM's, with another day",
           book(server, record("litellms-own", "2026-03-05T10:00:00Z")), ("duplicate", "error"))
    expect("rows of an id of LiteLLM's", count.rows("litellms-own"), 1)
    context.command(database, "booking", "remove")
    context.command(database, "booking", "install")
    expect("an id that is forgotten", book(server, record("one")), "duplicate")
    context.command(database, "booking", "remove")
    context.command(database, "booking", "install")
    expect("an id that is forgotten, with another day",
           book(server, record("one", "2026-03-05T10:00:00Z")), ("duplicate", "error"))
    expect("rows of a forgotten id", count.rows("one"), 1)
    expect("the sums after ids that were there", count.sums(), before)


def delivered(context):
    """LiteLLM's newer way to write, beside rollups; see deliveries.py."""
    if context.shape.is_old or context.shape.reads_only_role:
        raise Skipped
    database = context.copy()
    findings = Findings()
    with context.litespend.serve(database) as server, database.connect(utc=False) as connection:
        connection.execute(deliveries.TABLE)
        context.command(database, "rollups", "install")
        time.sleep(NOTICE)
        DeliveryEvents(findings, server, database, connection).all()
        findings.command(context, database, "rollups", "verify")
        findings.finish(server)
    context.maker.drop(database)


class DeliveryEvents:
    """What LiteLLM's writers do, one after the other, with how many rows each adds to the log."""

    def __init__(self, findings, server, database, connection):
        self.findings, self.server, self.database, self.connection = findings, server, database, connection

    def all(self):
        log = 'SELECT count(*) FROM "LiteLLM_SpendLogs"'
        for event, added in [
            (self.flushed, 60), (self.flushed_again, 20), (self.without_deliveries, 10), (self.undone, 0),
            (self.two_writers, 40), (self.charged_batch, 2), (self.not_applied, 0), (self.applied, 0), (self.cleaned_up, 0),
        ]:
            before = self.database.value(log)
            event()
            found = self.database.value(log) - before
            self.findings.expect(f"rows of {event.__doc__}", found == added, f"{found} instead of {added}")
            self.findings.sums(f"after {event.__doc__}", self.server, self.database)

    def expect(self, what, found, wanted):
        self.findings.expect(what, found == wanted, f"{found} instead of {wanted}")

    def flush(self, *arguments, **named):
        return deliveries.flush(self.connection, *arguments, **named)

    def flushed(self):
        """a flush"""
        self.expect("accepted deliveries", self.flush(deliveries.calls(2000, 60)), 60)

    def flushed_again(self):
        """a flush with rows that are there"""
        self.expect("accepted of rows that are there", self.flush(deliveries.calls(2000, 80)), 20)

    def without_deliveries(self):
        """a flush without deliveries, also of rows that are there"""
        rows.insert(self.connection, "LiteLLM_SpendLogs", deliveries.calls(2060, 30), skip_duplicates=True)

    def undone(self):
        """a flush that was rolled back"""
        try:
            self.flush(deliveries.calls(2100, 30), undo=True)
        except deliveries.Undone:
            pass

    def two_writers(self):
        """two flushes of the same rows at the same time"""
        def flush(_):
            with self.database.connect(utc=False) as connection:
                return deliveries.flush(connection, deliveries.calls(2200, 40))

        with ThreadPoolExecutor(2) as pool:
            self.expect("accepted of two writers", sorted(pool.map(flush, range(2))), [0, 40])

    def charged_batch(self):
        """a batch that was charged before, and a new one"""
        [charged, new] = [{**row, "status": "success"} for row in deliveries.calls(2300, 2)]
        rows.insert(self.connection, "LiteLLM_SpendLogs", [charged])
        self.expect("accepted batches", self.flush([charged, new], is_batch=True), 1)

    def not_applied(self):
        """deliveries that could not be applied"""
        try:
            deliveries.apply_pending(self.connection, undo=True)
        except deliveries.Undone:
            claimed = [name for (name,) in self.connection.execute(deliveries.CLAIM, [5])]
            self.connection.execute(deliveries.RETRY, [claimed])

    def applied(self):
        """the deliveries"""
        spent = 'SELECT (SELECT sum(spend) FROM "LiteLLM_VerificationToken"), sum(spend) FROM "LiteLLM_DailyUserSpend"'
        pending = "SELECT sum((accounting_payload ->> 'spend')::float) FROM \"LiteLLM_SpendLogDelivery\""
        [before], wanted = self.database.query(spent), self.database.value(pending)
        applied = [deliveries.apply_pending(self.connection, 50) for _ in range(4)]
        self.expect("applied deliveries", applied, [50, 50, 21, 0])
        [after] = self.database.query(spent)
        self.expect("what they add to keys and days", [now - then for now, then in zip(after, before)], [wanted, wanted])

    def cleaned_up(self):
        """the removal of what was applied"""
        self.connection.execute(deliveries.CLEAN_UP)
        left = self.database.value('SELECT count(*) FROM "LiteLLM_SpendLogDelivery"')
        self.expect("deliveries that are left: the batch", left, 1)


def reset(context):
    database = context.copy()
    spent = 'SELECT (SELECT sum(spend) FROM "LiteLLM_VerificationToken") + (SELECT sum(spend) FROM "LiteLLM_TeamTable")'
    with context.litespend.serve(database) as server:
        answer = server.post("/global/spend/reset")
        if answer.status != 200:
            expect_refusal(answer, server)
        left = database.value(spent)
    context.maker.drop(database)
    if left:
        raise Failed(f"{left} spend is left")


def upgrade(context):
    """Applies LiteLLM's later migrations while the server runs: without anything of litespend's in the database, and with
    rollups and booking."""
    if not context.shape.is_old:
        raise Skipped
    noted = upgrade_without_rollups(context)
    upgrade_with_rollups(context)
    return "; ".join(noted)


def upgrade_without_rollups(context):
    database = context.copy()
    findings = Findings()
    with context.litespend.serve(database) as server:
        for _ in range(2):
            reads.answers(server)
        noted = apply_later_migrations(context, database)
        compared = context.expected, context.not_compared
        findings.reads("after the upgrade", server, *compared)
        for _ in range(3):
            reads.answers(server)
        findings.reads("after the upgrade, the fifth time", server, *compared)
        findings.sums("after the upgrade", server, database)
        findings.command(context, database, "rollups", "install")
        time.sleep(NOTICE)
        findings.sums("after the upgrade and `rollups install`", server, database)
        findings.command(context, database, "rollups", "verify")
        findings.command(context, database, "booking", "install")
        findings.booking(context, server, database)
        findings.details += noted
        findings.finish(server)
    context.maker.drop(database)
    return noted


def upgrade_with_rollups(context):
    database = context.copy()
    findings = Findings()
    with context.litespend.serve(database) as server:
        context.command(database, "rollups", "install")
        context.command(database, "booking", "install")
        time.sleep(NOTICE)
        before = book(server, record("before-the-upgrade"))
        findings.expect("booked before the upgrade", before == "recorded", before)
        reads.answers(server)
        noted = apply_later_migrations(context, database)
        again = book(server, record("before-the-upgrade"))
        findings.expect("booked before the upgrade, sent again after it", again == "duplicate", again)
        findings.sums("after the upgrade with rollups", server, database)
        change_log(database)
        findings.sums("after the upgrade with rollups, and changes", server, database)
        expect_counting(findings, "after the upgrade with rollups", server, database)
        findings.command(context, database, "rollups", "verify")
        findings.booking(context, server, database)
        findings.command(context, database, "rollups", "verify")
        findings.details += noted
        findings.finish(server)
    context.maker.drop(database)


def apply_later_migrations(context, database):
    """Applies the migrations that the database does not have. Returns a line for each that fails."""
    noted = []
    applied = {row[0] for row in database.query("SELECT migration_name FROM _prisma_migrations")}
    for name, script in context.maker.packages.migrations(shapes.NEWEST):
        if name not in applied:
            try:
                shapes.apply_migration(database, name, script)
            except psycopg.Error as error:
                noted.append(f"LiteLLM's own migration {name} fails: {str(error).splitlines()[0]}")
    return noted


def runbook(context):
    """LiteLLM's runbook on a plain database with rollups: renaming the log takes the triggers away."""
    if not context.shape.is_plain_newest:
        raise Skipped
    database = context.copy()
    findings = Findings()
    with context.litespend.serve(database) as server:
        context.command(database, "rollups", "install")
        time.sleep(NOTICE)
        before = rollup_metrics(server)
        with database.connect(utc=False) as connection:
            shapes.partition(connection, "day")
        findings.sums("after the rename", server, database)
        with database.connect(utc=False) as connection:
            shapes.backfill(connection)
        change_log(database)
        findings.sums("after the backfill", server, database)
        wait_for_warning(server)
        says_lost(context, database, server, before, findings.expect)
        findings.command(context, database, "rollups", "install")
        time.sleep(NOTICE)
        findings.sums("after `rollups install`", server, database)
        change_more(database)
        findings.sums("after `rollups install` and a change", server, database)
        findings.command(context, database, "rollups", "verify")
        database.execute(f'DROP TABLE "{shapes.LEGACY}"')
        findings.sums("after the drop of the legacy table", server, database)
        ended = context.litespend.run(database, "rollups", "install")
        findings.expect("`rollups install` after the drop", ended.code == 0, ended.last_line())
        findings.finish(server)
    context.maker.drop(database)
    runbook_to_its_end(context)


def runbook_to_its_end(context):
    """The whole runbook before a server looks: no table with triggers is left."""
    database = context.copy()
    findings = Findings()
    with context.litespend.serve(database) as server:
        context.command(database, "rollups", "install")
        time.sleep(NOTICE)
        before = rollup_metrics(server)
        with database.connect(utc=False) as connection:
            shapes.partition(connection, "day")
            shapes.backfill(connection)
            connection.execute(f'DROP TABLE "{shapes.LEGACY}"')
        findings.sums("after the whole runbook", server, database)
        wait_for_warning(server)
        says_lost(context, database, server, before, findings.expect)
        time.sleep(NOTICE)
        says_lost(context, database, server, before, findings.expect)
        findings.command(context, database, "rollups", "install")
        time.sleep(NOTICE)
        expect_counting(findings, "after the whole runbook and `rollups install`", server, database)
        change_more(database)
        findings.sums("after the whole runbook, `rollups install` and a change", server, database)
        findings.command(context, database, "rollups", "verify")
        findings.finish(server)
    context.maker.drop(database)


def rollup_metrics(server):
    lines = server.get("/metrics").body.decode().splitlines()
    return {line for line in lines if line.startswith("litespend_rollups")}


def warnings_of_rollups(server):
    return [line for line in server.warnings() if "rollup" in line.lower() or "trigger" in line.lower()]


def wait_for_warning(server):
    """What a server looks for while nothing waits, it looks for every 32 s at least."""
    until = time.monotonic() + 36
    while time.monotonic() < until and not warnings_of_rollups(server):
        time.sleep(0.5)


def says_lost(context, database, server, before, expect):
    """Whether the log, readiness, the metrics and `rollups verify` say that the log is not counted any more."""
    about = warnings_of_rollups(server)
    expect("the server's log says it", bool(about), about)
    ready = server.get("/health/readiness")
    expect("/health/readiness says it", ready.json().get("rollups") == "lost", ready)
    changed = sorted(rollup_metrics(server) - before)
    backlog = ("deltas", "days_to", "lock_held", "failures")
    said = any(not any(word in line for word in backlog) for line in changed)
    expect("the metrics say it", said, changed)
    verified = context.litespend.run(database, "rollups", "verify")
    # Its own schema is not another one.
    misleading = "in the schema public" in verified.last_line() or "has no rollups" in verified.last_line()
    expect("`rollups verify` says it", verified.code != 0 and not misleading,
           f"exit code {verified.code}: {verified.last_line()}")


def change_more(database):
    with database.connect(utc=False) as connection:
        rows.insert(connection, "LiteLLM_SpendLogs", [rows.log_row(number) for number in range(1000, 1020)])


def backfill_time(context):
    """The runbook's backfill of many rows in one statement, with and without rollups."""
    if not context.shape.is_plain_newest:
        raise Skipped
    # The shortest of two, because other programs use the machine as well.
    took = {with_rollups: min(backfill_once(context, with_rollups) for _ in range(2)) for with_rollups in [False, True]}
    note = f"{BACKFILL_ROWS} rows: {took[False]:.1f} s without rollups, {took[True]:.1f} s with"
    if took[True] > BACKFILL_RATIO * took[False]:
        raise Failed(f"the backfill takes more than {BACKFILL_RATIO} times as long with rollups", note)
    return note


def backfill_once(context, with_rollups):
    """Seconds that the backfill takes."""
    database = context.copy()
    database.execute('TRUNCATE "LiteLLM_SpendLogs"')
    add_many_rows(database, "LiteLLM_SpendLogs", BACKFILL_ROWS)
    with database.connect(utc=False) as connection:
        shapes.partition(connection, "day")
        if with_rollups:
            context.command(database, "rollups", "install")
        started = time.monotonic()
        shapes.backfill(connection)
        took = time.monotonic() - started
    if with_rollups:
        deltas = database.value("SELECT count(*) FROM litespend.deltas WHERE sign <> 0")
        if deltas != BACKFILL_ROWS:
            raise Failed("the backfill is not counted", f"{deltas} deltas of {BACKFILL_ROWS} rows")
        with context.litespend.serve(database) as server:
            check_sums(server, database)
    context.maker.drop(database)
    return took


COLUMNS = {
    "start": start, "reads": read, "recordings": recorded_reads, "rollups": rollups, "partitions": partition_changes,
    "deliveries": delivered, "indexes": indexes, "booking": booking, "reset": reset, "upgrade": upgrade,
    "runbook": runbook, "backfill": backfill_time,
}
ONLY_READS = ["start", "reads"]
