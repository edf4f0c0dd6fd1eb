"""Tells how the answers of older LiteLLMs differ from those of the reference, as a table of Markdown.

Every version's own code answers the same random reads on one database, which has the columns of all of them. matrix.sh
runs this in the environment of the reference. A run without arguments also puts the table into docs/compatibility.md.
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
PAGE, BEGIN, END = "docs/compatibility.md", "<!-- versions: begin -->", "<!-- versions: end -->"
# The table in the document is of these. The document states the number.
SEED, REQUESTS, MINORS = 1, 2000, 5


def parts_of(version):
    return tuple(map(int, re.findall(r"\d+", version)))


def older_versions(versions, reference):
    """The newest patches of the minor versions before the reference's, of a list of versions."""
    newest = {}
    for version in versions:
        if re.fullmatch(r"\d+\.\d+\.\d+", version):
            minor = parts_of(version)[:2]
            newest[minor] = max(newest.get(minor, version), version, key=parts_of)
    older = [minor for minor in sorted(newest) if minor < parts_of(reference)[:2]]
    return [newest[minor] for minor in older[-MINORS:]]


def versions_on_the_index():
    command = [sys.executable, "-m", "pip", "index", "versions", "litellm"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True)
    return re.search(r"Available versions: (.*)", listed.stdout).group(1).split(", ")


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


def table(judged):
    paths = sorted({path for each in judged.values() for path in [*each["asked"], *each["absent"]]})
    lines = [f"| path | {' | '.join(judged)} |", "|---|" + "---|" * len(judged)]
    return lines + [f"| `{path}` | {' | '.join(cell(each, path) for each in judged.values())} |" for path in paths]


def put_into_page(lines, page=PAGE):
    """Puts the table between its marks in the document."""
    with open(page) as file:
        before, rest = file.read().split(BEGIN)
    with open(page, "w") as file:
        file.write("\n".join([before + BEGIN, *lines, END + rest.split(END)[1]]))


def print_matrix(reference, judged):
    print(f"Answers that differ from LiteLLM {reference}'s, of those to random requests:\n")
    print("\n".join(table(judged)))
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
    arguments.add_argument("--seed", type=int, default=SEED)
    arguments.add_argument("--requests", type=int, default=REQUESTS)
    newest = f"default: the newest patches of the {MINORS} minor versions before the reference's"
    arguments.add_argument("versions", nargs="*", help=newest)
    arguments = arguments.parse_args()
    versions = arguments.versions or older_versions(versions_on_the_index(), arguments.reference)
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
    judged = {version: judge_version(requests, expected, each) for version, each in found.items()}
    print_matrix(arguments.reference, judged)
    if not arguments.versions and (arguments.seed, arguments.requests) == (SEED, REQUESTS):
        put_into_page(table(judged))


if __name__ == "__main__":
    main()
