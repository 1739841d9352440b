"""When a guidance acts and how strongly, as functions of sigma. Never of a call count: two-evaluation samplers call twice per step."""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import torch


def float32(value: float) -> float:
    """Rounds to the nearest float32, the precision in which samplers carry sigma."""
    return torch.tensor(value, dtype=torch.float32).item()


@dataclass(frozen=True)
class Window:
    """A part of the sampling in percent: 0 is the noisiest sigma of the model, 1 the clean end; both ends belong to it."""

    start_percent: float = 0.0
    end_percent: float = 1.0

    def __post_init__(self):
        for name, value in (("start_percent", self.start_percent), ("end_percent", self.end_percent)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} is {value}; give a number from 0 (first step) to 1 (last step).")
        if self.start_percent > self.end_percent:
            raise ValueError(
                f"start_percent {self.start_percent} comes after end_percent {self.end_percent}; "
                "the start must not be greater than the end."
            )

    @property
    def is_everything(self) -> bool:
        return self.start_percent == 0.0 and self.end_percent == 1.0

    def sigmas(self, percent_to_sigma: Callable[[float], float]) -> tuple[float, float]:
        """(highest, lowest) sigma of the window in a model's own percent scale, rounded to float32.

        The rounding is what makes both ends inclusive: a sampler that stands exactly on the boundary carries the rounded number.
        """
        return float32(percent_to_sigma(self.start_percent)), float32(percent_to_sigma(self.end_percent))


def in_window(sigma: float, bounds: tuple[float, float]) -> bool:
    """Whether lowest <= sigma <= highest, `bounds` = (highest, lowest) from `Window.sigmas`."""
    return bounds[1] <= float32(sigma) <= bounds[0]


def weight_at(sigma: float, knots: list[tuple[float, float]]) -> float:
    """A weight schedule: piecewise linear in log sigma between knots (sigma, weight), constant beyond the first and the last.

    knots: in falling order of sigma, sigma > 0. ValueError when there are none, when they do not fall or a sigma is not positive.
    """
    if not knots:
        raise ValueError("A weight schedule needs at least one knot (sigma, weight).")
    if any(s <= 0 for s, _ in knots) or any(a[0] <= b[0] for a, b in zip(knots, knots[1:], strict=False)):
        raise ValueError("The sigmas of a weight schedule must be positive and in falling order.")
    rising = knots[::-1]
    if sigma <= rising[0][0]:
        return rising[0][1]
    if sigma >= rising[-1][0]:
        return rising[-1][1]
    upper = bisect_left([s for s, _ in rising], sigma)
    (low, low_weight), (high, high_weight) = rising[upper - 1], rising[upper]
    along = math.log(sigma / low) / math.log(high / low)
    return low_weight + along * (high_weight - low_weight)
