"""Lets Prometheus scrape a litespend, and asks it every question of the dashboard, of the alerts, and of LiteLLM's own dashboards."""

import argparse
import datetime
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from expected import (
    COUNTERS, COVERED, EMPTY_METRICS, EMPTY_PANELS, NOT_COVERED, NOT_IN_THE_LEDGER, OPTIONAL, OWN, REQUESTS,
)
from outcome import Outcome
from processes import MASTER_KEY, Litespend, Prometheus, QueryError, request

ROOT = Path(__file__).resolve().parent.parent.parent
DASHBOARD = ROOT / "deploy/grafana/litespend.json"
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
EXAMPLE = ROOT / "deploy/prometheus/prometheus.yml"
LITELLM = ROOT / "tests/prometheus/litellm_queries.json"
PANELS = ROOT / "tests/prometheus/dashboard_test.yml"
METRIC = re.compile(r"\b(?:litellm|litespend|gen_ai)_[A-Za-z0-9_]+")
# Panels with a sum over the selected range, and what they sum.
SUMS = {
    "Spend in this range": "litellm_spend_metric_total",
    "Requests in this range": "litellm_requests_metric_total",
    "Tokens in this range": "litellm_total_tokens_metric_total",
}
# Parts of a query that have labels, and no metrics.
LABELS = re.compile(r"\{[^}]*\}|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
PARTS = re.compile(r"_(bucket|sum|count)$")


def metrics_of(expression):
    """The names of the metrics in a query; of a histogram's parts, the histogram's name."""
    without_labels = LABELS.sub("", re.sub(r'"[^"]*"', '""', expression))
    return sorted({PARTS.sub("", name) for name in METRIC.findall(without_labels)})


def with_variables(expression, length="1h", interval="1s", rate_seconds=4, team=".*"):
    """A query as Grafana sends it. Of what is not given, everything is selected."""
    values = {
        "$__rate_interval_ms": f"{rate_seconds * 1000}", "$__rate_interval": f"{rate_seconds}s", "$__range": length,
        "$__interval": interval, "$team": team, "$instance": ".*", "$service": ".*", "$model": ".*",
    }
    for name, value in values.items():
        expression = expression.replace(name, value)
    if "$" in expression:
        raise ValueError(f"a variable is not known: {expression}")
    return expression


def query_of(board, title, ref="A"):
    """The query of a panel of the dashboard."""
    panel = next(panel for panel in board["panels"] if panel["title"] == title)
    return next(target["expr"] for target in panel["targets"] if target["refId"] == ref)


class Run:
    def __init__(self, arguments, home, outcome):
        self.arguments, self.home, self.outcome = arguments, home, outcome
        self.board = json.loads(DASHBOARD.read_text())
        self.litespend = self.prometheus = None
        # The ledger's totals before Prometheus began.
        self.before = {}
        # The names of all metrics that have series.
        self.known = set()

    def files(self):
        """What needs no server."""
        self.promtool("the rules are right", "check", "rules", ALERTS)
        self.promtool("the alerts fire when they should", "test", "rules", ROOT / "tests/prometheus/alerts_test.yml")
        self.panels()
        example = self.home / "example"
        example.mkdir()
        shutil.copy(EXAMPLE, example)
        shutil.copy(ALERTS, example)
        (example / "litespend_key").write_text(MASTER_KEY)
        self.promtool("the example of a configuration is right", "check", "config", example / EXAMPLE.name)
        tested = {
            alert["alertname"]
            for test in yaml.safe_load((ROOT / "tests/prometheus/alerts_test.yml").read_text())["tests"]
            for alert in test.get("alert_rule_test", [])
            if alert.get("exp_alerts")
        }
        names = {rule["alert"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]}
        self.outcome.check("every alert fires in the tests of the rules", ", ".join(sorted(names - tested)))
        text = DASHBOARD.read_text()
        sources = set(re.findall(r'"uid": "([^"]*)"', text)) - {"${datasource}", "-- Grafana --"}
        self.outcome.check("the dashboard names no data source of its own", ", ".join(sorted(sources)))
        lacking = re.findall(r"\b(?:increase|rate)\(litellm_\w+", text + ALERTS.read_text())
        self.outcome.check("no query lacks the first call of a series", ", ".join(sorted(set(lacking))))

    def panels(self):
        """The queries of the dashboard on made-up series."""
        tests = yaml.safe_load(PANELS.read_text())["tests"]
        for test in tests:
            test["promql_expr_test"] = [
                {
                    "expr": with_variables(
                        query_of(self.board, one["panel"], one.get("query", "A")), one.get("range", "1h"),
                        one.get("interval", "1m"), 240, one.get("team", ".*"),
                    ),
                    "eval_time": one["at"],
                    "exp_samples": [{"labels": labels, "value": value} for labels, value in one["samples"].items()],
                }
                for one in test.pop("panels")
            ]
        made = self.home / "panels_test.yml"
        made.write_text(yaml.safe_dump({"tests": tests}))
        self.promtool("the dashboard's queries count what was spent", "test", "rules", made)

    def promtool(self, what, *command):
        ended = subprocess.run([self.arguments.promtool, *command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        self.outcome.check(what, (ended.stdout + ended.stderr) if ended.returncode else "")

    def budgets(self):
        """A team, a user and a key with budgets, and with a date of reset, which only LiteLLM sets."""
        post = self.litespend.post
        post("/team/new", {"team_id": "budgeted", "team_alias": "Budgeted", "max_budget": 50})
        post("/user/new", {"user_id": "budgeted", "user_email": "budgeted@example.com", "max_budget": 40})
        asked = {"key_alias": "budgeted", "team_id": "budgeted", "user_id": "budgeted", "max_budget": 30}
        self.key = json.loads(post("/key/generate", asked))["key"]
        for table, condition in (
            ("LiteLLM_TeamTable", "team_id = 'budgeted'"),
            ("LiteLLM_UserTable", "user_id = 'budgeted'"),
            ("LiteLLM_VerificationToken", "key_alias = 'budgeted'"),
        ):
            self.litespend.sql(
                f"""UPDATE "{table}" SET budget_duration = '30d', budget_reset_at = (now() at time zone 'utc') + interval '10 days'
                    WHERE {condition}"""
            )

    def configure(self):
        alerts, key = self.home / "alerts.yml", self.home / "litespend_key"
        shutil.copy(ALERTS, alerts)
        key.write_text(MASTER_KEY)
        common = {
            "authorization": {"credentials_file": str(key)},
            "static_configs": [{"targets": [f"127.0.0.1:{self.litespend.port}"]}],
        }
        example = yaml.safe_load(EXAMPLE.read_text())
        paths = {job["job_name"]: job["metrics_path"] for job in example["scrape_configs"]}
        configuration = self.home / "prometheus.yml"
        configuration.write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
                    "rule_files": [str(alerts)],
                    "scrape_configs": [{"job_name": name, "metrics_path": path, **common} for name, path in paths.items()],
                }
            )
        )
        self.promtool("the configuration of this run is right", "check", "config", configuration)
        return configuration

    def scraped(self):
        """Waits for the first scrapes, and says what is wrong with a job that has none."""
        wrong = []
        for _ in range(20):
            targets = self.prometheus.ask("targets")["activeTargets"]
            wrong = [f"{one['scrapePool']}: {one['lastError']}" for one in targets if one["health"] != "up"]
            if targets and not wrong:
                break
            time.sleep(1)
        self.outcome.check("Prometheus can scrape both paths", "\n".join(wrong))
        refused = [path for path in ("/metrics", "/metrics/spend") if request(self.litespend.port, "GET", path)[0] != 401]
        self.outcome.check("both paths need a key", f"{refused} without a key" if refused else "")

    def book(self):
        """Books calls for some seconds, some of them twice, and asks something that is refused."""
        models = ["gpt-4o", "gpt-4o-mini", "claude-sonnet-4-5"]
        for number in range(self.arguments.seconds):
            now = datetime.datetime.now(datetime.timezone.utc).isoformat()
            record = {
                "model": models[number % 3], "prompt_tokens": 1000 + number, "completion_tokens": 300, "start_time": now,
                "idempotency_key": f"call-{number}", "tags": ["prometheus"], "end_user_id": f"customer-{number % 2}",
            }
            first = json.loads(self.litespend.post("/spend/usage", record, self.key))
            if first["recorded"] != 1:
                raise RuntimeError(f"a record was not booked: {first}")
            if number % 4 == 0:
                self.litespend.post("/spend/usage", record, self.key)
            self.litespend.post("/spend/usage", {**record, "idempotency_key": f"master-{number}"})
            request(self.litespend.port, "GET", "/spend/logs", key="sk-unknown-0123456789")
            time.sleep(1)

    def totals(self):
        """The ledger's totals, as its reports tell them."""
        today = datetime.datetime.now(datetime.timezone.utc).date()
        days = f"start_date={today - datetime.timedelta(days=30)}&end_date={today + datetime.timedelta(days=1)}"
        report = json.loads(self.litespend.get(f"/global/spend/report?{days}"))
        teams = [team for day in report for team in day["teams"]]
        activity = json.loads(self.litespend.get(f"/user/daily/activity?{days}&page_size=1000"))["metadata"]
        return {
            "litellm_spend_metric_total": sum(team["total_spend"] for team in teams),
            "litellm_total_tokens_metric_total": sum(line["total_tokens"] for team in teams for line in team["metadata"]),
            "litellm_requests_metric_total": activity[REQUESTS],
            "litellm_input_tokens_metric_total": activity["total_prompt_tokens"],
            "litellm_output_tokens_metric_total": activity["total_completion_tokens"],
        }

    def sums(self):
        """The sums of the counters must be those of the reports, as soon as both count the last call."""
        for _ in range(60):
            wanted = self.totals()
            sums = {name: self.prometheus.number(f"sum({name})") for name in wanted}
            near = {name: 1e-9 * wanted[name] if "spend" in name else 0 for name in wanted}
            wrong = {n: sums[n] for n in wanted if sums[n] is None or abs(sums[n] - wanted[n]) > near[n]}
            if not wrong:
                break
            time.sleep(1)
        for name, value in wanted.items():
            wrong_sum = f"{sums[name]} instead of {value}" if name in wrong else ""
            self.outcome.check(f"the sum of {name} is that of the reports", wrong_sum)

    def first_call(self):
        """A key of a new team makes its first call while Prometheus scrapes. The dashboard has the whole call."""
        began, earlier = time.time(), self.totals()
        time.sleep(3)
        self.litespend.post("/team/new", {"team_id": "newcomers", "team_alias": "Newcomers"})
        asked = {"key_alias": "newcomer", "team_id": "newcomers", "permissions": {"book_usage": True}}
        key = json.loads(self.litespend.post("/key/generate", asked))["key"]
        record = {"model": "a-new-model", "prompt_tokens": 700, "completion_tokens": 300, "cost": 50, "idempotency_key": "first"}
        self.litespend.post("/spend/usage", record, key)
        self.sums()
        now = self.totals()
        booked = {name: now[name] - earlier[name] for name in now}
        self.shown("since the call", f"{int(time.time() - began)}s", booked)
        for by, label, value in (
            ("team", "team_alias", "Newcomers"), ("key", "api_key_alias", "newcomer"), ("model", "model", "a-new-model"),
        ):
            query = query_of(self.board, f"Spend by {by} in this range")
            found = self.prometheus.ask("query", query=with_variables(query, f"{int(time.time() - began)}s"))["result"]
            amounts = [float(one["value"][1]) for one in found if one["metric"].get(label) == value]
            wrong = "" if len(amounts) == 1 and abs(amounts[0] - 50) < 1e-6 else f"{amounts} instead of 50"
            self.outcome.check(f"Spend by {by} in this range has the first call of a key", wrong)
        # Prometheus has no samples of an hour ago: what was logged before it began is not spend of this hour.
        self.shown("since Prometheus began", "1h", {name: now[name] - self.before[name] for name in now})

    def shown(self, when, length, wanted):
        """The dashboard's sums over a range must be what the reports have gained."""
        for title, name in SUMS.items():
            value = self.prometheus.number(with_variables(query_of(self.board, title), length))
            wrong = "" if value is not None and abs(value - wanted[name]) < 1e-6 else f"{value} instead of {wanted[name]}"
            self.outcome.check(f"{title}, {when}, is what the reports have gained", wrong)

    def exposition(self):
        """The names, types and labels of /metrics/spend."""
        status, text = request(self.litespend.port, "GET", "/metrics/spend", key=MASTER_KEY)
        if not self.outcome.check("/metrics/spend answers", "" if status == 200 else f"{status} {text[:200]}"):
            return
        ended = subprocess.run([self.arguments.promtool, "check", "metrics"], input=text, capture_output=True, text=True)
        # 3: the names are not as Prometheus recommends. They are LiteLLM's.
        self.outcome.check("promtool can read it", ended.stdout + ended.stderr if ended.returncode not in (0, 3) else "")
        types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
        names = {PARTS.sub("", name) for name in re.findall(r"^([a-z_]+)[{ ]", text, re.MULTILINE)}
        self.outcome.check("it has no names that LiteLLM lacks", ", ".join(sorted({*types, *names} - set(COVERED) - OWN)))
        wrong = [f"{name}: {kind}" for name, kind in types.items() if kind != ("counter" if name in COUNTERS else "gauge")]
        self.outcome.check("its types are those of LiteLLM", "\n".join(wrong))
        missing = [name for name in COVERED if name not in types and name not in EMPTY_METRICS]
        self.outcome.check("no metric is missing", "\n".join(missing))
        self.labels(text)

    def labels(self, text):
        """No label that LiteLLM lacks, and all that it has but for a few."""
        wrong = set()
        for name, labels in re.findall(r"^([a-z_]+)\{(.*)\} ", text, re.MULTILINE):
            has = {label for label, _ in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels)}
            known = set(COVERED.get(name, has))
            wrong |= {f"{name} has {label}, which LiteLLM lacks" for label in has - known}
            wrong |= {f"{name} lacks {label}" for label in known - has - OPTIONAL - NOT_IN_THE_LEDGER}
        self.outcome.check("its labels are those of LiteLLM", "\n".join(sorted(wrong)))
        print(f"      labels of LiteLLM that are left out: {', '.join(sorted(NOT_IN_THE_LEDGER))}")

    def evaluate(self, what, expression, empty="", seconds=0):
        """Asks a query. `empty` says why it may have no data."""
        try:
            values = self.prometheus.numbers(expression, seconds)
        except QueryError as error:
            self.outcome.check(what, str(error))
            return False
        names = metrics_of(expression)
        unknown = [name for name in names if name not in self.known]
        reasons = [empty] if empty else [EMPTY_METRICS[name] for name in unknown if name in EMPTY_METRICS]
        if values:
            self.outcome.check(f"{what}: data")
        elif reasons:
            self.outcome.check(f"{what}: no data, {reasons[0]}")
        else:
            why = f"no series of {', '.join(unknown)}" if unknown else "not known why"
            self.outcome.check(what, f"no data, {why}")
        return bool(values)

    def dashboard(self):
        for panel in self.board["panels"]:
            for target in panel.get("targets", []):
                what = f"{panel['title']} {target['refId']}" if len(panel["targets"]) > 1 else panel["title"]
                seconds = 0 if target["instant"] else 60
                self.evaluate(what, with_variables(target["expr"]), EMPTY_PANELS.get(panel["title"], ""), seconds)
        for variable in self.board["templating"]["list"]:
            if variable["type"] == "query":
                name, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()
                values = self.prometheus.ask(f"label/{label}/values", **{"match[]": name})
                self.outcome.check(f"variable {variable['name']}: values", "" if values else f"{name} has no {label}")

    def alerts(self):
        for group in self.prometheus.ask("rules")["groups"]:
            for rule in group["rules"]:
                unknown = [name for name in metrics_of(rule["query"]) if name not in {*self.known, *EMPTY_METRICS}]
                wrong = [rule.get("lastError", "")] if rule["health"] != "ok" else []
                wrong += [f"there is no series of {name}" for name in unknown]
                wrong += [f"fires: {one['annotations']['summary']}" for one in rule["alerts"] if one["state"] == "firing"]
                self.evaluate_alert(rule, wrong)

    def evaluate_alert(self, rule, wrong):
        try:
            found = self.prometheus.numbers(rule["query"])
        except QueryError as error:
            wrong.append(str(error))
            found = []
        shown = "data" if found else "no data, as on a healthy server"
        self.outcome.check(rule["name"] if wrong else f"{rule['name']}: {shown}", "\n".join(wrong))

    def litellm(self):
        """A query that names covered metrics only must have data, unless there can be none."""
        stored, answered, total = json.loads(LITELLM.read_text()), 0, 0
        for board in stored["dashboards"]:
            place = board["path"].split("/")[-2]
            for expression in board["queries"]:
                names = metrics_of(expression)
                empty = next((NOT_COVERED[name] for name in names if name in NOT_COVERED), "")
                total += 1
                answered += self.evaluate(f"{place}: {expression}", with_variables(expression), empty)
        print(f"      {answered} of {total} queries of LiteLLM's dashboards have data")

    def everything(self):
        with self.outcome.within("files"):
            self.files()
        self.litespend = Litespend(self.arguments.litespend, self.home)
        self.litespend.run("demo-data", "--data-dir", self.litespend.data, "--days", "10", "--calls", "60")
        with self.litespend:
            self.budgets()
            self.before = self.totals()
            self.prometheus = Prometheus(self.arguments.prometheus, self.home, self.configure())
            with self.prometheus:
                with self.outcome.within("scrapes"):
                    self.scraped()
                # The dashboard's queries look at every second: at one, at least, before the first call.
                time.sleep(2)
                self.book()
                with self.outcome.within("sums"):
                    self.sums()
                with self.outcome.within("first call"):
                    self.first_call()
                names = self.prometheus.ask("label/__name__/values")
                self.known = {*names, *(PARTS.sub("", name) for name in names)}
                for place, part in (
                    ("exposition", self.exposition), ("dashboard", self.dashboard), ("alerts", self.alerts),
                    ("LiteLLM", self.litellm),
                ):
                    with self.outcome.within(place):
                        part()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--litespend", type=lambda path: str(Path(path).resolve()), required=True, help="the program")
    parser.add_argument("--prometheus", required=True)
    parser.add_argument("--promtool", required=True)
    parser.add_argument("--seconds", type=int, default=8, help="how long calls are booked")
    parser.add_argument("--keep", action="store_true", help="keep the directory of the run")
    arguments = parser.parse_args()
    outcome = Outcome()
    home = Path(tempfile.mkdtemp(prefix="litespend-prometheus-", dir="/tmp"))
    # PostgreSQL may run as another account.
    home.chmod(0o755)
    try:
        with outcome.within("run"):
            Run(arguments, home, outcome).everything()
    finally:
        if arguments.keep:
            print(f"kept: {home}")
        else:
            shutil.rmtree(home, ignore_errors=True)
    sys.exit(outcome.finish())


if __name__ == "__main__":
    main()
