"""The program under test: its server and its commands."""

import copy
import http.client
import itertools
import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass

MASTER_KEY = "sk-databases-6d1f1b0c9a"


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict

    def json(self):
        return json.loads(self.body)

    def __str__(self):
        return f"{self.status} {self.body[:600].decode(errors='replace')}"


@dataclass
class Ended:
    """A command that has ended."""

    code: int
    output: str
    errors: str

    def last_line(self):
        lines = (self.errors.strip() or self.output.strip()).splitlines()
        return lines[-1] if lines else f"exit code {self.code}"


# Settings of whoever runs this, which would lead to databases and archives of theirs.
FOREIGN = {
    "DATABASE_URL", "DATABASE_URL_READ_REPLICA", "DIRECT_URL", "CONFIG_FILE_PATH", "LITESPEND_ARCHIVE_URL",
    "LITESPEND_DATA_DIR", "PGOPTIONS", "PGSSLMODE",
}


class Litespend:
    """The program with a home of its own."""

    def __init__(self, program, home, settings=None):
        self.program, self.home, self.settings = program, home, settings or {}
        self.numbers = itertools.count(1)

    def with_settings(self, settings):
        """The same program with further variables of the environment."""
        found = copy.copy(self)
        found.settings = {**self.settings, **settings}
        return found

    def environment(self, url):
        kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        return {**kept, "DATABASE_URL": url, "LITELLM_MASTER_KEY": MASTER_KEY, **self.settings}

    def run(self, database, *arguments, limit=300):
        command = [self.program, *arguments]
        ended = subprocess.run(
            command, env=self.environment(database.url), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=limit, cwd=self.home,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    def serve(self, database):
        return Server(self, database, self.home / f"server-{next(self.numbers)}")


class Server:
    """A server. Used with `with`."""

    def __init__(self, litespend, database, files):
        self.litespend, self.database, self.files = litespend, database, files
        self.process = None
        self.port = None

    def __enter__(self):
        output = self.files.with_suffix(".out")
        command = [self.litespend.program, "serve", "--port", "0", "--data-dir", self.litespend.home / "data"]
        with output.open("wb") as out, self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=self.litespend.environment(self.database.url), stdin=subprocess.DEVNULL, stdout=out,
                stderr=log, cwd=self.litespend.home,
            )
        for _ in range(400):
            found = re.search(r"listening on [^)]*:(\d+)\)", output.read_text())
            if found:
                self.port = int(found[1])
                return self
            if self.process.poll() is not None:
                raise NotStarted(self.process.returncode, self.log())
            time.sleep(0.1)
        self.__exit__()
        raise NotStarted(None, self.log())

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    @property
    def log_file(self):
        return self.files.with_suffix(".log")

    def log(self):
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log_file.read_text(errors="replace"))

    def warnings(self):
        """The warnings and errors of the log, each once, with how often it is there."""
        found = Counter()
        for line in self.log().splitlines():
            if re.search(r"\b(WARN|ERROR)\b", line):
                found[re.sub(r"^\S+Z\s+|\bms=\S+ |\brequest_id=\S+ ", "", line)] += 1
        return [f"{line} ({count} times)" if count > 1 else line for line, count in found.items()]

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            sent = {"Authorization": f"Bearer {MASTER_KEY}", **(headers or {})}
            if body is not None:
                sent["Content-Type"] = "application/json"
                body = json.dumps(body)
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(), dict(answer.headers))
        finally:
            connection.close()

    def get(self, path, **headers):
        return self.request("GET", path, headers=headers)

    def post(self, path, body=None):
        return self.request("POST", path, body if body is not None else {})


class NotStarted(Exception):
    """A server that ended instead of listening."""

    def __init__(self, code, log):
        self.code, self.log = code, log
        lines = log.strip().splitlines()
        super().__init__(lines[-1] if lines else f"exit code {code}")
