"""Follows LiteLLM to its newest release, or to another one: follow.py [VERSION]. Run by `./dev follow`.

It merges the release's prices, answers the requests of the release's dashboard that the server does not know, runs the tests
that compare with LiteLLM, and writes target/follow/report.md. What it changes in the checkout is for a maintainer to read:
tests/reference/VERSION, the price table, data/dashboard_shapes.json, data/dashboard.sha256, and the lines with `.stub()` in
src/route_table.rs.
"""

import argparse
import datetime
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
OUT = TARGET / "follow"
VERSION = ROOT / "tests/reference/VERSION"
DASHBOARD = ROOT / "data/dashboard.sha256"
SHAPES = ROOT / "data/dashboard_shapes.json"
ROUTES = ROOT / "src/route_table.rs"
PRICES = "litellm/model_prices_and_context_window_backup.json"

# A visit finds what the pages ask for. Once that is answered, they may ask for more.
MOST_VISITS = 4

# The statuses with which the server says that it has no such path or method.
UNKNOWN = (404, 405, 501)


def run(*command, **options):
    return subprocess.run([str(part) for part in command], cwd=ROOT, check=True, text=True, **options)


def output(*command):
    return run(*command, stdout=subprocess.PIPE).stdout


# The release.


def newest_version():
    listed = output(sys.executable, "-m", "pip", "index", "versions", "--disable-pip-version-check", "litellm")
    return re.match(r"litellm \((.+?)\)", listed).group(1)


def wheel(version):
    """The package of a release, from the package index or from an earlier run."""
    folder = TARGET / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    pattern = f"litellm-{version}-*.whl"
    if not list(folder.glob(pattern)):
        run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", folder, f"litellm=={version}")
    return next(folder.glob(pattern))


def merge_prices(version):
    """What merge_prices.py says that it changed."""
    new = OUT / "prices.json"
    with zipfile.ZipFile(wheel(version)) as archive:
        new.write_bytes(archive.read(PRICES))
    return output(sys.executable, "scripts/merge_prices.py", new, "--version", version, "--names")


# The route table.


def routes():
    """The lines of the route table: a dictionary from path to method, and the set of paths that get an empty answer."""
    found, stubs = {}, set()
    for method, path, rest in re.findall(r'^    (get|post)\("([^"]+)", (.*),$', ROUTES.read_text(), re.MULTILINE):
        found[path] = method.upper()
        if rest.endswith(".stub()"):
            stubs.add(path)
    return found, stubs


def fits(pattern, path):
    """Whether a path is one of a pattern's."""
    expression = re.sub(r"\\\{\\\*\w+\\\}", ".+", re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(pattern)))
    return re.fullmatch(expression, path) is not None


def add_stubs(access):
    """Adds lines for paths to the route table, after the last line of their kind."""
    lines = ROUTES.read_text().splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if line.rstrip().endswith(".stub(),"))
    new = [f'    get("{path}", Access::{access[path]}, NONE).stub(),\n' for path in sorted(access)]
    ROUTES.write_text("".join(lines[: last + 1] + new + lines[last + 1 :]))
    return new


# Empty answers.

# What LiteLLM answers on an empty database may be long nevertheless, such as a list of all providers.
LONGEST = 2000


