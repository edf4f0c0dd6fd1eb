"""Follows LiteLLM to its newest release, or to another one: follow.py [VERSION]. Run by `./dev follow`.

It merges the release's prices, answers the requests of the release's dashboard that the server does not know, runs the tests
that compare with LiteLLM, and writes target/follow/report.md. A step that fails is in the report; the others run all the same,
and the exit code is 1 at the end. What it changes in the checkout is for a maintainer to read: tests/reference/VERSION,
tests/databases/VERSION, the price table, data/dashboard_shapes.json, data/dashboard.sha256, and the lines with `.stub()` in
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
# The version of the package with LiteLLM's migrations.
MIGRATIONS = ROOT / "tests/databases/VERSION"
DASHBOARD = ROOT / "data/dashboard.sha256"
SHAPES = ROOT / "data/dashboard_shapes.json"
ROUTES = ROOT / "src/route_table.rs"
PRICES = "litellm/model_prices_and_context_window_backup.json"

# A visit finds what the pages ask for. Once that is answered, they may ask for more.
MOST_VISITS = 4

# The statuses with which the server says that it has no such path or method.
UNKNOWN = (404, 405, 501)


# So many of the last lines that a command printed are in the report, and so much of each.
LAST_LINES, LINE = 25, 300


class Failed(Exception):
    """A step failed; the words are for the report."""


def output(*command, **variables):
    """What a command prints. If it fails, its last lines are in the exception."""
    command = [str(part) for part in command]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    sys.stderr.write(done.stderr)
    if done.returncode != 0:
        lines = [line[:LINE] for line in [*done.stdout.splitlines(), *done.stderr.splitlines()][-LAST_LINES:]]
        raise Failed("\n".join([f"exit code {done.returncode}: {' '.join(command)}", *lines]))
    return done.stdout


# The release.


def versions_on_the_index(package):
    """The versions of a package, the newest one first."""
    listed = output(sys.executable, "-m", "pip", "index", "versions", "--disable-pip-version-check", package)
    return re.search(r"Available versions: (.*)", listed).group(1).split(", ")


def wheel(version):
    """The package of a release, from the package index or from an earlier run."""
    folder = TARGET / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    pattern = f"litellm-{version}-*.whl"
    if not list(folder.glob(pattern)):
        output(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", folder, f"litellm=={version}")
    return next(folder.glob(pattern))


def required_migrations(version):
    """The version of the package with migrations that a release requires."""
    with zipfile.ZipFile(wheel(version)) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        found = re.search(r"^Requires-Dist: litellm-proxy-extras==([\w.]+)", archive.read(name).decode(), re.MULTILINE)
    if not found:
        raise Failed(f"LiteLLM {version} does not state a version of litellm-proxy-extras")
    return found.group(1)


def move_migrations(version):
    """Writes the version of the release's migrations. Returns a sentence about it for the report."""
    required, listed = required_migrations(version), versions_on_the_index("litellm-proxy-extras")
    old, new = MIGRATIONS.read_text().strip(), required if required in listed else listed[0]
    MIGRATIONS.write_text(new + "\n")
    moved = "as before" if old == new else f"before: {old}"
    if new == required:
        return f"litellm-proxy-extras {new}, {moved}."
    return f"litellm-proxy-extras {new}, {moved}. The release requires {required}, which the package index does not have."


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
    command = ["node", "tests/ui/dashboard.mjs", TARGET, "--shapes", SHAPES, "--visit", file]
    output(*command, LITELLM_UI_PATH=str(ui), LITESPEND_BIN=str(server))
    return json.loads(file.read_text())


