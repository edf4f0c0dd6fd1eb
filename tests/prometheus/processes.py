"""The two programs: litespend with a private PostgreSQL, and Prometheus. Each is ended by its process id."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.parse

from expected import CALLS

MASTER_KEY = "sk-prometheus-3f9a71c06e52d8b4"


def request(port, method, path, body=None, key=None, limit=60):
    """An answer: its status, and its text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=limit)
    try:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if body is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(body)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


class Process:
    """A program that runs in the background. Used with `with`."""

    name = ""

    def __init__(self, home):
        self.home, self.process, self.port = home, None, None

    def start(self, command, **settings):
        with self.file("out").open("wb") as out, self.file("log").open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=log, cwd=self.home, **settings
            )

    def file(self, ending):
        return self.home / f"{self.name}.{ending}"

    def log(self, lines=8):
        return "\n".join(self.file("log").read_text(errors="replace").strip().splitlines()[-lines:])

    def wait_until(self, ready, limit=60):
        for _ in range(limit * 10):
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self.process.returncode}: {self.log()}")
            if ready():
                return
            time.sleep(0.1)
        raise RuntimeError(f"{self.name} does not start: {self.log()}")

    def __exit__(self, *_):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Litespend(Process):
    name = "litespend"

    def __init__(self, program, home):
        super().__init__(home)
        self.program, self.data = program, home / "data"

    def environment(self):
        foreign = re.compile(r"^(DATABASE_|DIRECT_URL|LITESPEND_|LITELLM_|METRICS_PUBLIC|CONFIG_FILE_PATH|PG|PORT$|HOST$)")
        kept = {name: value for name, value in os.environ.items() if not foreign.search(name)}
        return {**kept, "LITELLM_MASTER_KEY": MASTER_KEY}

    def run(self, *arguments):
        return subprocess.run(
            [self.program, *arguments], env=self.environment(), cwd=self.home, stdin=subprocess.DEVNULL, check=True,
            capture_output=True, text=True, timeout=300,
        ).stdout

    def __enter__(self):
        labels = ",".join(CALLS)
        self.start(
            [self.program, "serve", "--data-dir", self.data, "--port", "0", "--metrics-labels", labels], env=self.environment()
        )
        try:
            self.wait_until(self.listens)
        except BaseException:
            self.__exit__()
            raise
        return self

    def listens(self):
        found = re.search(r"listening on [^)]*:(\d+)\)", self.file("out").read_text())
        self.port = int(found[1]) if found else None
        return found

    def get(self, path, key=MASTER_KEY):
        return self.ask("GET", path, None, key)

    def post(self, path, body, key=MASTER_KEY):
        return self.ask("POST", path, body, key)

    def ask(self, method, path, body, key):
        status, text = request(self.port, method, path, body, key)
        if status != 200:
            raise RuntimeError(f"{method} {path}: {status} {text[:300]}")
        return text

    def sql(self, statement):
        """Runs a statement in the private PostgreSQL, whose socket belongs to the account that runs it."""
        owner = (self.data / "data").stat().st_uid
        account = {} if owner == os.getuid() else {"user": owner}
        pid_file = self.data / "data" / "postmaster.pid"
        ended = subprocess.run(
            ["cat", pid_file], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True, **account
        )
        lines = ended.stdout.splitlines()
        environment = {"PATH": os.environ["PATH"], "PGHOST": lines[4], "PGPORT": lines[3], "PGCONNECT_TIMEOUT": "10"}
        command = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]
        listed = subprocess.run(
            [*command, "-U", "litespend", "-d", "litespend", "-c", statement], env=environment, cwd="/",
            stdin=subprocess.DEVNULL, capture_output=True, text=True, **account,
        )
        if listed.returncode:
            raise RuntimeError(listed.stderr.strip())
        return listed.stdout


class Prometheus(Process):
    name = "prometheus"

    def __init__(self, program, home, configuration):
        super().__init__(home)
        self.program, self.configuration = program, configuration

    def __enter__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [
            self.program, f"--config.file={self.configuration}", f"--storage.tsdb.path={self.home / 'samples'}",
            f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn",
        ]
        self.start(command)
        try:
            self.wait_until(self.is_ready)
        except BaseException:
            self.__exit__()
            raise
        return self

    def is_ready(self):
        try:
            return request(self.port, "GET", "/-/ready")[0] == 200
        except OSError:
            return False

    def ask(self, path, **parameters):
        """The data of an answer of the HTTP API."""
        _, text = request(self.port, "GET", f"/api/v1/{path}?{urllib.parse.urlencode(parameters, doseq=True)}")
        answer = json.loads(text)
        if answer["status"] != "success":
            raise QueryError(answer.get("error", text))
        return answer["data"]

    def numbers(self, expression, seconds=0):
        """All values of a query, without NaN: now, or of each second of the last ones."""
        if seconds:
            now = time.time()
            series = self.ask("query_range", query=expression, start=now - seconds, end=now, step=1)["result"]
            values = [value for one in series for _, value in one["values"]]
        else:
            data = self.ask("query", query=expression)
            found = [data] if data["resultType"] == "scalar" else data["result"]
            values = [one["result"][1] if "result" in one else one["value"][1] for one in found]
        return [float(value) for value in values if value != "NaN"]

    def number(self, expression):
        values = self.numbers(expression)
        return values[0] if len(values) == 1 else None


class QueryError(Exception):
    """Prometheus refused a query."""
