"""Archives on object stores: the same steps on each."""

import calls
import directory
import engines
import sums
from outcome import ended, without

# A day of few calls with long texts, whose file is sent in several parts.
LARGE_DAY = "2026-02-20"


def check_store(outcome, program, database, store):
    check = outcome.check
    there = program.with_archive(store.url, store.settings())
    with program.serve(database) as server:
        wanted_sums = sums.read(server)
    closed = there.books(database, "close", "--through", str(calls.LAST_CLOSED), "--archive-bodies")
    if not check("books close", ended(closed) or without(closed.output, f"{LARGE_DAY} closed")):
        return
    check("books verify", ended(there.books(database, "verify")))
    with there.serve(database) as server:
        wanted, wrong = directory.read_rows(server)
        large = server.get("/spend/logs?request_id=large-3")
        check("every read of rows answers some", wrong)
    check("books prune", ended(there.books(database, "prune", "--keep-days", "0")))
    left = database.value('SELECT count(*) FROM "LiteLLM_SpendLogs" WHERE "startTime" < %s::text::date + 1',
                          [str(calls.LAST_CLOSED)])
    check("the log has rows of open days only", f"{left} are left" if left else "")
    check("books verify after pruning", ended(there.books(database, "verify")))
    with there.serve(database) as server:
        found, _ = directory.read_rows(server)
        check(f"pruning changes no row of {len(found)} reads", directory.row_differences(wanted, found))
        again = server.get("/spend/logs?request_id=large-3")
        same = again.body == large.body and b"large-3" in again.body
        check("a row of a file of several parts", "" if same else f"{again} instead of {large}")
        found_sums = sums.read(server)
    lines = [
        f"{figure}: {wrong}" for figure in sums.PATHS
        if (wrong := sums.difference(figure, sums.answered(figure, wanted_sums[figure]),
                                     sums.answered(figure, found_sums[figure])))
    ]
    check("pruning changes no report", "\n".join(lines))
    reopened = there.books(database, "reopen", LARGE_DAY, "--why", "to see its rows in the log")
    check("books reopen brings rows back", ended(reopened) or without(reopened.output, "6 rows came back"))
    clickhouse(outcome, there, store, wanted_sums)


def clickhouse(outcome, there, store, answers):
    """ClickHouse's engine reads the store itself."""
    statements = store.for_clickhouse(there.schema("clickhouse"))
    if statements is None:
        return
    engine = engines.ClickHouse(statements)
    try:
        lines = [
            f"{figure}: {wrong}" for figure, read in sums.Summed(engine).all().items()
            if (wrong := sums.difference(figure, sums.answered(figure, answers[figure]), read))
        ]
        outcome.check(f"ClickHouse reads {store.scheme}://, all sums", "\n".join(lines))
    finally:
        engine.close()
