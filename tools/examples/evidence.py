"""Figures for the notes of examples, read out of the tables of docs/evidence, so that no note says one of its own."""

import re

from tools.host import ROOT


def share(page: str, row: str, column: str, below: str = "") -> str:
    """A share of a table as "38 of 100"; of the tables after the line `below`, if one is given. Raises KeyError when no
    such table has that row and column.
    """
    text = (ROOT / "docs" / "evidence" / f"{page}.md").read_text(encoding="utf-8")
    text = text[text.find(f"\n{below}\n") + 1 :] if below else text
    columns: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells or re.fullmatch(r"[-\s|:]+", line):
            columns = columns if cells else []
        elif not columns:
            columns = cells
        elif cells[0] == row and column in columns:
            return f"{round(100 * float(cells[columns.index(column)].split('/')[0]))} of 100"
    raise KeyError(f"{page}.md has no row '{row}' with a column '{column}'")
