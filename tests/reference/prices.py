"""Asks LiteLLM's code and a litespend for the same prices, in several processes.

Each process has a LiteLLM and a connection of its own. The answers are judged in the order of the requests, so the outcome
does not depend on the number of processes.
"""

import concurrent.futures
import itertools
import json
import multiprocessing
import os
import sys
import time

from judge import compare
from reference import MASTER_KEY, Reference
from server import Server

MASTER = {"Authorization": f"Bearer {MASTER_KEY}"}
# So many prices are asked for through the whole proxy, too, which must make no difference.
THROUGH_THE_PROXY = 50
# A process is given so many requests at a time.
CHUNK = 200
# A LiteLLM needs half a gigabyte, and half a minute to start.
MOST_PROCESSES = 8
WORTH_A_PROCESS = 5000


class Pair:
    """A LiteLLM and a litespend that are asked for prices."""

    def __init__(self, reference, server):
        self.reference, self.server = reference, server

    def compared(self, chunk):
        """For each body, None if the answers are the same, else the request, the answers and the differences."""
        expected = self.reference.prices([body for _, body in chunk])
        self.ask_proxy([(body, answer) for (number, body), answer in zip(chunk, expected) if number % THROUGH_THE_PROXY == 0])
        return [self.ask_server(body, answer) for (_, body), answer in zip(chunk, expected)]

    def ask_proxy(self, answered):
        for body, expected in answered:
            status, _, answer = self.reference.ask("POST", "/spend/calculate", {}, MASTER, body)
            if (status, answer) != (expected[0], expected[2]):
                sys.exit(f"LiteLLM's function and its proxy differ for {json.dumps(body)}: {expected}, {status} {answer}")

    def ask_server(self, body, expected):
        found = self.server.ask("POST", "/spend/calculate", {}, MASTER, body)
        parts = compare({}, expected, found)
        return (f"POST /spend/calculate {json.dumps(body)[:900]}", expected, found, parts) if parts else None


# The pair of a process that was started for prices.
own_pair = None


def begin(database, address):
    global own_pair
    own_pair = Pair(Reference(database), Server(address))


def compared_by_own_pair(chunk):
    return own_pair.compared(chunk)


class Prices:
    """Compares prices, with a pair in this process or with one in each of several."""

    def __init__(self, pair, database, address):
        self.pair = pair
        self.places = database, address

    def compare(self, judge, named):
        """Judges the prices of bodies, each of which is given with the name that it counts under."""
        numbered = [(number, body) for number, (_, body) in enumerate(named, 1)]
        chunks = [numbered[start : start + CHUNK] for start in range(0, len(numbered), CHUNK)]
        started = time.monotonic()
        results = itertools.chain.from_iterable(self.results(chunks, len(numbered)))
        for number, ((name, _), result) in enumerate(zip(named, results), 1):
            judge.judge(name, *(result or (None, None, None, [])))
            if number % 1000 == 0:
                seconds = time.monotonic() - started
                print(f"{number} of {len(named)} prices after {seconds:.0f} s", file=sys.stderr, flush=True)

    def results(self, chunks, number):
        processes = min(os.cpu_count() or 1, MOST_PROCESSES, number // WORTH_A_PROCESS)
        if processes < 2:
            yield from map(self.pair.compared, chunks)
            return
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(processes, spawn, begin, self.places) as pool:
            yield from pool.map(compared_by_own_pair, chunks)
