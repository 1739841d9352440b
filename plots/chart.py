"""A chart drawn with Pillow: panels over one common axis, with lines, dots, bands and words. Coordinates are pixels of
the result.
"""

import math
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageFont

WIDTH = 1024
LEFT, RIGHT = 84, 1004
INK, GRID, BAND = (40, 40, 40), (222, 222, 222), (226, 236, 245)
# Okabe and Ito's palette: told apart also by colour-blind readers.
BLUE, ORANGE, GREEN = (0, 114, 178), (213, 94, 0), (0, 158, 115)
_SCALE = 2  # drawn larger and scaled down, which smooths lines and dots


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers, evenly spaced, from at or below `low` to at or above `high`; two for one value."""
    span = high - low
    if span <= max(1e-12, 1e-6 * max(abs(low), abs(high))):
        return [low, low + 1.0]
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= count)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [step * i for i in range(first, last + 1)]


class Chart:
    """A white sheet [height, 1024]; `picture()` gives it."""

    def __init__(self, height: int):
        self.size = (WIDTH, height)
        self.image = Image.new("RGB", (WIDTH * _SCALE, height * _SCALE), "white")
        self.pen = ImageDraw.Draw(self.image)

    def picture(self) -> Image.Image:
        """RGB at its real size."""
        return self.image.resize(self.size, Image.Resampling.LANCZOS)

    def text(self, x: float, y: float, words: str, size: float = 13, anchor: str = "mm", colour=INK) -> None:
        """Words at (x, y); anchor as in Pillow."""
        self.pen.text(
            (x * _SCALE, y * _SCALE), words, fill=colour, font=ImageFont.load_default(size * _SCALE), anchor=anchor
        )

    def line(self, points: Sequence[tuple[float, float]], colour=INK, width: float = 1.0) -> None:
        """A line through the points."""
        self.pen.line(
            [(x * _SCALE, y * _SCALE) for x, y in points], fill=colour, width=round(width * _SCALE), joint="curve"
        )

    def box(self, left: float, top: float, right: float, bottom: float, **style) -> None:
        """A rectangle; style as in Pillow (`fill`, `outline`)."""
        style = {"width": _SCALE, **style} if "outline" in style else style
        self.pen.rectangle([edge * _SCALE for edge in (left, top, right, bottom)], **style)

    def dot(self, x: float, y: float, colour, radius: float = 3.2) -> None:
        """A filled circle."""
        self.pen.ellipse([v * _SCALE for v in (x - radius, y - radius, x + radius, y + radius)], fill=colour)


class Panel:
    """A framed stretch of a chart with a vertical axis: `y(value)` is a value's place."""

    def __init__(
        self,
        chart: Chart,
        top: float,
        bottom: float,
        title: str,
        low: float,
        high: float,
        band: tuple | None = None,
        count: int = 5,
        label: Callable[[float], str] = lambda mark: f"{mark:g}" if abs(mark) > 1e-12 else "0",
    ):
        """band: (lowest, highest) value, shaded and inside the axis. count: of marks, about. label: what one reads."""
        marks = ticks(min(low, *(band or ())), max(high, *(band or ())), count) if band else ticks(low, high, count)
        self.chart, self.top, self.bottom = chart, top, bottom
        self.low, self.high = marks[0], marks[-1]
        if band:
            chart.box(LEFT, self.y(band[1]), RIGHT, self.y(band[0]), fill=BAND)
        chart.text(LEFT, top - 11, title, anchor="lm")
        for mark in marks:
            chart.line([(LEFT, self.y(mark)), (RIGHT, self.y(mark))], GRID)
            chart.text(LEFT - 8, self.y(mark), label(mark), 12, "rm")
        chart.box(LEFT, top, RIGHT, bottom, outline=INK)

    def y(self, value: float) -> float:
        """Vertical place of a value."""
        return self.bottom - (self.bottom - self.top) * (value - self.low) / (self.high - self.low)
