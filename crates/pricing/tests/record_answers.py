"""Asks LiteLLM's own code what was recorded from an older LiteLLM, and writes down where the answers differ, and why.

Run it with the Python of the reference (see tests/reference), from the root of the repository:

    python crates/pricing/tests/record_answers.py --recorded-prices TABLE.json

TABLE.json is crates/pricing/data/model_prices.json as it was when tests/conformance was recorded. An answer that LiteLLM's code
still gives with those prices differs because of the prices (`prices`), any other because of LiteLLM's code (`rules`). Every
answer in the file is LiteLLM's; tests/recorded.rs expects it in place of the recorded one.
"""

import argparse
import asyncio
import datetime
import gzip
import importlib.metadata
import importlib.util
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[3]
CONFORMANCE = ROOT / "tests/conformance"
TABLE = ROOT / "crates/pricing/data/model_prices.json"
ANSWERS = pathlib.Path(__file__).parent / "data/changed_answers.json.gz"
PRICES = "model_prices_and_context_window_backup.json"
# LiteLLM logs in before it prices these.
LEFT_OUT = ("github_copilot/", "chatgpt/")
# Marks of the built-in table, not fields of LiteLLM's.
MARKS = {"retired", "last_version"}
# The day of the recordings, outside every off-peak window.
NOW = datetime.datetime(2026, 9, 22, 8, 30, tzinfo=datetime.timezone.utc)


def text_of(name):
    data = (CONFORMANCE / name).read_bytes()
    return (gzip.decompress(data) if name.endswith(".gz") else data).decode()


def recorded_costs():
    variants = json.loads(text_of("cost_variants.json"))
    for line in text_of("cost_answers.jsonl.gz").splitlines():
        record = json.loads(line)
        for variant, answer in record["answers"].items():
            body = json.loads(json.dumps(variants[variant]))
            (body if "model" in body else body["completion_response"])["model"] = record["model"]
            yield f"{record['model']} {variant}", record["model"], body, answer


def recorded_tokens():
    for line in text_of("token_answers.jsonl").splitlines():
        record = json.loads(line)
        for model, answer in record["answers"].items():
            yield f"{model} {record['name']}", model, {"model": model, "messages": record["messages"]}, answer


def recorded_requests():
    for record in json.loads(text_of("http_answers.json.gz")):
        if record["name"].startswith("calc.") and isinstance(record.get("body"), dict):
            answered = record["answer"]["body"]
            cost = answered.get("cost") if isinstance(answered, dict) else None
            yield record["name"], "", record["body"], {"status": record["answer"]["status"]} if cost is None else cost


def recordings():
    for kind, cases in [("costs", recorded_costs()), ("tokens", recorded_tokens()), ("requests", recorded_requests())]:
        for name, model, body, answer in cases:
            if not model.startswith(LEFT_OUT):
                yield f"{kind} {name}", body, answer


def with_prices(package, table, place):
    """A copy of LiteLLM with other prices: its files are links, and none of them is changed."""
    shutil.copytree(package, place / "litellm", copy_function=os.link, ignore=shutil.ignore_patterns("__pycache__"))
    original = package / f"{PRICES}.original"
    models = json.loads((original if original.exists() else package / PRICES).read_text())
    annotations = {name: entry for name, entry in models.items() if name in ("sample_spec", "fallback_generalizations")}
    priced = {
        name: {field: value for field, value in entry.items() if field not in MARKS}
        for name, entry in json.loads(table.read_text()).items()
    }
    (place / "litellm" / PRICES).unlink()
    (place / "litellm" / PRICES).write_text(json.dumps({**priced, **annotations}))


async def answer(calculate, body):
    import pydantic
    from litellm.proxy._types import ProxyException, SpendCalculateRequest

    try:
        return (await calculate(SpendCalculateRequest(**body)))["cost"]
    except pydantic.ValidationError:
        return {"status": 422}
    except ProxyException as error:
        return {"status": int(error.code)}


def answers():
    """The answers of the LiteLLM that is first on the path, in the order of the recordings."""
    os.environ.update(LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_OFFLINE_MODE="true", TZ="UTC")
    # Vocabularies and models are not looked up anywhere, as in the recordings.
    os.environ.update(dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9"))
    logging.disable(logging.CRITICAL)
    from litellm._internal_context import pinned_billing_time
    from litellm.proxy.spend_tracking.spend_management_endpoints import calculate_spend

    async def all_of_them():
        with pinned_billing_time(NOW):
            return [await answer(calculate_spend, body) for _, body, _ in recordings()]

    return asyncio.run(all_of_them())


def answers_with(package, table):
    with tempfile.TemporaryDirectory(dir=ROOT / "target") as place:
        with_prices(package, table, pathlib.Path(place))
        environment = {**os.environ, "PYTHONPATH": place, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, __file__, "--answers", f"{place}/answers.json"]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        return json.loads(pathlib.Path(place, "answers.json").read_text())


def is_same(one, other):
    if isinstance(one, dict) or isinstance(other, dict):
        return isinstance(one, dict) and isinstance(other, dict)
    return abs(one - other) <= 1e-9 * max(abs(one), abs(other)) or abs(one - other) < 1e-18


def changed(package, recorded_prices):
    with_new, with_recorded = answers_with(package, TABLE), answers_with(package, recorded_prices)
    found = {}
    for (name, _, recorded), new, old in zip(recordings(), with_new, with_recorded, strict=True):
        if not is_same(recorded, new):
            cost = None if isinstance(new, dict) else new
            found[name] = {"cost": cost, "reason": "prices" if is_same(recorded, old) else "rules"}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recorded-prices", type=pathlib.Path, help="the table that the recordings were made with")
    parser.add_argument("--answers", type=pathlib.Path, help="(for the script itself) only write all answers here")
    arguments = parser.parse_args()
    if arguments.answers:
        arguments.answers.write_text(json.dumps(answers()))
        return
    package = pathlib.Path(importlib.util.find_spec("litellm").origin).parent
    found = changed(package, arguments.recorded_prices)
    content = json.dumps({"litellm": importlib.metadata.version("litellm"), "answers": found}, indent=0, sort_keys=True)
    ANSWERS.write_bytes(gzip.compress(content.encode(), mtime=0))
    for reason in ("prices", "rules"):
        print(f"{sum(case['reason'] == reason for case in found.values()):6} answers differ because of the {reason}")


if __name__ == "__main__":
    main()