def ask_litellm(requests, server):
    """LiteLLM's answers to requests, by path; see tests/reference/empty_answers.py."""
    asked, answers = OUT / "requests.json", OUT / "answers.json"
    asked.write_text(json.dumps(requests))
    output("tests/reference/empty_answers.sh", asked, answers, LITESPEND_BIN=str(server))
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
        try:
            requests = self.visit_until_answered()
        finally:
            # The answers of earlier visits are stored already.
            self.add_lines()
        asked = [request["path"] for request in requests]
        self.unasked = [path for path in json.loads(SHAPES.read_text()) if not any(fits(path, each) for each in asked)]

    def visit_until_answered(self):
        """Makes answers until a visit needs no more. Returns the requests of the last visit."""
        while self.visits < MOST_VISITS:
            found = visit(self.visits + 1, self.ui, self.server)
            self.visits += 1
            self.broken = found["broken"]
            unknown = self.unknown(found["requests"])
            before = len(self.made)
            if unknown or self.visits == 1:
                self.answer(unknown)
            if len(self.made) == before:
                break
        return found["requests"]

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
            raise Failed(f"shapes and routes differ: {sorted(shapes ^ stubs)}")


# Tests.


def test(name, *arguments):
    """Runs a test of `./dev`: its last lines and whether it passed. What it prints is in a file."""
    file = OUT / f"{name}.txt"
    with open(file, "w") as log:
        done = subprocess.run(["./dev", name, *map(str, arguments)], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    lines = file.read_text().splitlines()
    return {"passed": done.returncode == 0, "lines": lines[-LAST_LINES:]}


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
        lines += [f"### `./dev {name}` {'passed' if result['passed'] else 'FAILED'}", "", *block("\n".join(result["lines"]))]
    differences = OUT / "differences.md"
    if differences.exists():
        lines += ["### Differences from LiteLLM's own code", "", differences.read_text()]
    return lines


def block(text):
    return ["```", text.rstrip(), "```", ""]


def failures_part(failures):
    lines = ["## Steps that failed", ""] if failures else []
    for name, error in failures.items():
        lines += [f"### {name}", "", *block(error)]
    return lines


# Places that name a version for another reason, and files that this script writes.
NOT_BY_HAND = ["tests/conformance", "crates/pricing/data", "data", "*.lock", "*-lock.json", "*requirements*.txt"]


def lines_that_name(version):
    """The lines of the checkout that name a version: a dictionary from a file to their numbers."""
    command = ["git", "grep", "-InwF", version, "--", ".", *(f":!{path}" for path in NOT_BY_HAND)]
    found = {}
    for line in subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE).stdout.splitlines():
        path, number, _ = line.split(":", 2)
        found.setdefault(path, []).append(number)
    return found


def by_hand(old, new):
    """What the move to another release leaves to do."""
    if old == new:
        return []
    python = f"target/reference-venvs/{new}/bin/python"
    steps = [
        f"Read these lines, which name {old}. Where they speak of the reference, write {new}:",
        *(f"  - `{path}`: {', '.join(numbers)}" for path, numbers in lines_that_name(old).items()),
        "Run `tests/reference/record_changed.sh` (the recorded answers that the release gives otherwise). It says which "
        "difference needs a reason in `tests/reference/record_changed.py`.",
        f"Run `{python} crates/pricing/tests/record_answers.py --recorded-prices TABLE.json` (the same for prices; the script "
        "says which table).",
        "Run `./dev test-reference --every-model`.",
        "Run `./dev compatibility`. It writes its table, with the minor versions before the release's, into "
        "`docs/compatibility.md`. The table after it is written by hand.",
        "Run `./dev test-databases`, then `python3 tests/databases/document.py`, which writes the table of databases.",
        "Compare the lists of `crates/pricing/src/names/provider_lists.rs` with the release's, and name the release in "
        "`CHANGELOG.md`.",
        "Run `./dev test`.",
    ]
    return ["## To do by hand", "", *(step if step.startswith("  ") else f"- {step}" for step in steps), ""]


