"""The picture of a trace: sizes, angles and cost of every term over the sampling run, drawn with Pillow alone."""

import math
from collections.abc import Callable

from PIL import Image, ImageDraw, ImageFont

from .trace import CFG, OTHER, Record

SIZE = (1024, 640)
# Drawn larger and scaled down, which smooths lines and markers.
_SCALE = 2
_LEFT, _RIGHT = 84, 1004
_SIZES, _COSINES, _SECONDS = (98, 322), (354, 464), (496, 590)
_INK, _GRID, _REST = (40, 40, 40), (222, 222, 222), (190, 190, 190)
# Okabe and Ito's palette: told apart also by colour-blind readers.
_COLOURS = [(0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0), (110, 90, 60)]
_MODEL_COLOUR = (120, 120, 120)


def plot(record: Record) -> Image.Image:
    """RGB picture of 1024 x 640: three panels over the evaluations in their order, each labelled with its sigma.

    Top: size of every term in percent of the prediction. Middle: its cosine to the CFG direction. Bottom: seconds.
    ValueError when the record has no evaluation.
    """
    if not record.evaluations:
        raise ValueError("the traced run made no model evaluation, so there is nothing to plot; let the sampler run one step or more")
    return _Sheet(record).draw()


class _Sheet:
    def __init__(self, record: Record):
        self.record = record
        self.image = Image.new("RGB", (SIZE[0] * _SCALE, SIZE[1] * _SCALE), "white")
        self.pen = ImageDraw.Draw(self.image)
        self.colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(n for n in record.term_names() if n != OTHER)}
        self.colours[OTHER] = _INK

    def draw(self) -> Image.Image:
        self._heading()
        self._legend()
        self._sizes()
        self._cosines()
        self._seconds()
        self._sigma_axis()
        return self.image.resize(SIZE, Image.Resampling.LANCZOS)

    def _text(self, x, y, text, size=13, anchor="mm", colour=_INK) -> None:
        self.pen.text((x * _SCALE, y * _SCALE), text, fill=colour, font=ImageFont.load_default(size * _SCALE), anchor=anchor)

    def _line(self, points, colour, width=1.0) -> None:
        self.pen.line([(x * _SCALE, y * _SCALE) for x, y in points], fill=colour, width=round(width * _SCALE), joint="curve")

    def _box(self, left, top, right, bottom, **style) -> None:
        self.pen.rectangle([edge * _SCALE for edge in (left, top, right, bottom)], **style)

    def _slot(self) -> float:
        return (_RIGHT - _LEFT) / len(self.record.evaluations)

    def _x(self, index: int) -> float:
        return _LEFT + (index + 0.5) * self._slot()

    def _heading(self) -> None:
        evaluations = self.record.evaluations
        steps = max(len(self.record.sigmas) - 1, 1)
        predictions = sum(cost.predictions for cost in self.record.totals())
        seconds = sum(evaluation.seconds for evaluation in evaluations)
        text = f"{_count(steps, 'step')}, {_count(len(evaluations), 'evaluation')}, {predictions / len(evaluations):.3g} predictions each, "
        self._text(_LEFT, 20, "Guidance trace", 19, "lm")
        self._text(_RIGHT, 20, text + f"{seconds:.3g} s", 14, "rm")

    def _legend(self) -> None:
        """One entry per term, in two rows where one is too short."""
        x, y = _LEFT, 47
        for name in self.record.term_names():
            label = name + self._weights(name)
            length = 34 + ImageFont.load_default(14).getlength(label)
            if x > _LEFT and x + length > _RIGHT:
                x, y = _LEFT, y + 20
            self._line([(x, y), (x + 26, y)], self.colours[name], 2.2)
            self._dot(x + 13, y, self.colours[name])
            self._text(x + 34, y, label, 14, "lm")
            x += length + 26
        if not self.record.term_names():
            self._text(_LEFT, y, "no guidance acted in this run", 14, "lm")

    def _weights(self, name: str) -> str:
        found = [t.weight for e in self.record.evaluations for t in e.terms if t.name == name and t.weight is not None]
        if not found:
            return ""
        low, high = min(found), max(found)
        letter = "cfg" if name == CFG else "w"
        return f"  ({letter} {low:g})" if low == high else f"  ({letter} {low:g} to {high:g})"

    def _dot(self, x, y, colour, radius=3.2) -> None:
        self.pen.ellipse([v * _SCALE for v in (x - radius, y - radius, x + radius, y + radius)], fill=colour)

    def _frame(self, top, bottom, title, ticks, y_of, label: Callable[[float], str]) -> None:
        self._text(_LEFT, top - 11, title, 13, "lm")
        for tick in ticks:
            self._line([(_LEFT, y_of(tick)), (_RIGHT, y_of(tick))], _GRID)
            self._text(_LEFT - 8, y_of(tick), label(tick), 12, "rm")
        self._box(_LEFT, top, _RIGHT, bottom, outline=_INK, width=_SCALE)

    def _curves(self, value: Callable, y_of: Callable[[float], float]) -> None:
        """One curve per term; a gap where the term has no value. Later terms are drawn first, so that CFG stays visible."""
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
            self._line(run, colour, 2)
        radius = 3.2 if self._slot() > 9 else 1.6
        for x, y in run:
            self._dot(x, y, colour, radius)

    def _sizes(self) -> None:
        top, bottom = _SIZES
        highest = max((t.size for e in self.record.evaluations for t in e.terms if t.size is not None), default=0.0)
        ticks = nice_ticks(100 * highest)
        y_of = lambda percent: bottom - (bottom - top) * percent / ticks[-1]  # noqa: E731
        self._frame(top, bottom, "Size of the term, in % of the model's own prediction", ticks, y_of, lambda t: f"{t:g} %")
        self._curves(lambda term: None if term.size is None else 100 * term.size, y_of)

    def _cosines(self) -> None:
        top, bottom = _COSINES
        y_of = lambda cosine: bottom - (bottom - top) * (cosine + 1.1) / 2.2  # noqa: E731
        self._frame(top, bottom, "Cosine between the term and the CFG direction (1: the same way, 0: across)", (-1, 0, 1), y_of, str)
        self._curves(lambda term: term.cosine, y_of)
        if all(t.cosine is None for e in self.record.evaluations for t in e.terms):
            self._text((_LEFT + _RIGHT) / 2, (top + bottom) / 2, "no CFG direction: this run made no unconditional prediction (cfg 1)", 14)

    def _seconds(self) -> None:
        top, bottom = _SECONDS
        ticks = nice_ticks(max(e.seconds for e in self.record.evaluations), most=3)
        y_of = lambda seconds: bottom - (bottom - top) * seconds / ticks[-1]  # noqa: E731
        self._frame(top, bottom, "Seconds per evaluation (and predictions):", ticks, y_of, lambda t: f"{t:g} s")
        colours = {cost.name: self.colours.get(cost.name, _MODEL_COLOUR) for cost in self.record.totals()}
        self._cost_legend(top - 11, colours)
        half = max(0.4 * self._slot(), 0.5)
        for index, evaluation in enumerate(self.record.evaluations):
            at, x = 0.0, self._x(index)
            for cost in evaluation.costs:
                self._box(x - half, y_of(at + cost.seconds), x + half, y_of(at), fill=colours[cost.name])
                at += cost.seconds
            if evaluation.seconds > at:
                self._box(x - half, y_of(evaluation.seconds), x + half, y_of(at), fill=_REST)

    def _cost_legend(self, y, colours) -> None:
        totals, evaluations = self.record.totals(), len(self.record.evaluations)
        entries = [(colours[total.name], f"{total.name} ({total.predictions / evaluations:.3g})") for total in totals]
        x = _LEFT + 262
        for colour, label in [*entries[:1], (_REST, "around the networks"), *entries[1:]]:
            length = 15 + ImageFont.load_default(12).getlength(label)
            if x + length > _RIGHT:
                break  # the colours of the terms are explained at the top as well
            self._box(x, y - 5, x + 10, y + 5, fill=colour)
            self._text(x + 15, y, label, 12, "lm")
            x += length + 18

    def _sigma_axis(self) -> None:
        evaluations = self.record.evaluations
        every = max(1, math.ceil(52 / self._slot()))
        for index in range(0, len(evaluations), every):
            x = self._x(index)
            self._line([(x, _SECONDS[1]), (x, _SECONDS[1] + 5)], _INK)
            self._text(x, _SECONDS[1] + 15, f"{evaluations[index].sigma:.3g}", 12)
        self._text((_LEFT + _RIGHT) / 2, _SECONDS[1] + 35, "sigma of each model evaluation, in the order of sampling", 13)


def nice_ticks(highest: float, most: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from 0 to the first at or above `highest`: at most `most` + 1."""
    if highest <= 0:
        return [0.0, 1.0]
    power = 10 ** math.floor(math.log10(highest / most))
    spacing = next(power * factor for factor in (1, 2, 5, 10) if power * factor * most >= highest * (1 - 1e-9))
    return [round(spacing * i, 12) for i in range(math.ceil(highest / spacing * (1 - 1e-9)) + 1)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
