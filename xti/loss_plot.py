"""The picture of a training run: reconstruction, regulariser and norm of the learned tokens over the steps."""

from PIL import Image

from ..plots.chart import BLUE, GREEN, INK, LEFT, ORANGE, RIGHT, Chart, Panel, ticks
from .training import Losses

_PALE = (176, 205, 226)


def running_mean(values: list[float], count: int) -> list[float]:
    """At each place the mean of it and up to `count` - 1 values before it."""
    means, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - count] if i >= count else 0.0)
        means.append(total / min(i + 1, count))
    return means


def plot(history: list[Losses], word_norm: float, first: int = 0, seconds: float = 0.0) -> Image.Image:
    """RGB, 1024 x 640. history: the steps from number `first` on. word_norm: mean norm of the vocabulary, for
    comparison.

    The loss of a step is mostly luck of its noise level, so the line is the mean over a tenth of the run. ValueError
    without a step.
    """
    if not history:
        raise ValueError("no step was trained, so there is no loss to plot")
    chart = Chart(640)
    last = first + len(history)
    per_second = f", {len(history) / seconds:.3g} steps/s" if seconds > 0 else ""
    chart.text(LEFT, 20, "XTI training", 19, "lm")
    chart.text(RIGHT, 20, f"steps {first + 1} to {last}{per_second}", 14, "rm")
    x = lambda i: LEFT + (RIGHT - LEFT) * (i + 0.5) / len(history)  # noqa: E731
    losses = [step.reconstruction for step in history]
    panel = Panel(
        chart, 64, 330, "Reconstruction loss: each step, and the mean over the last tenth of the run", 0.0, max(losses)
    )
    for i, loss in enumerate(losses):
        chart.dot(x(i), panel.y(loss), _PALE, 2)
    _curve(chart, panel, x, running_mean(losses, max(len(losses) // 10, 1)), BLUE)
    terms = [step.regulariser for step in history]
    panel = Panel(chart, 366, 450, "Regulariser, as weighted", min(0.0, *terms), max(0.0, *terms) or 1.0)
    _curve(chart, panel, x, terms, ORANGE)
    norms = [step.norm for step in history]
    title = f"Mean norm of the learned tokens (grey: the words' mean, {word_norm:.3g})"
    panel = Panel(chart, 486, 590, title, 0.0, max(*norms, word_norm))
    chart.line([(LEFT, panel.y(word_norm)), (RIGHT, panel.y(word_norm))], (130, 130, 130), 1.5)
    _curve(chart, panel, x, norms, GREEN)
    for mark in ticks(first + 1, last, 8):
        if first < mark <= last and mark == int(mark):
            chart.text(x(mark - first - 1), 604, f"{mark:g}", 12)
    chart.text((LEFT + RIGHT) / 2, 624, "step", 13, colour=INK)
    return chart.picture()


def _curve(chart: Chart, panel: Panel, x, values: list[float], colour) -> None:
    points = [(x(i), panel.y(value)) for i, value in enumerate(values)]
    if len(points) == 1:
        chart.dot(*points[0], colour)
    else:
        chart.line(points, colour, 2)
