"""Reads archives of closed days with other people's engines, and keeps them on other people's object stores."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import buckets
import calls
import refusals
import stores
from directory import Directory
from outcome import Outcome
from packages import Packages
from postgresql import Cluster
from program import Program
from shapes import Database, Maker, Shape

PARTS = ["directory", "litellm", "s3", "az", "gs", "refusals"]
AZURITE = "3.35.0"


class Run:
    def __init__(self, arguments, home, outcome):
        self.arguments, self.home, self.outcome = arguments, home, outcome
        self.cluster = Cluster(Path(arguments.system_postgresql), home / "cluster")
        self.program = Program(self.copied(arguments.litespend.resolve()), home)
        self.target = arguments.target.resolve() / "archive"

    def copied(self, program):
        """The program where every account can run it."""
        return Path(shutil.copy2(program, self.home / "litespend"))

    def make(self):
        """A database of litespend's own, with the calls."""
        self.cluster.create("calls")
        database = Database(self.cluster, Shape("calls"), "calls")
        migrated = self.program.run(database, "migrate")
        if migrated.code:
            raise RuntimeError(f"litespend migrate: {migrated.errors}")
        with database.connect() as connection:
            calls.fill(connection)
        return database

    def copy(self, name):
        self.cluster.create(name, "calls")
        return Database(self.cluster, Shape(name), name)

    def litellm(self):
        """LiteLLM's database, partitioned by day, with timestamptz columns, with rollups and booking."""
        maker = Maker(self.cluster, Packages(self.arguments.target))
        # Without the rows of the other suite.
        database = maker.make(Shape("litellm", partitions="day", timestamptz=True), fill=lambda connection: None)
        with database.connect() as connection:
            calls.fill(connection)
        for part in ("rollups", "booking"):
            installed = self.program.run(database, part, "install")
            if installed.code:
                raise RuntimeError(f"litespend {part} install: {installed.errors}")
        return database

    def azurite(self):
        """Azurite's program, which npm installs once. `None` where that is not possible."""
        folder = self.target / f"azurite-{AZURITE}"
        program = folder / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
        if not program.exists() and shutil.which("node") and shutil.which("npm"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "package.json").write_text("{}\n")
            command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
            subprocess.run([*command, f"azurite@{AZURITE}"], cwd=folder, check=False, timeout=300)
        return program if program.exists() else None

    def directories(self, parts):
        # A place whose name has to be quoted in SQL.
        if "directory" in parts:
            with self.outcome.within("directory"):
                Directory(self.outcome, self.program, self.copy("directory"), self.home / "a 'place' of Zoë's").run()
        if "litellm" in parts:
            with self.outcome.within("LiteLLM's database"):
                flags = ["--prune-litellm-logs"]
                Directory(self.outcome, self.program, self.litellm(), self.home / "litellm", flags).run()

    def buckets(self, parts):
        with Database(self.cluster, Shape("calls"), "calls").connect() as connection:
            calls.insert_large(connection, buckets.LARGE_DAY)
        for kind in stores.STORES:
            if kind.scheme not in parts:
                continue
            azurite = self.azurite() if kind is stores.Azurite else None
            if kind is stores.Azurite and azurite is None:
                self.outcome.leave_out("az://", "azurite cannot be installed: no Node.js, or no answer of npm's index")
                continue
            with self.outcome.within(f"{kind.scheme}:// ({kind.name})"), kind(self.home, azurite) as store:
                lacking = store.lacks()
                if lacking:
                    self.outcome.leave_out(f"{kind.scheme}://", lacking)
                    refusals.check_place(self.outcome, self.program.with_archive(store.url, store.settings()),
                                         self.copy("lacking"), "a store that lacks something", ["--archive"])
                    continue
                database = self.copy(f"bucket_{kind.scheme}")
                buckets.check_store(self.outcome, self.program, database, store)
                if "refusals" in parts:
                    refusals.check_store(self.outcome, self.program, database, store)

    def refusals(self):
        database = self.copy("refusals")
        with self.outcome.within("refusals"):
            refusals.check_directories(self.outcome, self.program, database, self.home)
            refusals.check_urls(self.outcome, self.program, database)
            refusals.check_endpoints(self.outcome, self.program, database)

    def run(self, parts):
        try:
            self.cluster.start()
            self.make()
            self.directories(parts)
            if "refusals" in parts:
                self.refusals()
            self.buckets(parts)
        finally:
            self.cluster.stop()


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, required=True, help="the target directory")
    parser.add_argument("--litespend", type=Path, required=True, help="the program")
    parser.add_argument("--system-postgresql", default=os.environ.get("PG_BIN_DIR"), help="directory of `postgres`")
    parser.add_argument("--only", metavar="PART", action="append", choices=PARTS, help=", ".join(PARTS))
    arguments = parser.parse_args()
    if not arguments.system_postgresql:
        parser.error("set PG_BIN_DIR to the directory of `postgres` (`./dev test-archive` finds it)")
    return arguments


def main():
    # So that everything is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = parse()
    outcome = Outcome()
    with tempfile.TemporaryDirectory(prefix="litespend-archive-") as name:
        home = Path(name)
        home.chmod(0o755)
        Run(arguments, home, outcome).run(arguments.only or PARTS)
    return outcome.finish()


if __name__ == "__main__":
    sys.exit(main())
