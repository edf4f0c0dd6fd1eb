"""Tells how the answers of older LiteLLMs differ from those of the reference, as a table of Markdown.

Every version's own code answers the same random reads on one database, which has the columns of all of them. matrix.sh
runs this in the environment of the reference.
"""

import argparse
import collections
import json
import os
import re
import subprocess
import sys

import psycopg

import tables
from judge import compare, kind_of

HERE = os.path.dirname(os.path.abspath(__file__))
DEFAULT_MINORS = ["1.104", "1.105", "1.106", "1.108", "1.109"]


def newest_patches(minors):
    """The newest patch of each minor version, by the package index."""
    command = [sys.executable, "-m", "pip", "index", "versions", "litellm"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True)
    versions = re.search(r"Available versions: (.*)", listed.stdout).group(1).split(", ")
    return [next(version for version in versions if re.fullmatch(rf"{re.escape(minor)}\.\d+", version)) for minor in minors]


def python_of(venvs, version):
    """The Python of a version's environment, which is made if it is not there."""
    place = os.path.join(venvs, version)
    subprocess.run([sys.executable, os.path.join(HERE, "environment.py"), version, place], check=True)
    return os.path.join(place, "bin", "python")


def schema_of(python):
    code = "import importlib.util; print(importlib.util.find_spec('litellm').submodule_search_locations[0])"
    found = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    return tables.read_schema(os.path.join(found, "proxy", "schema.prisma"))


def prepare(database, schemas, number):
    connection = psycopg.connect(database, autocommit=True)
    models = tables.together(schemas)
    tables.create(connection, models)
    with open("tests/conformance/seed.json") as file:
        tables.load(connection, json.load(file), number)


def read(path):
    with open(path) as file:
        return [json.loads(line) for line in file]


def compare_versions(query, expected, found):
    """How the answers of two LiteLLMs differ. Where both fail on what a client sent, they agree."""
    statuses = expected[0], found[0]
    if any(status == 0 or status >= 500 for status in statuses):
        return [] if statuses[0] == statuses[1] else [("status", *statuses)]
    return compare(query, expected, found)


def judge_version(requests, expected, found):
    """The differences of a version by path, place and kind; paths that it lacks; and what was not judged."""
    kinds, absent, failures = collections.Counter(), set(), 0
    asked, different = collections.Counter(), collections.Counter()
    for (path, _, query, _), one, other in zip(requests, expected, found):
        if other is None:
            absent.add(path)
        elif isinstance(one, str) or isinstance(other, str):
            failures += 1
        else:
            asked[path] += 1
            parts = compare_versions(query, one, other)
            different[path] += bool(parts)
            kinds.update({(path, *kind_of(part)) for part in parts})
    return {"kinds": kinds, "absent": sorted(absent), "failures": failures, "asked": asked, "different": different}


def cell(judged, path):
    if path in judged["absent"]:
        return "absent"
    different = judged["different"][path]
    return f"{different} of {judged['asked'][path]}" if different else "same"


def print_matrix(reference, judged):
    paths = sorted({path for each in judged.values() for path in [*each["asked"], *each["absent"]]})
    print(f"Answers that differ from LiteLLM {reference}'s, of those to random requests:\n")
    print("| path | " + " | ".join(judged) + " |\n|---|" + "---|" * len(judged))
    for path in paths:
        print(f"| `{path}` | " + " | ".join(cell(each, path) for each in judged.values()) + " |")
    for version, each in judged.items():
        print(f"\n## {version}\n\n| path | field | {version} | answers |\n|---|---|---|---|")
        for (path, place, kind), number in sorted(each["kinds"].items()):
            print(f"| `{path}` | `{place}` | {kind} | {number} |")
        if each["failures"]:
            print(f"\n{each['failures']} requests were not judged, because the stand-in for Prisma failed.")


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--database", required=True, help="an empty database")
    arguments.add_argument("--venvs", required=True, help="the folder of the environments")
    arguments.add_argument("--reference", required=True, help="the version to compare with")
    arguments.add_argument("--work", required=True, help="a folder for requests and answers")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--requests", type=int, default=2000)
    arguments.add_argument("versions", nargs="*", help="default: the newest patches of 1.104, 1.105, 1.106, 1.108 and 1.109")
    arguments = arguments.parse_args()
    versions = arguments.versions or newest_patches(DEFAULT_MINORS)
    pythons = {version: python_of(arguments.venvs, version) for version in [arguments.reference, *versions]}
    prepare(arguments.database, [schema_of(python) for python in pythons.values()], arguments.seed)
    file = os.path.join(arguments.work, "requests")

    def answers(version, *more):
        print(f"LiteLLM {version}", file=sys.stderr, flush=True)
        code = [pythons[version], os.path.join(HERE, "answers.py"), "--database", arguments.database, "--file", file]
        subprocess.run([*code, *more], check=True, stdout=sys.stderr)

    answers(arguments.reference, "--make", str(arguments.requests), "--seed", str(arguments.seed))
    found = {}
    for version in pythons:
        place = os.path.join(arguments.work, f"answers-{version}")
        answers(version, "--answers", place)
        found[version] = read(place)
    requests, expected = read(file), found.pop(arguments.reference)
    print_matrix(arguments.reference, {version: judge_version(requests, expected, each) for version, each in found.items()})


if __name__ == "__main__":
    main()
