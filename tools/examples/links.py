"""Routes links around nodes: where the straight curve would run behind a node, it gets reroutes in the free lanes.

The canvas draws a link as a Bézier curve that leaves and enters horizontally. A link that would touch a third node
is led over a grid by the cheapest path (A*), few bends first; its bends become the canvas's own reroutes. Links from
one output share theirs.
"""

import heapq
from dataclasses import dataclass, field

import numpy as np

from tools.examples.layout import Box

STEP = 9  # canvas units of a cell of the grid
CLEAR = 9  # how far from a node a link stays
STUB = 20  # from a socket to the first bend
TURN = 14  # what a bend costs, in cells
REACH = 80  # how far the canvas bends a link at a reroute, at most
SAMPLES = 40  # of a piece of a link
PASSES = 3  # of moving reroutes
MOVES = [(far * dx, far * dy) for far in (12, 24) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy]
BESIDE = 3  # what it costs to run in a cell where another output's link runs
NEAR = 2  # what it costs to run near a node
ROOM = 20  # how near that is


@dataclass
class Link:
    """A link by its id, nodes and sockets; `points` are the reroutes it passes. `also` are start and end in the other
    renderer, which draws its sockets a little elsewhere.
    """

    id: int
    source: str
    target: str
    start: tuple[float, float]
    end: tuple[float, float]
    output: tuple[str, int]
    also: tuple[tuple[float, float], tuple[float, float]]
    points: list[tuple[float, float]] = field(default_factory=list)
    shared: int = 0  # how many of them an earlier link from the same output passes


def curve(start: tuple[float, float], end: tuple[float, float]) -> np.ndarray:
    """The curve that the canvas draws between two sockets, as points."""
    return drawn([start, end])[0]


def inside(point: tuple[float, float], box: Box, margin: float) -> bool:
    return box.x - margin < point[0] < box.right + margin and box.y - margin < point[1] < box.bottom + margin


def blocked(points, boxes: list[Box], margin: float) -> bool:
    return any(inside(point, box, margin) for point in points for box in boxes)


def straighten(link: Link, points: list[tuple[float, float]], boxes: dict[str, Box]) -> list[tuple[float, float]]:
    """Moves reroutes until the drawn curve clears all nodes, and leaves out every one without which it still does.
    Those that another link passes too stay as they are.
    """
    shared, kept = points[: link.shared], points[link.shared :]
    hits = _hits(link, points, boxes)
    for _ in range(PASSES):
        for i, (x, y) in enumerate(kept):
            for dx, dy in MOVES if hits else ():  # in canvas units
                moved = [*kept[:i], (x + dx, y + dy), *kept[i + 1 :]]
                found = _hits(link, [*shared, *moved], boxes)
                if found < hits:
                    kept, hits = moved, found
    i = 0
    while i < len(kept):
        rest = kept[:i] + kept[i + 1 :]
        if (shared or rest) and _hits(link, [*shared, *rest], boxes) <= hits:
            kept = rest
        else:
            i += 1
    return [*shared, *kept]


def _hits(link: Link, points: list[tuple[float, float]], boxes: dict[str, Box]) -> int:
    """How much of the drawn link lies on nodes, in either renderer. At its own nodes a link begins on the edge, and
    must leave it to the outside.
    """
    names = list(boxes)
    sides = np.array([(box.x, box.y, box.right, box.bottom) for box in boxes.values()])
    count = 0
    for start, end in ((link.start, link.end), link.also):
        x, y = np.moveaxis(drawn([start, *points, end])[:, :, None, :], -1, 0)  # pieces × samples × 1
        margin = np.full((x.shape[0], 1, len(names)), CLEAR - 3.0)
        ends = ((0, names.index(link.source)), (-1, names.index(link.target)))
        for piece, own in ends:
            margin[piece, 0, own] = 0
        inside = (x > sides[:, 0] - margin) & (x < sides[:, 2] + margin)
        inside &= (y > sides[:, 1] - margin) & (y < sides[:, 3] + margin)
        for piece, own in ends:
            inside[piece, [0, 1, -2, -1], own] = False
        count += int(inside.sum())
    return count


def drawn(stops: list[tuple[float, float]]) -> np.ndarray:
    """The curves that the canvas draws from stop to stop (pieces × samples × 2): horizontal at the sockets, at a
    reroute half-way between the directions from the stop before it and to the one after it.
    """
    at = np.asarray(stops)
    steps = np.diff(at, axis=0)
    length = np.hypot(*steps.T)
    heading = np.arctan2(steps[:, 1], steps[:, 0])
    turn = (heading[:-1] - heading[1:]) / 2
    angles = np.concatenate([[0], heading[:-1] - np.where(abs(turn) > np.pi / 2, turn + np.pi, turn), [0]])
    reach = np.minimum(length / 4, REACH)
    leaves, enters = reach.copy(), reach.copy()
    leaves[0], enters[-1] = length[0] / 4, length[-1] / 4
    ways = np.stack([np.cos(angles), np.sin(angles)], 1)
    p1, p2 = at[:-1] + leaves[:, None] * ways[:-1], at[1:] - enters[:, None] * ways[1:]
    return bezier(at[:-1], p1, p2, at[1:])


def bezier(p0, p1, p2, p3) -> np.ndarray:
    """Points of Bézier curves: curves × samples × 2."""
    t = np.linspace(0, 1, SAMPLES)[:, None]
    weights = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
    return sum(w * np.asarray(p, float).reshape(-1, 1, 2) for w, p in zip(weights, (p0, p1, p2, p3), strict=True))


