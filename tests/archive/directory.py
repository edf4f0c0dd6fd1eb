"""An archive in a directory: its sums and rows by other engines, before and after the rows leave the log."""

import datetime
import random
from urllib.parse import quote

import calls
import engines
import reads
import rows as shared
import sums
from outcome import ended, unequal, without

LATE_DAY = datetime.date(2026, 3, 2)
# Until midnight: the sums of sessions include archived calls within these times only.
TIMES = f"start_date={calls.FIRST_DAY}%2000:00:00&end_date={calls.OPEN_DAY}%2000:00:00"
BODIES = ("messages", "response", "proxy_server_request")
ROWS = [
    f"/spend/logs?{sums.RANGE}&summarize=false&user_id={quote(user)}" for user in ("user'4", "line\nbreak")
] + [
    f"/spend/logs?{sums.RANGE}&summarize=false&api_key={quote(calls.KEYS[2])}",
    f"/spend/logs?{sums.RANGE}&summarize=false&limit=500",
    f"/spend/logs/ui?{TIMES}&page=2&page_size=100",
    f"/spend/logs/v2?{TIMES}&page_size=100&end_user={quote('顧客')}",
    "/spend/logs/session/ui?session_id=session-8&page=1&page_size=50",
]
IDS = [calls.request_id(number) for number in (0, 1, 2, 3, 4, 25, 97, 98, 99, 166, 178, 1000, 2222, 3003)]


def row_paths():
    """Reads of rows: of several, and of one by its id, also by the id that LiteLLM's client knows."""
    return [
        *ROWS, *(f"/spend/logs?request_id={quote(name, safe='')}" for name in [*IDS, "litellm-3"]),
        *(f"/spend/logs/ui/{quote(name, safe='')}?start_date={calls.FIRST_DAY}%2000:00:00" for name in IDS[:4]),
    ]


def read_rows(server):
    found = {path: server.get(path) for path in row_paths()}
    empty = [path for path, answer in found.items() if answer.status == 200 and answer.body in (b"[]", b"{}", b"null")]
    refused = [f"{path}: {answer}" for path, answer in found.items() if answer.status != 200]
    return found, "\n".join([*refused, *(f"{path} answers nothing" for path in empty)])


def row_differences(wanted, found):
    """What differs, but for bodies that are null: see `null_bodies`."""
    lines = []
    for path, answer in wanted.items():
        other = found[path]
        if answer.status != other.status:
            lines.append(f"{path}: {other}")
        elif without_nulls(answer.json(), answer.json()) != without_nulls(other.json(), answer.json()):
            lines.append(f"{path}: {reads.first_difference(answer.json(), other.json())}")
    return "\n".join(lines)


def without_nulls(value, wanted):
    """The value without the bodies that are null in the wanted one. A session may be added up in any order."""
    if isinstance(value, dict) and isinstance(wanted, dict):
        return {
            name: float(f"{member:.10g}") if name == "session_total_spend" else without_nulls(member, wanted.get(name))
            for name, member in value.items()
            if not (name in BODIES and name in wanted and wanted[name] is None)
        }
    if isinstance(value, list) and isinstance(wanted, list) and len(value) == len(wanted):
        return [without_nulls(member, other) for member, other in zip(value, wanted)]
    return value


def null_bodies(wanted, found):
    """What the rows have in place of bodies that were null."""
    changed = {}
    for path in wanted:
        if path.startswith("/spend/logs?request_id="):
            for row, other in zip(wanted[path].json(), found[path].json()):
                for name in BODIES:
                    if row[name] is None and other[name] is not None:
                        changed[row["request_id"], name] = other[name]
    first = next(iter(changed.items()), None)
    return f"{len(changed)} are not null any more, first {first[0]}: {first[1]!r}" if first else ""


