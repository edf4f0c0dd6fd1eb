"""Runs the steps on every database, and prints a table of what worked."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import reads
import rows
import steps
from litespend import Litespend
from packages import Packages
from postgresql import Cluster, Pgbouncer
from shapes import NEWEST, SHAPES, Maker, Shape


@dataclass
class Cell:
    """The outcome of a step."""

    word: str  # ok, refused, FAIL, skipped, or nothing
    note: str = ""
    details: str = ""

    def __str__(self):
        note = self.note.replace("|", "\\|").replace("\n", " ")
        note = note if len(note) <= 400 else note[:399] + "…"
        return f"{self.word}: {note}" if note else self.word


def run_step(step, context):
    try:
        note = step(context) or ""
        return Cell("ok", note, note)
    except steps.Refused as error:
        return Cell("refused", str(error))
    except steps.Skipped:
        return Cell("")
    except steps.Failed as error:
        return Cell("FAIL", error.args[0], "\n".join(error.args[1:]))
    except Exception as error:
        return Cell("FAIL", f"{type(error).__name__}: {str(error)[:200]}", traceback.format_exc())


class Run:
    """One run on one cluster."""

    def __init__(self, cluster, packages, litespend):
        self.cluster, self.litespend = cluster, litespend
        self.maker = Maker(cluster, packages)
        self.expected = {}
        self.bouncers = []

    def reference(self, version):
        """The answers of the plain newest database, and the columns that this version does not have. A database of
        an older version has fewer columns: then the reference has no values in the others."""
        if version not in self.expected:
            known = self.maker.columns(version)
            newest = self.maker.columns(NEWEST)
            database = self.maker.make(Shape("reference"), fill=partial(rows.fill, known=known))
            with self.litespend.serve(database) as server:
                answers = reads.answers(server)
            refused = [f"{path}: {answer}" for path, answer in answers.items() if answer.status != 200]
            if refused and version == NEWEST:
                raise RuntimeError("the reference refuses reads:\n" + "\n".join(refused))
            self.maker.drop(database)
            missing = {name for table, names in newest.items() for name in names - known.get(table, names)}
            self.expected[version] = answers, frozenset(missing)
        return self.expected[version]

    def bouncer(self, shape):
        if not shape.pgbouncer:
            return None
        bouncer = Pgbouncer(self.cluster, shape.pgbouncer, shape.pgbouncer_settings)
        self.bouncers.append(bouncer)
        bouncer.start()
        return bouncer

    def check(self, shape):
        """The outcome of each step on a database of this shape."""
        if shape.pgbouncer and Pgbouncer.program() is None:
            return {"start": Cell("skipped", "pgbouncer is not installed")}
        expected = self.reference(shape.version)
        database = self.maker.make(shape, self.bouncer(shape))
        context = steps.Context(self.maker, self.litespend, database, expected)
        if shape.pgbouncer in ("transaction", "statement"):
            return {"start": run_step(steps.refusal_of_pooler, context)}
        cells = {}
        for name, step in steps.COLUMNS.items():
            if shape.only_reads and name not in steps.ONLY_READS:
                continue
            started = time.monotonic()
            cells[name] = run_step(step, context)
            if cells[name].word:
                say(f"    {shape.name}, {name} ({time.monotonic() - started:.1f} s): {cells[name]}")
            if name == "start" and cells[name].word != "ok":
                break
        self.maker.drop(database)
        return cells

    def stop(self):
        for bouncer in self.bouncers:
            bouncer.stop()
        self.cluster.stop()


def say(text):
    print(text, file=sys.stderr, flush=True)


def install_pgbouncer():
    """Installs pgbouncer where that takes no questions. It is not started: Debian's package does so by itself only
    where there is an init system."""
    if Pgbouncer.program() or os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    say("installing pgbouncer")
    command = ["apt-get", "install", "-q", "-y", "--no-install-recommends", "pgbouncer"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-q"], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.run(command, check=False, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def table(results):
    lines = ["| database | PostgreSQL | " + " | ".join(steps.COLUMNS) + " |"]
    lines.append("|" + "---|" * (len(steps.COLUMNS) + 2))
    for shape, version, cells in results:
        found = [str(cells.get(name, "")) for name in steps.COLUMNS]
        lines.append(f"| {shape.name} | {version} | " + " | ".join(found) + " |")
    return "\n".join(lines) + "\n"


def details(results):
    parts = []
    for shape, version, cells in results:
        for name, cell in cells.items():
            if cell.details or cell.word == "refused":
                parts.append(f"## {shape.name}, PostgreSQL {version}, {name}: {cell}\n\n{cell.details}\n")
    return "\n".join(parts)


def write(folder, results):
    (folder / "table.md").write_text(table(results))
    (folder / "details.txt").write_text(details(results))


def chosen(arguments):
    found = [shape for shape in SHAPES if arguments.only is None or arguments.only in shape.name]
    if arguments.short:
        found = [shape for shape in found if shape.short]
    if not found:
        sys.exit(f"no database is named {arguments.only}")
    return found


class Results:
    """The outcomes, of which the files are written anew with each."""

    def __init__(self, folder):
        self.folder, self.found, self.lock = folder, [], threading.Lock()

    def add(self, shape, version, cells):
        with self.lock:
            self.found.append((shape, version, cells))
            write(self.folder, self.found)

    def failures(self):
        return sum(cell.word == "FAIL" for _, _, cells in self.found for cell in cells.values())


def check_all(run, shapes, results):
    """Checks databases of these shapes, one after the other on one cluster."""
    try:
        run.cluster.start()
        for shape in shapes:
            say(f"{shape.name}, PostgreSQL {run.cluster.version}")
            try:
                cells = run.check(shape)
            except Exception as error:
                cells = {"start": Cell("FAIL", f"cannot be made: {error}"[:300], traceback.format_exc())}
                say(f"    {shape.name}, {cells['start']}")
            results.add(shape, run.cluster.version, cells)
    finally:
        run.stop()


def check_at_once(runs, results):
    """Checks each shape on a cluster of its own, all at the same time: mostly, they wait."""
    with ThreadPoolExecutor(len(runs)) as pool:
        checks = [pool.submit(check_all, run, [shape], results) for run, shape in runs]
        try:
            for check in checks:
                check.result()
        except BaseException:
            # Without their clusters, the other checks end soon.
            for run, _ in runs:
                run.stop()
            raise


def place():
    """Where the clusters are: in memory if there is room, because databases consist of many files."""
    memory, room = Path("/dev/shm"), 6 * 1024**3
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        return memory if min(available, shutil.disk_usage(memory).free) >= room else None
    except (OSError, StopIteration):
        return None


def clusters(arguments, packages, home):
    """The directories of PostgreSQL's programs, with a name for each."""
    if arguments.postgresql != "18":
        yield "system", Path(arguments.system_postgresql)
    if arguments.postgresql != "system" and not arguments.short:
        yield "18", packages.unpack_postgresql_18(home / "postgresql-18")


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, required=True, help="the target directory")
    parser.add_argument("--litespend", type=Path, required=True, help="the program")
    parser.add_argument("--system-postgresql", default=os.environ.get("PG_BIN_DIR"), help="directory of `postgres`")
    parser.add_argument(
        "--short", action="store_true", help="two databases on the system's PostgreSQL, at the same time"
    )
    parser.add_argument("--only", metavar="NAME", help="only databases whose name contains this")
    parser.add_argument("--postgresql", choices=["both", "system", "18"], default="both")
    parser.add_argument("--list", action="store_true", help="print the names of the databases")
    arguments = parser.parse_args()
    if not arguments.system_postgresql:
        parser.error("set PG_BIN_DIR to the directory of `postgres` (`./dev test-databases` finds it)")
    return arguments


