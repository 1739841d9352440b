"""The picture of a trace: sizes, angles and cost of every term over the sampling run, drawn with Pillow alone."""

import math
from collections.abc import Callable

from PIL import Image, ImageFont

from ..plots.chart import INK, LEFT, RIGHT, WIDTH, Chart, Panel
from .trace import CFG, OTHER, Record

SIZE = (WIDTH, 640)
_SIZES, _COSINES, _SECONDS = (98, 322), (354, 464), (496, 590)
_REST, _MODEL_COLOUR = (190, 190, 190), (120, 120, 120)
# Okabe and Ito's palette: told apart also by colour-blind readers.
_COLOURS = [(0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0), (110, 90, 60)]


def plot(record: Record) -> Image.Image:
    """RGB picture of 1024 x 640: three panels over the evaluations in their order, each labelled with its sigma.

    Top: size of every term in percent of the prediction. Middle: its cosine to the CFG direction. Bottom: seconds.
    ValueError when the record has no evaluation.
    """
    if not record.evaluations:
        raise ValueError(
            "the traced run made no model evaluation, so there is nothing to plot; let the sampler run one step or more"
        )
    return _Sheet(record).draw()


class _Sheet:
    def __init__(self, record: Record):
        self.record = record
        self.chart = Chart(SIZE[1])
        self.colours = {
            name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(n for n in record.term_names() if n != OTHER)
        }
        self.colours[OTHER] = INK

    def draw(self) -> Image.Image:
        self._heading()
        self._legend()
        self._sizes()
        self._cosines()
        self._seconds()
        self._sigma_axis()
        return self.chart.picture()

    def _slot(self) -> float:
        return (RIGHT - LEFT) / len(self.record.evaluations)

    def _x(self, index: int) -> float:
        return LEFT + (index + 0.5) * self._slot()

    def _heading(self) -> None:
        evaluations = self.record.evaluations
        steps = max(len(self.record.sigmas) - 1, 1)
        predictions = sum(cost.predictions for cost in self.record.totals())
        seconds = sum(evaluation.seconds for evaluation in evaluations)
        each = predictions / len(evaluations)
        text = f"{_count(steps, 'step')}, {_count(len(evaluations), 'evaluation')}, {each:.3g} predictions each, "
        self.chart.text(LEFT, 20, "Guidance trace", 19, "lm")
        self.chart.text(RIGHT, 20, text + f"{seconds:.3g} s", 14, "rm")

    def _legend(self) -> None:
        """One entry per term, in two rows where one is too short."""
        x, y = float(LEFT), 47
        for name in self.record.term_names():
            label = name + self._weights(name)
            length = 34 + ImageFont.load_default(14).getlength(label)
            if x > LEFT and x + length > RIGHT:
                x, y = LEFT, y + 20
            self.chart.line([(x, y), (x + 26, y)], self.colours[name], 2.2)
            self.chart.dot(x + 13, y, self.colours[name])
            self.chart.text(x + 34, y, label, 14, "lm")
            x += length + 26
        if not self.record.term_names():
            self.chart.text(LEFT, y, "no guidance acted in this run", 14, "lm")

    def _weights(self, name: str) -> str:
        found = [t.weight for e in self.record.evaluations for t in e.terms if t.name == name and t.weight is not None]
        if not found:
            return ""
        low, high = min(found), max(found)
        letter = "cfg" if name == CFG else "w"
        return f"  ({letter} {low:g})" if low == high else f"  ({letter} {low:g} to {high:g})"

    def _curves(self, value: Callable, y_of: Callable[[float], float]) -> None:
        """One curve per term; a gap where the term has no value. Later terms are drawn first, so that CFG stays
        visible.
        """
        for name in reversed(self.record.term_names()):
            run: list[tuple[float, float]] = []
            for index, evaluation in enumerate(self.record.evaluations):
                found = next((value(t) for t in evaluation.terms if t.name == name), None)
                if found is None:
                    self._stroke(run, self.colours[name])
                    run = []
                else:
                    run.append((self._x(index), y_of(found)))
            self._stroke(run, self.colours[name])

    def _stroke(self, run, colour) -> None:
        if len(run) > 1:
            self.chart.line(run, colour, 2)
        radius = 3.2 if self._slot() > 9 else 1.6
        for x, y in run:
            self.chart.dot(x, y, colour, radius)

    def _sizes(self) -> None:
        highest = max((t.size for e in self.record.evaluations for t in e.terms if t.size is not None), default=0.0)
        title = "Size of the term, in % of the model's own prediction"
        panel = Panel(self.chart, *_SIZES, title, 0.0, 100 * highest, label=lambda mark: f"{mark:g} %")
        self._curves(lambda term: None if term.size is None else 100 * term.size, panel.y)

    def _cosines(self) -> None:
        title = "Cosine between the term and the CFG direction (1: the same way, 0: across)"
        panel = Panel(self.chart, *_COSINES, title, -1.0, 1.0, count=2)
        self._curves(lambda term: None if term.name == CFG else term.cosine, panel.y)  # CFG's is 1 everywhere
        if all(t.cosine is None for e in self.record.evaluations for t in e.terms):
            reason = "no CFG direction: this run made no unconditional prediction (cfg 1)"
            self.chart.text((LEFT + RIGHT) / 2, sum(_COSINES) / 2, reason, 14)

    def _seconds(self) -> None:
        highest = max(e.seconds for e in self.record.evaluations)
        title = "Seconds per evaluation (and predictions):"
        panel = Panel(self.chart, *_SECONDS, title, 0.0, highest, count=3, label=lambda mark: f"{mark:g} s")
        colours = {cost.name: self.colours.get(cost.name, _MODEL_COLOUR) for cost in self.record.totals()}
        self._cost_legend(_SECONDS[0] - 11, colours)
        half = max(0.4 * self._slot(), 0.5)
        for index, evaluation in enumerate(self.record.evaluations):
            at, x = 0.0, self._x(index)
            for cost in evaluation.costs:
                self.chart.box(x - half, panel.y(at + cost.seconds), x + half, panel.y(at), fill=colours[cost.name])
                at += cost.seconds
            if evaluation.seconds > at:
                self.chart.box(x - half, panel.y(evaluation.seconds), x + half, panel.y(at), fill=_REST)

    def _cost_legend(self, y, colours) -> None:
        totals, evaluations = self.record.totals(), len(self.record.evaluations)
        entries = [(colours[total.name], f"{total.name} ({total.predictions / evaluations:.3g})") for total in totals]
        x = LEFT + 262.0
        for colour, label in [*entries[:1], (_REST, "around the networks"), *entries[1:]]:
            length = 15 + ImageFont.load_default(12).getlength(label)
            if x + length > RIGHT:
                break  # the colours of the terms are explained at the top as well
            self.chart.box(x, y - 5, x + 10, y + 5, fill=colour)
            self.chart.text(x + 15, y, label, 12, "lm")
            x += length + 18

    def _sigma_axis(self) -> None:
        evaluations = self.record.evaluations
        every = max(1, math.ceil(52 / self._slot()))
        for index in range(0, len(evaluations), every):
            x = self._x(index)
            self.chart.line([(x, _SECONDS[1]), (x, _SECONDS[1] + 5)], INK)
            self.chart.text(x, _SECONDS[1] + 15, f"{evaluations[index].sigma:.3g}", 12)
        self.chart.text(
            (LEFT + RIGHT) / 2, _SECONDS[1] + 35, "sigma of each model evaluation, in the order of sampling", 13
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
