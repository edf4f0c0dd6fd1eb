"""Asks today's LiteLLM the recorded requests of an older one, and stores the answers that have changed, with the reasons.

    record_changed.py [--out FILE] RECORDINGS=DATABASE...    each database is empty

The rules of the comparison are in recordings.py. A difference that no rule in RULES explains stops it.
What the requests write is written, so that the reads after them see it, but only reads are stored.
"""

import argparse
import collections
import concurrent.futures
import gzip
import json
import multiprocessing
import re
import sys

import psycopg

import tables
from recordings import IGNORED, body_of, compare, headers_of, is_replaced, query_of, read, seed, without
from reference import Reference, StandInFailed, add_prices, package

# Why an answer has changed: the path of the request, the place of the difference and its kind, and the sentence. Of the
# places, names that are data are left out: "$.results[].breakdown.models.*.metrics".
AGGREGATED = "/user/daily/activity/aggregated"
RULES = [
    (AGGREGATED, r"\$\.results\[\]\.breakdown\.entities\.\*", "new", "1.110 adds sums by user"),
    (AGGREGATED, r"\$\.metadata\.entity_total_api_keys", ".* instead of null", "1.110 adds the number of keys by user"),
]

PRICES = "crates/pricing/data/model_prices.json"


def prepare(file, url):
    models = tables.read_schema(f"{package()}/proxy/schema.prisma")
    with psycopg.connect(url, autocommit=True) as connection:
        tables.create(connection, models)
        seed(connection, file)
        tables.add_references(connection, models)


# Asking.


class Client:
    """Sends bodies as they were recorded, where the reference's client would make JSON of them."""

    def __init__(self, client):
        self.client = client

    async def request(self, method, path, *, params, headers, json):
        return await self.client.request(method, path, params=params, headers=headers, content=json)


def ask(reference, recording):
    query, headers, body = query_of(recording), headers_of(recording), body_of(recording)
    return reference.ask(recording["method"], recording["path"], query, headers, body)


def kept(recording, body):
    names = IGNORED.get(recording["path"])
    return without(body, names) if names and isinstance(body, list) else body


def replay(file, url):
    """Each recording with the answer of today and the differences, or with what failed in the stand-in."""
    prepare(file, url)
    reference = Reference(url)
    reference.client = Client(reference.client)
    results = []
    for recording in read(file):
        try:
            answer = ask(reference, recording)
        except StandInFailed as failure:
            results.append((recording, None, str(failure)))
            continue
        status, headers, body = answer
        results.append((recording, (status, kept(recording, body)), sorted(set(compare(recording, answer)))))
    return reference.version, results


# The reasons.


def reason(path, place, what):
    for paths, places, kinds, sentence in RULES:
        if re.fullmatch(paths, path) and re.fullmatch(places, place) and re.fullmatch(kinds, what):
            return sentence
    return None


class Report:
    def __init__(self):
        self.compared = collections.Counter()
        self.reasons = collections.Counter()
        self.answers = {}
        self.unexplained, self.failed, self.replaced, self.writes = [], [], [], []

    def add(self, file, recording, answer, found):
        name, method, path = f"{file} {recording['name']}", recording["method"], recording["path"]
        if answer is None:
            self.failed.append(f"{name}: {found}")
        elif method != "GET":
            self.compared["other requests"] += 1
            self.writes += [f"{name} {method} {path}: {place}: {what}" for place, what in found]
        elif is_replaced(recording):
            self.compared["reads that failed when they were recorded"] += 1
            self.replaced += [f"{name} {path}: {place}: {what}" for place, what in found]
        else:
            self.compared[f"reads of {file}"] += 1
            if found:
                self.change(file, recording, answer, found)

    def change(self, file, recording, answer, found):
        sentences = set()
        for place, what in found:
            sentence = reason(recording["path"], place, what)
            if sentence is None:
                self.unexplained.append(f"{file} {recording['name']} {recording['path']}: {place}: {what}")
            else:
                sentences.add(sentence)
        sentence = "; ".join(sorted(sentences))
        self.reasons[sentence] += 1
        answers = self.answers.setdefault(file, {})
        if recording["name"] in answers:
            sys.exit(f"{file} has two recordings {recording['name']} that changed")
        answers[recording["name"]] = {"reason": sentence, "status": answer[0], "body": answer[1]}

    def print(self):
        for what, number in sorted(self.compared.items()):
            print(f"{number:6} {what} compared")
        for sentence, number in self.reasons.most_common():
            print(f"{number:6} changed: {sentence}")
        for title, lines in [
            ("The stand-in failed, so these are not recorded", self.failed),
            ("Failed when they were recorded, and are answered otherwise now; not recorded", self.replaced),
            ("Other requests that are answered otherwise now; not recorded", self.writes),
        ]:
            print(f"{title}: {len(lines)}")
            for line in lines:
                print(f"    {line}"[:1500])


def write(path, content):
    data = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    with open(path, "wb") as file, gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
        packed.write(data)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("databases", nargs="+", metavar="RECORDINGS=DATABASE")
    arguments.add_argument("--out", default="tests/fixtures/changed_answers.json.gz")
    arguments = arguments.parse_args()
    databases = dict(each.split("=", 1) for each in arguments.databases)
    report, versions = Report(), set()
    add_prices(PRICES)
    # A LiteLLM's settings are its process's, so each file has a process of its own.
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for file, (version, results) in zip(databases, pool.map(replay, databases.keys(), databases.values())):
            versions.add(version)
            for result in results:
                report.add(file, *result)
    report.print()
    if report.unexplained:
        groups = collections.Counter(re.sub(r"^\S+ \S+ ", "", line) for line in report.unexplained)
        for line, number in groups.most_common():
            print(f"{number:6} {line}"[:400], file=sys.stderr)
        sys.exit(f"no rule explains {len(report.unexplained)} differences, such as {report.unexplained[0]:.1000}")
    [version] = versions
    write(arguments.out, {"reference": version, "answers": report.answers})
    print(f"{arguments.out}: {sum(map(len, report.answers.values()))} answers of LiteLLM {version}")


if __name__ == "__main__":
    main()
