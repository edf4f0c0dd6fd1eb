"""Sends the same random requests to LiteLLM's own code and to a litespend on the same database, and compares answers.

The rules of the comparison are in judge.py.
"""

import argparse
import json
import random
import re
import sys
import time

import psycopg

import management
import tables
from deliberate import check_words
from judge import Judge, ask_both
from prices import Pair, Prices
from reference import Reference, add_prices, package
from requests_at_random import PATHS, Requests, pricing
from server import Server
from writes import Writes, compare_writes

PRICES = "crates/pricing/data/model_prices.json"


def compare_reads(judge, reference, server, requests, number):
    started, unstated = time.monotonic(), management.Stated(reference.database.models).unstated
    for index in range(1, number + 1):
        path, real, query, headers = requests.next()
        ask_both(judge, reference, server, path, "GET", real, query, headers, unstated=unstated)
        if index % 1000 == 0:
            print(f"{index} of {number} requests after {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def bodies_of_every_model(models):
    with open("tests/conformance/cost_variants.json") as file:
        variants = [json.dumps(body) for body in json.load(file).values()]
    return [json.loads(variant.replace("$MODEL", json.dumps(model)[1:-1])) for model in models for variant in variants]


def named_prices(choose, models, arguments):
    """The bodies to price, each with the name that it counts under."""
    named = [("/spend/calculate", pricing(choose, models)) for _ in range(arguments.costs)]
    every = bodies_of_every_model(models) if arguments.every_model else []
    return named + [("every model", body) for body in every]


def prepare(database, seed, number):
    connection = psycopg.connect(database, autocommit=True)
    models = tables.read_schema(f"{package()}/proxy/schema.prisma")
    tables.create(connection, models)
    tables.load(connection, seed, number)
    tables.add_references(connection, models)
    add_prices(PRICES)


def judge_writes(arguments, seed):
    reference, server = Reference(arguments.database), Server(arguments.address)
    judge = Judge(shown=arguments.shown)
    raw_keys = sorted(set(re.findall(r"sk-[\w-]+", json.dumps(seed["raw_keys"]))))
    writes = Writes(random.Random(arguments.seed), raw_keys)
    compare_writes(judge, reference, server, writes, arguments.writes, [arguments.database, arguments.own_database])
    return finish(judge, arguments, f"LiteLLM {reference.version}")


def finish(judge, arguments, title):
    if arguments.report:
        judge.report(arguments.report, f"litespend and {title}")
    return judge.summary(title)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--database", required=True, help="an empty database")
    arguments.add_argument("--prepare", action="store_true", help="make the tables and their rows, and end")
    arguments.add_argument("--address", help="of the litespend on it")
    arguments.add_argument("--seed", type=int, required=True)
    arguments.add_argument("--requests", type=int, default=2000)
    arguments.add_argument("--costs", type=int, default=20_000)
    arguments.add_argument("--every-model", action="store_true", help="price each model with each body of the recordings")
    arguments.add_argument("--writes", type=int, default=0, help="so many writes instead, on two databases that are equal")
    arguments.add_argument("--own-database", help="of the litespend, for --writes")
    arguments.add_argument("--shown", type=int, default=20, help="how many differences are printed in full")
    arguments.add_argument("--report", help="a file of Markdown that every kind of difference is appended to")
    arguments = arguments.parse_args()
    check_words()
    with open("tests/conformance/seed.json") as file:
        seed = json.load(file)
    if arguments.prepare:
        prepare(arguments.database, seed, arguments.seed)
        return
    if arguments.writes:
        sys.exit(judge_writes(arguments, seed))
    models = add_prices(PRICES)
    reference, server = Reference(arguments.database), Server(arguments.address)
    choose, judge = random.Random(arguments.seed), Judge(shown=arguments.shown)
    paths = {**PATHS, **management.PATHS}
    requests = Requests(choose, psycopg.connect(arguments.database, autocommit=True), seed, reference, paths)
    if requests.absent:
        print(f"LiteLLM {reference.version} has no {', '.join(requests.absent)}")
    compare_reads(judge, reference, server, requests, arguments.requests)
    prices = Prices(Pair(reference, server), arguments.database, arguments.address)
    prices.compare(judge, named_prices(choose, models, arguments))
    sys.exit(finish(judge, arguments, f"LiteLLM {reference.version}"))


if __name__ == "__main__":
    main()
