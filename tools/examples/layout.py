"""Places the nodes of an example: columns of nodes make a group, columns of groups make the picture."""

import math
import re
import unicodedata
from dataclasses import dataclass

from tools.examples.plan import BELOW, GROWS, LITTLE, Example

TITLE = 30  # height of a node's title, which stands above its position
GAP_X, GAP_Y = 54, 36  # between columns of nodes (links run there), between nodes of a column
PAD, HEAD = 22, 44  # inside a group: at its sides, and for its title
GROUP_GAP = 44  # between groups; the links' lanes
NOTE = "note"
LETTER, LINE, PARAGRAPH = 6.6, 18, 10  # of its text: width and height, and what is free after a paragraph


@dataclass
class Box:
    """A rectangle of the canvas: of a node with its title, or of a group."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height


@dataclass
class Layout:
    """`nodes` and `groups` as boxes; `nodes` has one called "note"."""

    nodes: dict[str, Box]
    groups: dict[str, Box]

    @property
    def bounds(self) -> Box:
        boxes = [*self.nodes.values(), *self.groups.values()]
        left, top = min(box.x for box in boxes), min(box.y for box in boxes)
        return Box(left, top, max(box.right for box in boxes) - left, max(box.bottom for box in boxes) - top)


def place(example: Example, sizes: dict[str, tuple[float, float]], grows: dict[str, int] = GROWS) -> Layout:
    """Where everything goes. `sizes` are what the nodes need in either renderer, without titles; `grows`: room to leave
    below nodes of a class.
    """
    nodes: dict[str, Box] = {}
    groups: dict[str, Box] = {}
    x = 0.0
    for column in example.columns:
        y, width = 0.0, 0.0
        for key in column:
            above, below = (example.note_at == (side, key) for side in ("above", "below"))
            box = _group(example, key, sizes, grows, x, y, nodes)
            if above:
                nodes[NOTE] = _note(example.note, x, y, box.width)
                box = _group(example, key, sizes, grows, x, nodes[NOTE].bottom + GROUP_GAP, nodes)
            groups[key] = box
            y, width = box.bottom + GROUP_GAP, max(width, box.width)
            if below:
                nodes[NOTE] = _note(example.note, x, y, box.width)
                y = nodes[NOTE].bottom + GROUP_GAP
        x += width + GROUP_GAP
    for column in example.columns:  # groups of a column are equally wide
        right = max(groups[key].right for key in column)
        for key in column:
            groups[key].width = right - groups[key].x
    return Layout(nodes, groups)


def _note(text: str, x: float, y: float, width: float) -> Box:
    """As tall as its text needs in the renderer that writes it larger."""
    lines, gaps = 0, 0
    for line in filter(None, re.sub(r"\]\([^)]*\)", "]", text).splitlines()):
        letters = sum(2 if unicodedata.east_asian_width(letter) == "W" else 1 for letter in line)
        lines += math.ceil(letters / ((width - 30) / LETTER))
        gaps += not line.startswith("- ")
    return Box(x, y, width, TITLE + 24 + LINE * lines + PARAGRAPH * gaps)


def _group(example: Example, key: str, sizes: dict, grows: dict, x: float, y: float, nodes: dict[str, Box]) -> Box:
    members = {name: place for name, place in example.places.items() if place.group == key}
    left, bottom = x + PAD, y + HEAD - GAP_Y
    for column in sorted({place.column for place in members.values()} - {BELOW}):
        names = [name for name, place in members.items() if place.column == column]
        width = max(sizes[name][0] for name in names)
        bottom = max(bottom, _stack(example, names, left, y + HEAD, width, sizes, grows, nodes))
        left += width + GAP_X
    names = [name for name, place in members.items() if place.column == BELOW]
    if names:
        width = max(left - GAP_X - x - PAD, *(sizes[name][0] for name in names))
        bottom = _stack(example, names, x + PAD, bottom + GAP_Y, width, sizes, grows, nodes)
        left = x + PAD + width + GAP_X
    return Box(x, y, left - GAP_X + PAD - x, bottom + PAD - y)


def _stack(
    example: Example,
    names: list[str],
    left: float,
    top: float,
    width: float,
    sizes: dict,
    grows: dict,
    nodes: dict[str, Box],
) -> float:
    """Nodes below one another, each with room for what it shows when it has run; returns where they end."""
    for name in names:
        nodes[name] = Box(left, top, width, sizes[name][1] + TITLE)
        top = nodes[name].bottom + (LITTLE | grows).get(example.prompt[name]["class_type"], 0) + GAP_Y
    return top - GAP_Y
