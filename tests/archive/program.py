"""The program under test, with an archive."""

import re
import subprocess
import time

from litespend import Ended, Litespend

# What may be set where this runs, and must not count.
FOREIGN = re.compile(r"^(AWS|AZURE|AZURITE|GOOGLE|LITESPEND|RUST)_|^SERVICE_ACCOUNT$")


class Program(Litespend):
    """The program with an archive, which every command and server gets by its variable."""

    def __init__(self, program, home, archive="", settings=None, account=None):
        super().__init__(program, home)
        self.archive, self.settings, self.account = str(archive), settings or {}, account or {}

    def with_archive(self, archive, settings=None, account=None):
        return Program(self.program, self.home, archive, settings, account)

    def environment(self, url):
        kept = {name: value for name, value in super().environment(url).items() if not FOREIGN.search(name)}
        archive = {"LITESPEND_ARCHIVE_URL": self.archive} if self.archive else {}
        # The records that are booked are as old as the calls. Root's home may be closed to other accounts.
        return {**kept, **archive, "RECORDS_DAYS_BACK": "36500", "HOME": str(self.home), **self.settings}

    def run(self, database, *arguments, limit=120):
        """Runs a command, as another account if there is one. A command that does not end in time is ended."""
        with subprocess.Popen(
            [self.program, *arguments], env=self.environment(database.url if database else ""), cwd=self.home,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **self.account,
        ) as process:
            try:
                output, errors = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                process.kill()
                output, errors = process.communicate()
                errors += f"\nended after {limit} s"
            except BaseException:
                process.kill()
                raise
        return Ended(process.returncode, output, errors)

    def books(self, database, *arguments):
        return self.run(database, "books", *arguments)

    def timed(self, database, *arguments, limit):
        started = time.monotonic()
        return self.run(database, *arguments, limit=limit), time.monotonic() - started

    def schema(self, engine):
        """The statements that make the archive a table of the engine."""
        ended = self.run(None, "archive", "schema", "--engine", engine)
        if ended.code:
            raise RuntimeError(f"archive schema --engine {engine}: {ended.last_line()}")
        return ended.output
