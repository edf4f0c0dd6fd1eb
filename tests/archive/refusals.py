"""Places where no archive can be written: commands and servers say so at start, in one line. A server starts all the same
if the place may be there later."""

import os
import socket
from contextlib import contextmanager

import calls
from litespend import NotStarted
from outcome import without
from postgresql import free_port, ordinary_account

# A start that fails ends within this time, whatever the place does.
LIMIT = 60


def said_in_one_line(command, seconds, parts):
    """What is wrong with how a command refused the place."""
    lines = command.errors.strip().splitlines()
    if seconds > LIMIT or command.code in (None, 0) or command.code < 0:
        return f"exit code {command.code} after {seconds:.0f} s: {command.errors.strip()}"
    if len(lines) != 1 or not lines[0].startswith("litespend: ") or "panicked" in lines[0]:
        return f"{len(lines)} lines: {command.errors.strip()}"
    if "hunter2" in lines[0]:
        return f"it repeats a secret: {lines[0]}"
    missing = [part for part in parts if part not in lines[0]]
    return f"{missing[0]!r} is not in: {lines[0]}" if missing else ""


CLOSE = ("books close", ["books", "close", "--through", str(calls.LAST_CLOSED)])
SERVE = ("serve --close-after", ["serve", "--port", "0", "--close-after", "3"])


def check_place(outcome, program, database, what, parts, ways=(CLOSE, SERVE)):
    """Both ways in which days are closed."""
    for name, arguments in ways:
        ended, seconds = program.timed(database, *arguments, limit=LIMIT + 5)
        if not outcome.check(f"{name}: {what} ({seconds:.1f} s)", said_in_one_line(ended, seconds, parts)):
            continue
        print(f"      {ended.errors.strip()}", flush=True)


def check_away(outcome, program, database, what, parts):
    """A command needs the store at once. A server starts without it, and says so."""
    check_place(outcome, program, database, what, parts, [CLOSE])
    closing = program.with_archive(program.archive, program.settings | {"LITESPEND_CLOSE_AFTER": "3"})
    try:
        with closing.serve(database) as server:
            found = without(server.log(), "the archive is away")
            found = found or ("it repeats a secret" if "hunter2" in server.log() else "")
            outcome.check(f"serve --close-after starts: {what}", found or without(str(server.get("/spend/tags")), "200"))
    except NotStarted as error:
        outcome.check(f"serve --close-after starts: {what}", f"{error}")


@contextmanager
def silent_port():
    """A port that takes connections and answers nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        yield listener.getsockname()[1]


def of_amazon(port):
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "made-up", "AWS_SECRET_ACCESS_KEY": "hunter2-secret",
    }


def of_azure(port):
    return {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": f"http://127.0.0.1:{port}"}


def check_directories(outcome, program, database, home):
    closed = home / "read-only"
    closed.mkdir(mode=0o555)
    account = ordinary_account()
    if account:
        os.chmod(program.program, 0o755)
    there = program.with_archive(closed, account=account)
    check_place(outcome, there, database, "a read-only directory", ["--archive", str(closed)])
    there = program.with_archive(closed / "below", account=account)
    check_place(outcome, there, database, "a directory in it that cannot be made", ["--archive", "ermission denied"])
    file = home / "a-file"
    file.write_text("")
    check_place(outcome, program.with_archive(file), database, "a file", ["--archive", str(file)])


def check_urls(outcome, program, database):
    for url, part in [
        ("ftp://127.0.0.1/books", "the scheme ftp is unknown"), ("s3:///books", "names no bucket"),
        ("s3://key:hunter2@books/place", "AWS_ACCESS_KEY_ID"),
        ("http://127.0.0.1:1/books", "the scheme http is unknown"), ("s3://books?secret=hunter2", "AWS_ACCESS_KEY_ID"),
    ]:
        check_place(outcome, program.with_archive(url), database, f"the URL {url}", ["--archive", part])


def check_endpoints(outcome, program, database):
    closed = free_port()
    for url, settings in [("s3://books/a", of_amazon(closed)), ("az://books/a", of_azure(closed))]:
        there = program.with_archive(url, settings)
        check_away(outcome, there, database, f"nothing listens for {url[:2]}", ["--archive", url, "unavailable"])
    with silent_port() as port:
        for url, settings in [("s3://books/a", of_amazon(port)), ("az://books/a", of_azure(port))]:
            there = program.with_archive(url, settings)
            check_away(outcome, there, database, f"nothing answers for {url[:2]}", ["--archive", url, "unavailable"])
    # Credentials are then asked for at the machine's metadata service, whose address is not to be left as it is.
    nobody = {"AWS_METADATA_ENDPOINT": f"http://127.0.0.1:{closed}", "AWS_REGION": "us-east-1"}
    check_away(outcome, program.with_archive("s3://books/a", nobody), database, "no credentials for s3", ["--archive"])


def check_store(outcome, program, database, store):
    """Refusals of a store that answers."""
    there = program.with_archive(store.url_of("nobodys-bucket"), store.settings())
    check_place(outcome, there, database, "a bucket that does not exist", ["--archive", "nobodys-bucket"])
    if store.scheme == "s3":
        settings = store.settings() | {"AWS_CONDITIONAL_PUT": "disabled"}
        there = program.with_archive(store.url, settings)
        check_place(outcome, there, database, "a store without conditional writes", ["--archive"])