def route(links: list[Link], boxes: dict[str, Box], bounds: Box, titles: list[Box] = ()) -> None:
    """Gives every link that needs some its `points`. Short links first: they have the least choice. `titles` of groups
    are kept free where a link is led around anyway.
    """
    grid = Grid(boxes, bounds, titles)
    trees: dict[tuple[str, int], list[list[tuple[float, float]]]] = {}
    for link in sorted(links, key=lambda one: abs(one.end[0] - one.start[0]) + abs(one.end[1] - one.start[1])):
        others = [box for name, box in boxes.items() if name not in (link.source, link.target)]
        forward = link.end[0] > link.start[0] + STUB
        ways = (curve(link.start, link.end), curve(*link.also))
        if forward and not any(blocked(way, others, 3) for way in ways):
            continue
        known = trees.setdefault(link.output, [])
        found = []
        for trees_of in (known, []) if known else ([],):
            path = grid.path(link, trees_of)
            if path is not None:
                points = straighten(link, path, boxes)
                found.append((_hits(link, points, boxes), len(points) - link.shared, len(found), points))
            if found and found[-1][0] == 0:
                break
        if not found:
            continue
        link.points = min(found)[-1]
        grid.mark([link.start, *link.points, link.end], link.output)
        known.append(link.points)


class Grid:
    """The free cells of the canvas, and which output's links run where."""

    def __init__(self, boxes: dict[str, Box], bounds: Box, titles: list[Box]):
        margin = 60
        self.left, self.top = bounds.x - margin, bounds.y - margin
        self.columns = int((bounds.width + 2 * margin) / STEP) + 1
        self.rows = int((bounds.height + 2 * margin) / STEP) + 1
        self.full = np.zeros((self.rows, self.columns), bool)
        self.near = np.zeros((self.rows, self.columns), bool)
        self.used: dict[tuple[int, int], tuple] = {}
        for box in [*boxes.values(), *titles]:
            for cells, room in ((self.full, CLEAR), (self.near, ROOM)):
                left, top = self.cell((box.x - room, box.y - room))
                right, bottom = self.cell((box.right + room, box.bottom + room))
                cells[max(top, 0) : bottom + 1, max(left, 0) : right + 1] = True
        self.full, self.near = self.full.tolist(), self.near.tolist()

    def cell(self, point: tuple[float, float]) -> tuple[int, int]:
        return round((point[0] - self.left) / STEP), round((point[1] - self.top) / STEP)

    def point(self, cell: tuple[int, int]) -> tuple[float, float]:
        return self.left + cell[0] * STEP, self.top + cell[1] * STEP

    def mark(self, points: list[tuple[float, float]], owner: tuple) -> None:
        cells = [self.cell(point) for point in points]
        for (x0, y0), (x1, y1) in zip(cells, cells[1:], strict=False):
            count = max(abs(x1 - x0), abs(y1 - y0), 1)
            for i in range(count + 1):
                self.used[round(x0 + (x1 - x0) * i / count), round(y0 + (y1 - y0) * i / count)] = owner

    def path(self, link: Link, known: list[list[tuple[float, float]]]) -> list[tuple[float, float]] | None:
        """The bends from the socket, or from a reroute of the same output's links, to the target."""
        goal = self.cell((link.end[0] - STUB, link.end[1]))
        start = self.cell((link.start[0] + STUB, link.start[1]))
        heap: list = []
        origin: dict = {}  # first cell → the reroutes before it
        best: dict = {}

        def push(cost, cell, direction, before):
            key = (cell, direction)
            if cost < best.get(key, (float("inf"),))[0]:
                best[key] = (cost, before)
                ahead = abs(cell[0] - goal[0]) + abs(cell[1] - goal[1])
                heapq.heappush(heap, (cost + ahead, cost, cell, direction))

        origin[start] = []
        push(0, start, (1, 0), None)
        for points in known:  # a branch off an earlier route costs nothing up to there
            for i, point in enumerate(points):
                cell = self.cell(point)
                origin.setdefault(cell, points[: i + 1])
                for direction in ((1, 0), (0, 1), (0, -1)):
                    push(1, cell, direction, None)
        while heap:
            _, cost, cell, direction = heapq.heappop(heap)
            if cost > best[cell, direction][0]:
                continue
            if cell == goal and direction == (1, 0):
                return self._bends(link, cell, direction, best, origin)
            for turn in (direction, (direction[1], direction[0]), (-direction[1], -direction[0])):
                there = (cell[0] + turn[0], cell[1] + turn[1])
                if not (0 <= there[0] < self.columns and 0 <= there[1] < self.rows):
                    continue
                if self.full[there[1]][there[0]] and there not in (goal, start):
                    continue
                owner = self.used.get(there)
                beside = BESIDE if owner is not None and owner != link.output else 0
                beside += NEAR if self.near[there[1]][there[0]] else 0
                push(cost + 1 + beside + (TURN if turn != direction else 0), there, turn, (cell, direction))
        return None

    def _bends(self, link, cell, direction, best, origin) -> list[tuple[float, float]]:
        cells, turns = [cell], [direction]
        key = (cell, direction)
        while best[key][1] is not None:
            key = best[key][1]
            cells.append(key[0])
            turns.append(key[1])
        cells.reverse()
        turns.reverse()
        bends = [cells[i] for i in range(1, len(cells) - 1) if turns[i] != turns[i + 1]]
        link.shared = len(origin[cells[0]])
        return [*origin[cells[0]], *(self.point(bend) for bend in bends)]
