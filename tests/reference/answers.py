"""Lets the LiteLLM of this environment answer requests, for matrix.py: one version's answers are in one file.

    answers.py --database URL --seed N --make NUMBER --file REQUESTS    makes requests up
    answers.py --database URL --file REQUESTS --answers ANSWERS         answers them
"""

import argparse
import json
import random

import psycopg

from reference import Reference, StandInFailed
from requests_at_random import Requests


def make(reference, arguments):
    with open("tests/conformance/seed.json") as file:
        seed = json.load(file)
    connection = psycopg.connect(arguments.database, autocommit=True)
    requests = Requests(random.Random(arguments.seed), connection, seed, reference)
    with open(arguments.file, "w") as file:
        for _ in range(arguments.make):
            print(json.dumps(requests.next()), file=file)


def answer(reference, arguments):
    known = {}
    with open(arguments.file) as requests, open(arguments.answers, "w") as answers:
        for line in requests:
            path, real, query, headers = json.loads(line)
            if path not in known:
                known[path] = reference.has(path)
            print(json.dumps(one(reference, real, query, headers) if known[path] else None), file=answers)


def one(reference, path, query, headers):
    """Status, headers and body, or what failed in the stand-in."""
    try:
        status, found, body = reference.ask("GET", path, query, headers)
    except StandInFailed as failure:
        return str(failure)
    return status, dict(found), body


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--database", required=True)
    arguments.add_argument("--seed", type=int)
    arguments.add_argument("--make", type=int)
    arguments.add_argument("--file", required=True)
    arguments.add_argument("--answers")
    arguments = arguments.parse_args()
    reference = Reference(arguments.database)
    (make if arguments.make else answer)(reference, arguments)


if __name__ == "__main__":
    main()
