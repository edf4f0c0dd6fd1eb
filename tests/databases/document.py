"""Puts the table of `./dev test-databases` into docs/compatibility.md: document.py [TABLE] [PAGE]."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BEGIN, END = "<!-- databases: begin -->", "<!-- databases: end -->"


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def short(cell):
    """A cell without its details."""
    return cell.split(":")[0]


def merged(rows):
    """Rows of one database with several versions of PostgreSQL become one, where their outcomes are the same."""
    found = {}
    for name, version, *outcomes in rows:
        found.setdefault((name, *map(short, outcomes)), []).append(version)
    return [[name, ", ".join(versions), *outcomes] for (name, *outcomes), versions in found.items()]


def main(table, page):
    header, rule, *rows = [line for line in table.read_text().splitlines() if line.startswith("|")]
    lines = [header, rule, *(f"| {' | '.join(row)} |" for row in merged(map(cells, rows)))]
    before, rest = page.read_text().split(BEGIN)
    page.write_text("\n".join([before + BEGIN, *lines, END + rest.split(END)[1]]))


if __name__ == "__main__":
    given = [pathlib.Path(argument) for argument in sys.argv[1:]]
    main(*(given + [ROOT / "target/databases/table.md", ROOT / "docs/compatibility.md"][len(given):]))
