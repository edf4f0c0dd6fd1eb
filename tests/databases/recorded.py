"""Asks the recorded reads of tests/conformance, on a database with the rows that they were recorded on."""

import gzip
import http.client
import json
import sys
import urllib.parse
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "tests/reference"))

import recordings  # noqa: E402

MASTER_KEY = "sk-master-1234"
FILES = ["http_answers.json.gz", recordings.DASHBOARD]
FREE = ["/spend/calculate"]


def fill(file):
    """What inserts the rows of a file of recordings."""
    return partial(recordings.seed, file=file)


def reads(file):
    """The recorded reads before the first write, with today's answers where LiteLLM has changed its own."""
    with gzip.open(ROOT / "tests/fixtures/changed_answers.json.gz") as content:
        changed = json.load(content)["answers"].get(file, {})
    found = []
    for recording in recordings.read(file):
        if recording["method"] == "GET":
            if recording["name"] in changed:
                recording["answer"]["body"] = changed[recording["name"]]["body"]
            found.append(recording)
        elif recording["path"] not in FREE:
            break
    return found


def is_refused(recording):
    """Whether litespend refuses what the reference failed on, or guessed at."""
    guessed = recording["answer"]["status"] == 200 and recording["name"].startswith("gtags.bad")
    return guessed or recordings.is_replaced(recording)


def differences(recording, answer):
    status, _, body = answer
    if not is_refused(recording):
        return [f"{place}: {what}" for place, what in recordings.compare(recording, answer)]
    wanted = 401 if recording["name"].startswith("auth.") else 400
    envelopes = [["error"], ["detail"]]
    return [] if status == wanted and list(body) in envelopes else [f"{status} {body} instead of a refusal with {wanted}"]


def ask(connection, recording):
    path = f"{recording['path']}?{urllib.parse.urlencode(recordings.query_of(recording))}"
    connection.request("GET", path, recordings.body_of(recording), recordings.headers_of(recording))
    answer = connection.getresponse()
    return answer.status, answer.headers, json.loads(answer.read())


def wrong_answers(server, file):
    """A line for each recorded read that is answered otherwise, and the number of reads."""
    connection, lines, asked = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60), [], reads(file)
    for recording in asked:
        found = differences(recording, ask(connection, recording))
        if found:
            lines.append(f"{recording['name']} {recording['path']}: {'; '.join(found)[:300]}")
    connection.close()
    return lines, len(asked)