class Directory:
    """The checks, in their order: each goes on where the one before it ended."""

    def __init__(self, outcome, program, database, archive, flags=()):
        self.outcome, self.database, self.archive, self.flags = outcome, database, archive, flags
        self.program = program.with_archive(archive)
        self.check = outcome.check
        self.known, self.changed = set(), set()

    def close(self):
        through = ("close", "--through", str(calls.LAST_CLOSED), "--archive-bodies")
        return self.program.books(self.database, *through)

    def run(self):
        with self.database.connect() as connection:
            self.known = shared.columns(connection)["LiteLLM_SpendLogs"]
        with self.program.with_archive("").serve(self.database) as server:
            open_sums = sums.read(server)
        ended_close = self.close()
        self.check("books close", ended(ended_close) or without(ended_close.output, f"{calls.LAST_CLOSED} closed"))
        with self.program.serve(self.database) as server:
            closed_sums = sums.read(server)
            self.same_sums("closing", open_sums, closed_sums)
            closed_rows, wrong = read_rows(server)
            self.check("every read of rows answers some", wrong)
        self.engines(closed_sums)
        self.opened()
        log = engines.logged(self.database, calls.FIRST_DAY, calls.LAST_CLOSED, self.known)
        self.prune()
        with self.program.serve(self.database) as server:
            pruned_sums = sums.read(server)
            self.changed = self.same_sums("pruning", closed_sums, pruned_sums)
            found, _ = read_rows(server)
            self.check(f"pruning changes no row of {len(found)} reads", row_differences(closed_rows, found))
            self.check("a body that is null stays null", null_bodies(closed_rows, found))
        self.engines(closed_sums, log)
        self.late()
        self.damage()

    def same_sums(self, what, wanted, found):
        """Checks that every sum is what it was. Returns the names of those that are not."""
        changed = set()
        for name in sums.PATHS:
            one, other = sums.answered(name, wanted[name]), sums.answered(name, found[name])
            if not self.check(f"{what} does not change: {name}", sums.difference(name, one, other)):
                changed.add(name)
        return changed

    def engines(self, answers, log=None):
        """Compares sums and rows with each engine."""
        if log is None:
            log = engines.logged(self.database, calls.FIRST_DAY, calls.LAST_CLOSED, self.known)
        for name, kind in engines.ENGINES.items():
            engine = kind(self.program.schema(name))
            try:
                for figure, read in sums.Summed(engine).all().items():
                    wanted = sums.answered(figure, answers[figure])
                    self.check(f"{engine.name}, {figure}: {len(wanted)} sums",
                               sums.difference(figure, wanted, read) if wanted else "there are no sums")
                found = engines.archived(engine)
                self.check(f"{engine.name}: {len(found)} rows, each column", engines.first_difference(log, found))
                [(wrong,)] = engine.rows(
                    f"SELECT count(*) FROM spend_logs WHERE CAST(day AS String) <> {engine.date('startTime')}")
                self.check(f"{engine.name}: rows are in the directories of their days", unequal(0, wrong))
            finally:
                engine.close()

    def prune(self):
        in_log = self.database.value('SELECT count(*) FROM "LiteLLM_SpendLogs"')
        dry = self.program.books(self.database, "prune", "--keep-days", "0", "--dry-run", *self.flags)
        left = self.database.value('SELECT count(*) FROM "LiteLLM_SpendLogs"')
        self.check("books prune --dry-run", ended(dry) or without(dry.output, "would") or unequal(in_log, left))
        self.check("books prune", ended(self.program.books(self.database, "prune", "--keep-days", "0", *self.flags)))
        left = self.database.query(
            'SELECT count(*) FILTER (WHERE "startTime" < %s::text::date + 1), count(*) FROM "LiteLLM_SpendLogs"',
            [str(calls.LAST_CLOSED)])[0]
        self.check("the log has rows of open days only", "" if left[0] == 0 < left[1] else f"{left}")
        self.verified("after pruning")

    def verified(self, when):
        self.check(f"books verify {when}", ended(self.program.books(self.database, "verify")))

    def opened(self):
        """A day that is opened again is not in the archive for other engines, until it is closed again."""
        day = str(LATE_DAY)
        log = engines.logged(self.database, calls.FIRST_DAY, calls.LAST_CLOSED, self.known)
        of_day = engines.logged(self.database, LATE_DAY, LATE_DAY, self.known)
        for what, command, wanted in [
            ("opened", lambda: self.program.books(self.database, "reopen", day, "--why", "a check"),
             {name: row for name, row in log.items() if name not in of_day}),
            ("closed again", self.close, log),
        ]:
            self.check(f"{day} is {what}", ended(command()) or ("" if of_day else "the day has no rows"))
            for name, kind in engines.ENGINES.items():
                engine = kind(self.program.schema(name))
                try:
                    found = engines.archived(engine)
                    self.check(f"{engine.name}: {len(found)} rows after {day} was {what}",
                               engines.first_difference(wanted, found))
                finally:
                    engine.close()
            self.verified(f"after {day} was {what}")

    def late(self):
        """A row that is booked, and one that LiteLLM writes, after their day was closed and pruned."""
        record = {
            "model": "gpt-4o", "prompt_tokens": 80, "completion_tokens": 20, "cost": 0.5,
            "start_time": f"{LATE_DAY}T23:59:59.999Z", "idempotency_key": "late-booked", "api_key": calls.KEYS[0],
            "tags": ["prod", "late"],
        }
        with self.program.serve(self.database) as server:
            answer = server.post("/spend/usage", record)
            self.check("a late record is booked", without(str(answer), '"status":"recorded"'))
            with self.database.connect() as connection:
                row = calls.call(calls.CALLS, random.Random(1))
                start = datetime.datetime.combine(LATE_DAY, datetime.time())
                row |= {"request_id": "late-logged", "startTime": start, "spend": 0.25, "user": "user-1"}
                calls.insert_calls(connection, [row])
            answer = server.get("/spend/logs?request_id=late-logged")
            self.check("a late row is answered", without(str(answer), "late-logged"))
        [booked] = self.database.query("SELECT request_id FROM \"LiteLLM_SpendLogs\" WHERE \"startTime\"::date = %s "
                                       "AND request_id <> 'late-logged'", [LATE_DAY])
        status = self.program.books(self.database, "status")
        late = [line for line in status.output.splitlines() if line.startswith(f"{LATE_DAY}  late")]
        self.check("books status lists the late rows", "" if late and " +2 requests" in late[0] else status.output)
        engine = engines.DuckDb(self.program.schema("duckdb"))
        self.check("the archive does not have late rows yet", unequal([], self.late_rows(engine, booked[0])))
        engine.close()
        self.check("books close with late rows", ended(self.close()))
        log = engines.logged(self.database, LATE_DAY, LATE_DAY, self.known)
        for name, kind in engines.ENGINES.items():
            engine = kind(self.program.schema(name))
            self.check(f"{engine.name} has late rows after the next close",
                       unequal(sorted(log), self.late_rows(engine, booked[0])))
            found = engines.archived(engine)
            self.check(f"{engine.name}: each column of late rows",
                       engines.first_difference(log, {name: row for name, row in found.items() if name in log}))
            with self.program.serve(self.database) as server:
                answers = sums.read(server)
            lines = [
                f"{figure}: {wrong}" for figure, read in sums.Summed(engine).all().items()
                if figure not in self.changed
                and (wrong := sums.difference(figure, sums.answered(figure, answers[figure]), read))
            ]
            self.check(f"{engine.name}: all sums with late rows", "\n".join(lines))
            engine.close()
        self.verified("with late rows")
        self.check("books prune with late rows",
                   ended(self.program.books(self.database, "prune", "--keep-days", "0", *self.flags)))
        left = self.database.value('SELECT count(*) FROM "LiteLLM_SpendLogs" WHERE "startTime"::date = %s', [LATE_DAY])
        self.check("late rows leave the log, too", unequal(0, left))

    def late_rows(self, engine, booked):
        ids = ", ".join(f"'{name}'" for name in (booked, "late-logged"))
        found = engine.rows(f"SELECT request_id FROM spend_logs WHERE day = '{LATE_DAY}' AND request_id IN ({ids})")
        return sorted(row[0] for row in found)

    def damage(self):
        day = calls.FIRST_DAY + datetime.timedelta(days=2)
        file = max((self.archive / "spend_logs" / f"day={day}").glob("*.parquet"), key=lambda path: path.stat().st_size)
        name = str(file.relative_to(self.archive))
        good = file.read_bytes()
        for what, place in [("in the middle", len(good) // 2), ("at the start", 0), ("at the end", len(good) - 1)]:
            bad = bytearray(good)
            bad[place] ^= 1
            file.write_bytes(bad)
            self.names(f"a flipped bit {what}", name)
            self.put_right(file, good)
        file.write_bytes(good[:-100])
        self.names("a file that is cut off", name)
        self.put_right(file, good)
        file.unlink()
        self.names("a missing file", name)
        self.put_right(file, good)

    def names(self, what, name):
        verified = self.program.books(self.database, "verify")
        self.check(f"books verify names {what}", ended(verified, 1) or without(verified.output + verified.errors, name))

    def put_right(self, file, good):
        file.write_bytes(good)
        cleared = self.program.run(None, "archive", "clear-damage")
        self.check("after it was put right, nothing is wrong",
                   ended(cleared) or ended(self.program.books(self.database, "verify")))
