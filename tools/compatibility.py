"""`python -m tools.compatibility REPORT.xml ...`: writes docs/compatibility.md from the report of a test run.

    python dev.py test host tests/host/test_compatibility.py --junitxml=REPORT.xml
    python -m tools.compatibility REPORT.xml

Every cell comes from a test that ran and passed; it says "works", or the sentence with which the pack refuses. A cell
without a passed test is empty.
"""

import argparse
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- tables, written by `python -m tools.compatibility` -->", "<!-- end of tables -->"
TITLES = {
    "family": "Guidances and model families",
    "weaker": "Methods of Weaker Version and model families",
    "core nodes, Autoguidance Model Pair": "Autoguidance Model Pair and nodes of ComfyUI",
    "core nodes, per-block prompts": "Per-block prompts and nodes of ComfyUI",
    "core nodes, Caption Residual Guidance": "Caption Residual Guidance and nodes of ComfyUI",
    "core nodes, Guidance Trace": "Guidance Trace and nodes of ComfyUI",
    "samplers": "Samplers",
    "schedulers": "Schedulers",
}
Cells = dict[str, dict[tuple[str, str], str]]


def read(report: Path) -> Cells:
    """Table → (row, column) → what its test said, of the tests that passed."""
    cells: Cells = {}
    for case in ElementTree.parse(report).iter("testcase"):
        if any(case.find(kind) is not None for kind in ("failure", "error", "skipped")):
            continue
        for entry in case.iter("property"):
            if entry.get("name") == "compatibility":
                table, row, column, what = (entry.get("value") or "").split("\t")
                cells.setdefault(table, {})[row, column] = what
    return cells


def written(cells: Cells) -> str:
    """The tables as Markdown; refusals as numbers of notes below each table."""
    parts = []
    for table, title in TITLES.items():
        found = cells.get(table, {})
        rows, columns = (list(dict.fromkeys(key[i] for key in found)) for i in (0, 1))
        if len(columns) > len(rows) and table not in ("samplers", "schedulers"):  # families go down
            found = {(column, row): what for (row, column), what in found.items()}
            rows, columns = columns, rows
        if len(columns) == 1:
            working = [row for row in rows if found[row, columns[0]] == "works"]
            parts.append(f"## {title}\n\nWith {columns[0]}, {len(working)} of {len(rows)} work: {', '.join(working)}.")
            continue
        notes = list(dict.fromkeys(what for what in found.values() if what != "works"))
        lines = [f"## {title}", "", "| | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
        for row in rows:
            what = [_short(found.get((row, column)), notes) for column in columns]
            lines.append(f"| {row} | " + " | ".join(what) + " |")
        lines += [""] * bool(notes) + [f"{number}. {note}" for number, note in enumerate(notes, 1)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _short(what: str | None, notes: list[str]) -> str:
    if what is None:
        return ""
    return what if what == "works" else f"refused ({notes.index(what) + 1})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, nargs="+", help="one report or several, of the parts of one run")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    cells: Cells = {}
    for report in parser.parse_args().report:
        for table, found in read(report).items():
            cells.setdefault(table, {}).update(found)
    text = written(cells)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