def main():
    # So that everything is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = parse()
    shapes = chosen(arguments)
    if arguments.list:
        print("\n".join(shape.name for shape in shapes))
        return 0
    folder = arguments.target.resolve() / "databases"
    folder.mkdir(parents=True, exist_ok=True)
    packages = Packages(arguments.target)
    if any(shape.pgbouncer for shape in shapes):
        install_pgbouncer()
    if arguments.short:
        steps.BACKFILL_ROWS //= 4
    # The packages are fetched before databases are made at the same time.
    for version in {shape.version for shape in shapes} | {NEWEST}:
        packages.migrations(version)
    results = Results(folder)
    started = time.monotonic()
    # Programs may not run from a file system in memory.
    folders = [tempfile.TemporaryDirectory(prefix="litespend-databases-", dir=parent) for parent in [place(), None]]
    with folders[0] as home, folders[1] as programs:
        home, programs = Path(home), Path(programs)
        for public in [home, programs]:
            public.chmod(0o755)

        def run_on(which, binaries):
            own = home / which
            own.mkdir()
            own.chmod(0o755)
            return Run(Cluster(binaries, own / "cluster"), packages, Litespend(arguments.litespend.resolve(), own))

        for which, binaries in clusters(arguments, packages, programs):
            if arguments.short:
                runs = [(run_on(f"{which}-{number}", binaries), shape) for number, shape in enumerate(shapes)]
                check_at_once(runs, results)
            else:
                check_all(run_on(which, binaries), shapes, results)
    print(table(results.found))
    failures = results.failures()
    say(f"{failures} failures in {time.monotonic() - started:.0f} s; {folder / 'details.txt'}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
