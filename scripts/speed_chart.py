"""Draws docs/images/speed.svg from the table of reads at 10 million rows in docs/performance.md, as the benchmark printed it.

Needs Python 3 and matplotlib (PyPI): python3 scripts/speed_chart.py
"""

import pathlib

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "litespend"
matplotlib.rcParams["font.family"] = "sans-serif"
matplotlib.rcParams["svg.fonttype"] = "none"
from matplotlib import pyplot as plt  # noqa: E402  (the backend has to be chosen first)

ROOT = pathlib.Path(__file__).parent.parent
# The rows of the table that are shown, and what they are called.
READS = {
    "report team 30d": "report by team, 30 days",
    "report team 90d": "report by team, 90 days",
    "report customer 30d": "report by customer, 30 days (317 MB)",
    "report api_key 90d": "report by key, 90 days",
    "global tags 30d": "spend by tag, 30 days",
    "logs by day 90d": "log summary by day, 90 days",
}


def rows():
    """Name, median and plain SQL of each read, in milliseconds."""
    text = (ROOT / "docs/performance.md").read_text()
    section = text.split("## Reads at 10 million rows")[1].split("\n## ")[0]
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 8 and cells[0] in READS and cells[6] != "-":
            yield READS[cells[0]], float(cells[1]), float(cells[6])


names, medians, plain = zip(*rows())
figure, axes = plt.subplots(figsize=(8, 3.4))
positions = range(len(names))
axes.barh([p - 0.2 for p in positions], plain, 0.38, color="#b8bec9", label="plain SQL on the log")
axes.barh([p + 0.2 for p in positions], medians, 0.38, color="#2563eb", label="litespend")
for position, (fast, slow) in enumerate(zip(medians, plain)):
    axes.text(slow * 1.1, position - 0.2, f"{slow:,.0f} ms", va="center", fontsize=8, color="#4b5563")
    axes.text(fast * 1.1, position + 0.2, f"{fast:,.1f} ms", va="center", fontsize=8, color="#1d4ed8")
axes.set_xscale("log")
axes.set_xlim(0.1, max(plain) * 6)
axes.set_yticks(positions, names, fontsize=9)
axes.invert_yaxis()
axes.set_xlabel("milliseconds, logarithmic; 10 million rows, median of 20 runs", fontsize=8)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncol=2, frameon=False, fontsize=8)
figure.patch.set_facecolor("white")
figure.tight_layout()
figure.savefig(ROOT / "docs/images/speed.svg", metadata={"Date": None})
