"""When a guidance acts and how strongly, as functions of sigma. Never of a call count: two-evaluation samplers call
twice per step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


def float32(value: float) -> float:
    """Rounds to the nearest float32, the precision in which samplers carry sigma."""
    return torch.tensor(value, dtype=torch.float32).item()


@dataclass(frozen=True)
class Window:
    """A part of the sampling in percent: 0 is the noisiest sigma of the model, 1 the clean end; both ends belong to
    it.
    """

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

        The rounding is what makes both ends inclusive: a sampler that stands exactly on the boundary carries the
        rounded number.
        """
        return float32(percent_to_sigma(self.start_percent)), float32(percent_to_sigma(self.end_percent))


def in_window(sigma: float, bounds: tuple[float, float]) -> bool:
    """Whether lowest <= sigma <= highest, `bounds` = (highest, lowest) from `Window.sigmas`."""
    return bounds[1] <= float32(sigma) <= bounds[0]


def step_index(sigmas: list[float], sigma: float) -> int:
    """The step of a falling schedule whose span holds sigma: from its own sigma (included) down to the next (not
    included).

    So both evaluations of a two-evaluation sampler at and between two levels belong to the upper one's step. Relative
    rounding of 1e-6 does not matter; what lies outside the schedule belongs to its first or last step.
    """
    reached = sum(start >= sigma * (1 - 1e-6) for start in sigmas)
    return max(0, min(reached, len(sigmas) - 1) - 1)


def next_sigma(sigmas: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The next lower level of the schedule `sigmas` [N] for each of sigma [B], rounding as in `step_index`; 0 below the
    last.
    """
    lower = torch.where(sigmas < sigma[:, None] * (1 - 1e-6), sigmas, 0)
    return lower.amax(1)


def percent_at(sigma: float, percent_to_sigma: Callable[[float], float]) -> float:
    """Where sigma lies in a model's own percent scale, 0 the noisiest and 1 the clean end: the inverse of
    `percent_to_sigma`, which falls.
    """
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if percent_to_sigma(middle) > sigma else (low, middle)
    return high


def weight_over_time(weight: float, factor: float, neutral: float = 0.0) -> float:
    """`weight` at factor 1, exactly, `neutral` at factor 0, and on the line through both for any other factor."""
    return weight if factor == 1.0 else neutral + (weight - neutral) * factor