def text_of(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


DAY, MOMENT = "1970-01-01", "1970-01-01T00:00:00Z"


def settled_text(value, name):
    if re.fullmatch(r"\d{4}-\d\d-\d\d([T ][\d:.]+(Z|[+-]\d\d:\d\d)?)?", value):
        return DAY if len(value) == len(DAY) else MOMENT
    if value == "127.0.0.1" or "/tmp/" in value or "/site-packages/" in value:
        return ""
    # Pages fail at a time that is none, though the document allows every string.
    return {"_date": DAY, "_at": MOMENT}.get(name[name.rfind("_") :], "") if value == "" else value


def settled(value, name=""):
    """An answer without what differs between two runs or machines: times, days, processes, addresses, paths."""
    if isinstance(value, dict):
        return {key: settled(part, key) for key, part in value.items()}
    if isinstance(value, list):
        return [settled(part) for part in value]
    if isinstance(value, str):
        return settled_text(value, name)
    return 0 if name.endswith("_pid") else value


def without_prose(value, inside=False):
    """An answer without the titles and descriptions in the schemas of settings."""
    if isinstance(value, list):
        return [without_prose(part, inside) for part in value]
    if not isinstance(value, dict):
        return value
    fields = value.items()
    if inside:
        fields = [(key, part) for key, part in fields if key not in ("title", "description") or not isinstance(part, str)]
    return {key: without_prose(part, inside or key == "field_schema") for key, part in fields}


def emptied(value):
    """A long answer without the items of its lists. A long object is one whose fields are named by data."""
    if isinstance(value, list):
        return []
    if isinstance(value, dict):
        return {key: emptied(part) for key, part in value.items()} if len(text_of(value)) < 4 * LONGEST else {}
    return value


def shape(answer):
    """The empty answer that is made of LiteLLM's, and where it is from; nothing where neither LiteLLM's code nor its document
    has one. An answer of the code is preferred, because the document allows null and 0 where the code never gives them."""
    own = without_prose(settled(answer["body"])) if answer.get("status") == 200 else None
    is_own = answer.get("status") == 200 and not isinstance(own, str)
    if is_own and len(text_of(own)) <= LONGEST:
        return own, "LiteLLM's answer on an empty database"
    if "schema" in answer:
        return settled(answer["schema"]), "LiteLLM's OpenAPI document"
    if is_own:
        return emptied(own), "LiteLLM's answer on an empty database, without the items of its lists"
    return None


def kind(value):
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__


def completed(kept, made):
    """An entry that is there already, with the fields that it lacks. What is of another type is replaced."""
    if isinstance(kept, dict) and isinstance(made, dict):
        fields = {key: completed(part, made[key]) if key in made else part for key, part in kept.items()}
        if "litellm_version" in made:
            fields["litellm_version"] = made["litellm_version"]
        return {**fields, **{key: part for key, part in made.items() if key not in kept}}
    if kept is None or made is None or kind(kept) == kind(made):
        return kept
    return made


def write_shapes(shapes):
    lines = [f"{json.dumps(path)}: {text_of(shapes[path])}" for path in sorted(shapes)]
    SHAPES.write_text("{\n" + ",\n".join(lines) + "\n}\n")


# The dashboard.


def visit(number, ui, server):
    """The requests that the dashboard's pages make, and the pages that break."""
    file = OUT / f"visit-{number}.json"
    environment = {**os.environ, "LITELLM_UI_PATH": str(ui), "LITESPEND_BIN": str(server)}
    run("node", "tests/ui/dashboard.mjs", TARGET, "--shapes", SHAPES, "--visit", file, env=environment)
    return json.loads(file.read_text())


def ask_litellm(requests, server):
    """LiteLLM's answers to requests, by path; see tests/reference/empty_answers.py."""
    asked, answers = OUT / "requests.json", OUT / "answers.json"
    asked.write_text(json.dumps(requests))
    environment = {**os.environ, "LITESPEND_BIN": str(server)}
    run("tests/reference/empty_answers.sh", asked, answers, env=environment)
    return {request["path"]: answer for request, answer in zip(requests, json.loads(answers.read_text()))}


def access_class(answer):
    """Who may call a path, by whom LiteLLM refuses."""
    if answer["open"]:
        return "Public"
    return "AdminRead" if answer["user"] in (401, 403) else "AnyKey"


class Dashboard:
    """Makes the answers that the dashboard of a release needs, and keeps what the report tells of it."""

    def __init__(self, ui, server):
        self.ui, self.server = ui, server
        self.queries = {}
        self.made, self.completed, self.unanswered, self.other = {}, {}, {}, {}
        self.lines, self.visits, self.broken, self.unasked = [], 0, {}, []

    def follow(self):
        while self.visits < MOST_VISITS:
            self.visits += 1
            found = visit(self.visits, self.ui, self.server)
            self.broken = found["broken"]
            unknown = self.unknown(found["requests"])
            before = len(self.made)
            if unknown or self.visits == 1:
                self.answer(unknown)
            if len(self.made) == before:
                break
        self.add_lines()
        asked = [request["path"] for request in found["requests"]]
        self.unasked = [path for path in json.loads(SHAPES.read_text()) if not any(fits(path, each) for each in asked)]

    def unknown(self, requests):
        """The reads for which an answer is to be made. All others that fail are only reported."""
        known, _ = routes()
        reads = []
        for request in requests:
            path, name = request["path"], f"{request['method']} {request['path']}"
            self.queries.setdefault(path, request["query"])
            if request["status"] not in UNKNOWN or path in self.unanswered:
                continue
            in_table = any(fits(pattern, path) for pattern in known if pattern not in self.made)
            if request["method"] != "GET" or in_table:
                self.other[name] = request
            else:
                reads.append(request)
        return reads

    def answer(self, unknown):
        """Makes the answers that are missing, and completes those that LiteLLM has changed."""
        shapes = json.loads(SHAPES.read_text())
        paths = sorted({request["path"] for request in unknown} | {path for path in shapes if "{" not in path})
        requests = [{"path": path, "query": self.queries.get(path, {})} for path in paths]
        answers = ask_litellm(requests, self.server)
        pages = {request["path"]: request["pages"] for request in unknown}
        for path, answer in answers.items():
            if path in pages:
                self.make(shapes, path, pages[path], answer)
            else:
                self.complete(shapes, path, answer)
        write_shapes(shapes)

    def make(self, shapes, path, pages, answer):
        found = shape(answer)
        if found is None:
            self.unanswered[path] = (pages, answer.get("status", 404))
            return
        shapes[answer["pattern"]] = found[0]
        self.made[answer["pattern"]] = (pages, found[1], access_class(answer))

    def complete(self, shapes, path, answer):
        found = shape(answer)
        whole = completed(shapes[path], found[0]) if found else shapes[path]
        if whole != shapes[path]:
            self.completed[path] = (shapes[path], whole)
            shapes[path] = whole

    def add_lines(self):
        known, _ = routes()
        missing = {path: access for path, (_, _, access) in self.made.items() if path not in known}
        if missing:
            self.lines = add_stubs(missing)
        shapes = set(json.loads(SHAPES.read_text()))
        stubs = {path for path in routes()[1] if not path.startswith("/.well-known")}
        if shapes != stubs:
            sys.exit(f"shapes and routes differ: {sorted(shapes ^ stubs)}")


# Tests.


def test(name, *arguments):
    """Runs a test of `./dev`: its last line and whether it passed. What it prints is in a file."""
    file = OUT / f"{name}.txt"
    print(f"follow: ./dev {name} {' '.join(map(str, arguments))}", flush=True)
    with open(file, "w") as log:
        done = subprocess.run(["./dev", name, *map(str, arguments)], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    lines = file.read_text().splitlines()
    return {"passed": done.returncode == 0, "lines": lines[-25:]}


def run_tests(requests):
    differences = OUT / "differences.md"
    differences.unlink(missing_ok=True)
    # A server that was built beforehand lacks the new answers.
    shapes = ["--shapes", SHAPES] if "LITESPEND_BIN" in os.environ else []
    return {
        "test-reference": test("test-reference", "--requests", requests, "--report", differences),
        "test-ui": test("test-ui", *shapes),
    }


# The report.


def listed(title, lines):
    return [f"### {title}", "", *lines, ""] if lines else []


def on_pages(pages):
    names = [page.rstrip("/") or "the front page" for page in pages[:3]]
    return ", ".join(names) + (" and others" if len(pages) > 3 else "")


def dashboard_part(dashboard):
    made = [
        f"- `{path}` ({access}), from {source}; asked for by {on_pages(pages)}"
        for path, (pages, source, access) in sorted(dashboard.made.items())
    ]
    changed = [
        f"- `{path}`: `{text_of(old)[:300]}` became `{text_of(new)[:300]}`"
        for path, (old, new) in sorted(dashboard.completed.items())
    ]
    nothing = [
        f"- `{path}`: LiteLLM itself answers {status}; asked for by {on_pages(pages)}"
        for path, (pages, status) in sorted(dashboard.unanswered.items())
    ]
    other = [
        f"- `{name}`: {request['status']}; asked for by {on_pages(request['pages'])}"
        for name, request in sorted(dashboard.other.items())
    ]
    broken = [f"- {on_pages([page])}: {'; '.join(errors)[:300]}" for page, errors in sorted(dashboard.broken.items())]
    added = f"{len(made)} new empty answers, {len(dashboard.lines)} new lines in `src/route_table.rs`"
    return [
        "## The dashboard",
        "",
        f"{dashboard.visits} visits of all pages; {added}.",
        "",
        *listed("New empty answers", made),
        *listed("Empty answers that were completed", changed),
        *listed("Reads that LiteLLM does not answer either, or not without a service of its own", nothing),
        *listed("Other requests that failed, for a maintainer to look at", other),
        *listed("Pages that raise errors", broken),
        *listed("Empty answers that no visited page asked for (they are kept)", [f"- `{path}`" for path in dashboard.unasked]),
    ]


def tests_part(results):
    lines = ["## Tests", ""]
    for name, result in results.items():
        lines += [f"### `./dev {name}` {'passed' if result['passed'] else 'FAILED'}", "", "```", *result["lines"], "```", ""]
    differences = OUT / "differences.md"
    if differences.exists():
        lines += ["### Differences from LiteLLM's own code", "", differences.read_text()]
    return lines


def report(old, new, prices, dashboard, results):
    today = datetime.datetime.now(datetime.timezone.utc).date()
    versions = f"From LiteLLM {old} to {new}." if old != new else f"LiteLLM {new}, as before."
    lines = [f"# Following LiteLLM, {today}", "", versions, "", "## Prices", "", "```", prices.rstrip(), "```", ""]
    lines += dashboard_part(dashboard)
    lines += tests_part(results) if results else ["Tests were not run."]
    (OUT / "report.md").write_text("\n".join(lines) + "\n")


def digest_of(export):
    """The digest of a dashboard's export, as src/cli/dashboard_export.rs computes it."""
    lines = []
    for path in sorted(path.relative_to(export).as_posix() for path in export.rglob("*") if path.is_file()):
        lines.append(f"{hashlib.sha256((export / path).read_bytes()).hexdigest()}  {path}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version", nargs="?", help="of LiteLLM; the newest one on the package index, if not given")
    parser.add_argument("--requests", type=int, default=2000, help="for `./dev test-reference`")
    parser.add_argument("--skip-tests", action="store_true", help="run neither test-reference nor test-ui")
    arguments = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    old, new = VERSION.read_text().strip(), arguments.version or newest_version()
    print(f"follow: LiteLLM {old} to {new}", flush=True)
    prices = merge_prices(new)
    VERSION.write_text(new + "\n")
    server = os.environ.get("LITESPEND_BIN", TARGET / "debug/litespend")
    export = output("./dev", "fetch-ui").strip()
    DASHBOARD.write_text(f"{digest_of(ROOT / export)}  {new}\n")
    dashboard = Dashboard(export, server)
    dashboard.follow()
    results = {} if arguments.skip_tests else run_tests(arguments.requests)
    report(old, new, prices, dashboard, results)
    print(f"follow: the report is in {OUT / 'report.md'}")
    sys.exit(any(not result["passed"] for result in results.values()))


if __name__ == "__main__":
    main()
