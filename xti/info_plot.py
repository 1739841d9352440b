"""The picture of a report on learned tokens: norm, density and nearest words of every layer."""

from PIL import Image

from ..plots.chart import BLUE, GREEN, LEFT, ORANGE, RIGHT, Chart, Panel
from .report import Report

_COLOURS = (BLUE, ORANGE, GREEN, (204, 121, 167), (86, 180, 233), (230, 159, 0))
_WORDS = 3  # per layer; more does not fit


def plot(report: Report) -> Image.Image:
    """RGB, 1024 x 640, layers in table order from left to right, one dot per vector; up to 80 layers, words up to
    24.
    """
    chart = Chart(640)
    chart.text(LEFT, 20, f"Learned tokens for {report.encoder}", 19, "lm")
    chart.text(RIGHT, 20, "shaded: where 80 % of the words are", 14, "rm")
    slot = (RIGHT - LEFT) / len(report.layers)
    norms = [norm for layer in report.layers for norm in layer.norms]
    panel = Panel(chart, 64, 230, "Norm", 0.0, max(norms), report.word_norms)
    _dots(chart, panel, slot, [layer.norms for layer in report.layers])
    densities = [value for layer in report.layers for value in layer.densities]
    panel = Panel(
        chart, 266, 432, "-log density among the words, per dimension (higher: further from any word)", min(densities),
        max(densities),
        report.word_densities,
    )  # fmt: skip
    _dots(chart, panel, slot, [layer.densities for layer in report.layers])
    chart.text(LEFT, 490, "Nearest words of the first vector (cosine)", anchor="lm")
    for i, layer in enumerate(report.layers):
        x = LEFT + (i + 0.5) * slot
        if len(report.layers) <= 24:
            chart.text(x, 450, layer.name, 12)
            for j, (word, cosine) in enumerate(layer.nearest[0][:_WORDS]):
                chart.text(x, 514 + 36 * j, word[:8], 12)
                chart.text(x, 529 + 36 * j, f"{cosine:.2f}", 11, colour=(110, 110, 110))
        elif i % 8 == 0:
            chart.text(x, 450, layer.name, 12)
    return chart.picture()


def _dots(chart: Chart, panel: Panel, slot: float, values: list[tuple[float, ...]]) -> None:
    for i, layer in enumerate(values):
        for j, value in enumerate(layer):
            chart.dot(LEFT + (i + 0.5) * slot, panel.y(value), _COLOURS[j % len(_COLOURS)], 4)
