"""The installed program: its server, and what it answers."""

import datetime
import json
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

HAS_PROC = Path("/proc/self/cwd").exists()
YESTERDAY = datetime.datetime.now(datetime.timezone.utc).date() - datetime.timedelta(days=1)
CALL = {"model": "gpt-4o", "prompt_tokens": 1200, "completion_tokens": 300, "tags": ["wheel"],
        "end_user_id": "customer-1", "start_time": f"{YESTERDAY}T10:00:00Z", "idempotency_key": "call-0001"}
SPAN = f"start_date={YESTERDAY}&end_date={YESTERDAY + datetime.timedelta(days=1)}"
READS = {
    "report": f"/global/spend/report?{SPAN}",
    "row": "/spend/logs?request_id=call-0001",
    "log": f"/spend/logs?{SPAN}",
    "tags": f"/global/spend/tags?{SPAN}",
}


class Server:
    """A server on a free port of the loopback address. Used with `with`."""

    def __init__(self, place, program, data, hidden=True, environment=None):
        self.place, self.program, self.data = place, program, data
        self.hidden, self.environment = hidden, environment
        self.output = place.folder / "serve.out"
        self.log_file = place.folder / "serve.log"
        self.process = None

    def __enter__(self):
        command = [self.program, "serve", "--port", "0", "--data-dir", self.data]
        with self.output.open("wb") as output, self.log_file.open("wb") as log:
            self.process = self.place.popen(command, self.hidden, self.environment, stdout=output, stderr=log)
        for _ in range(1200):
            found = re.search(r"listening on [^)]*:(\d+)\)", self.said())
            if found and "master key" in self.said():
                self.address = f"http://127.0.0.1:{found[1]}"
                self.key = (self.data / "master_key").read_text().strip()
                return self
            if self.process.poll() is not None:
                raise NotStarted(self.process.returncode, self.log())
            time.sleep(0.1)
        self.__exit__()
        raise NotStarted(None, self.log())

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """Ends the server as systemd does. Returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode

    def said(self):
        return self.output.read_text()

    def log(self):
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log_file.read_text(errors="replace"))

    def ask(self, path, body=None, key=None):
        """Status and answer. A body that is not JSON stays a text."""
        request = urllib.request.Request(
            self.address + path, data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {key or self.key}", "Content-Type": "application/json"})
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")

    def is_ready(self):
        for _ in range(100):
            status, answer = self.ask("/health/readiness")
            if status == 200:
                return ""
            time.sleep(0.1)
        return f"{status} {answer}"

    def new_key(self):
        """A key that the program's own command makes, beside the server."""
        made = self.place.run(self.program, "key", "create", "--data-dir", self.data, "--alias", "my-app",
                              hidden=self.hidden, environment=self.environment)
        if made.code:
            raise RuntimeError(f"key create: {made.errors or made.output}")
        return made.output.strip()

    def book(self, key):
        """What became of the call."""
        status, answer = self.ask("/spend/usage", CALL, key)
        return answer["results"][0]["status"] if status == 200 else f"{status} {answer}"

    def reads(self):
        return {name: self.ask(path) for name, path in READS.items()}

    def postgres(self):
        """The program that runs the private PostgreSQL, with every link followed."""
        pid = (self.data / "data/postmaster.pid").read_text().split()[0]
        if HAS_PROC:
            return Path(os.readlink(f"/proc/{pid}/exe"))
        return Path(ps("-o", "comm=", "-p", pid)[0]).resolve()


class NotStarted(Exception):
    """A server that ended instead of listening."""

    def __init__(self, code, log):
        self.code, self.log = code, log
        super().__init__(f"exit code {code}: {log.strip()[-1000:]}")


def ps(*arguments):
    return subprocess.run(["ps", *arguments], capture_output=True, text=True, check=True).stdout.splitlines()


def processes_in(data):
    """The processes of a private PostgreSQL: the directory of its data is their working directory. Where there is no
    /proc, only the first of them is found, by its arguments."""
    if not HAS_PROC:
        return [line for line in ps("-axo", "pid=,command=") if f"{data}/data" in line and "postgres" in line]
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "cwd").startswith(str(data)):
                found.append(f"{entry.name} {(entry / 'cmdline').read_bytes().split(bytes(1))[0].decode(errors='replace')}")
        except OSError:
            continue
    return found


def booked_once(reads):
    """What is wrong with the answers of a server that has one call: 1200 and 300 tokens, 0.006 USD."""
    refused = [f"{name}: {answer}" for name, answer in reads.items() if answer[0] != 200]
    if refused:
        return refused[0]
    report, rows = reads["report"][1], reads["row"][1]
    days = [(day["group_by_day"][:10], team["total_spend"]) for day in report for team in day["teams"]]
    if days != [(str(YESTERDAY), 0.006)]:
        return f"the report is {report}"
    found = [(row["request_id"], row["model"], row["spend"], row["total_tokens"], row["end_user"]) for row in rows]
    if found != [("call-0001", "gpt-4o", 0.006, 1500, "customer-1")]:
        return f"the rows are {rows}"
    if reads["tags"][1]["spend_per_tag"] != [{"name": "wheel", "spend": 0.006, "log_count": 1}]:
        return f"the tags are {reads['tags'][1]}"
    return ""