def digest_of(export):
    """The digest of a dashboard's export, as src/cli/dashboard_export.rs computes it."""
    lines = []
    for path in sorted(path.relative_to(export).as_posix() for path in export.rglob("*") if path.is_file()):
        lines.append(f"{hashlib.sha256((export / path).read_bytes()).hexdigest()}  {path}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# The steps.


class Follow:
    """The steps, each of which may fail alone, and what they leave for the report."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.old = self.new = VERSION.read_text().strip()
        self.server = os.environ.get("LITESPEND_BIN", TARGET / "debug/litespend")
        self.prices, self.migrations, self.dashboard, self.results = "", "", None, {}
        self.failures, self.ended = {}, False

    def step(self, name, action, *arguments):
        print(f"follow: {name}", flush=True)
        try:
            action(*arguments)
        except Exception as error:
            self.failures[name] = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
            print(f"follow: {name} failed: {self.failures[name]}", file=sys.stderr, flush=True)
        # After each step, so that a run that is cut off leaves a report, too.
        self.report()

    def run(self):
        for part in ("postgresql", "server", "browser"):
            self.step(f"./dev prepare {part}", output, "./dev", "prepare", part)
        self.step("the release", self.take_release)
        self.step("prices", self.merge_prices)
        self.step("migrations", self.move_migrations)
        self.step("the dashboard", self.follow_dashboard)
        if not self.arguments.skip_tests:
            self.run_tests()
        self.ended = True
        self.report()

    def take_release(self):
        """Only a release that is there becomes the reference. Without one, the other steps stay with the last one."""
        new = self.arguments.version or versions_on_the_index("litellm")[0]
        wheel(new)
        VERSION.write_text(new + "\n")
        self.new = new

    def merge_prices(self):
        self.prices = merge_prices(self.new)

    def move_migrations(self):
        self.migrations = move_migrations(self.new)

    def follow_dashboard(self):
        export = output("./dev", "fetch-ui").strip()
        DASHBOARD.write_text(f"{digest_of(ROOT / export)}  {self.new}\n")
        self.dashboard = Dashboard(export, self.server)
        self.dashboard.follow()

    def run_tests(self):
        differences = OUT / "differences.md"
        differences.unlink(missing_ok=True)
        self.test("test-reference", "--requests", self.arguments.requests, "--report", differences)
        # A server that was built beforehand lacks the new answers.
        self.test("test-ui", *(["--shapes", SHAPES] if "LITESPEND_BIN" in os.environ else []))

    def test(self, name, *arguments):
        def run():
            self.results[name] = test(name, *arguments)

        self.step(" ".join(["./dev", name, *map(str, arguments)]), run)

    def report(self):
        today = datetime.datetime.now(datetime.timezone.utc).date()
        versions = f"From LiteLLM {self.old} to {self.new}." if self.old != self.new else f"LiteLLM {self.new}, as before."
        lines = [f"# Following LiteLLM, {today}", "", versions, ""]
        lines += [] if self.ended else ["The run did not come to its end: later steps are missing.", ""]
        lines += failures_part(self.failures)
        lines += ["## Prices", "", *block(self.prices or "not merged")]
        lines += ["## Migrations", "", self.migrations or "Not moved.", ""]
        lines += dashboard_part(self.dashboard) if self.dashboard else ["## The dashboard", "", "Not visited.", ""]
        lines += tests_part(self.results) if self.results else ["Tests were not run.", ""]
        lines += by_hand(self.old, self.new)
        (OUT / "report.md").write_text("\n".join(lines))

    def succeeded(self):
        return not self.failures and all(result["passed"] for result in self.results.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version", nargs="?", help="of LiteLLM; the newest one on the package index, if not given")
    parser.add_argument("--requests", type=int, default=2000, help="for `./dev test-reference`")
    parser.add_argument("--skip-tests", action="store_true", help="run neither test-reference nor test-ui")
    follow = Follow(parser.parse_args())
    OUT.mkdir(parents=True, exist_ok=True)
    follow.run()
    print(f"follow: the report is in {OUT / 'report.md'}")
    sys.exit(0 if follow.succeeded() else 1)


if __name__ == "__main__":
    main()
