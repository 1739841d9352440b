"""What the networks of a sampling run cost, on the name of whoever asked for them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

MODEL = "model"  # the name of the guider's own evaluations, outside of any guidance


@dataclass
class Cost:
    """What a name has evaluated in one step: calls of a network, rows it predicted (batch x conds x areas), seconds."""

    calls: int = 0
    rows: int = 0
    seconds: float = 0.0


class Meter:
    """Counts calls, rows and seconds of one evaluation after the other, each in a table name -> Cost of its own."""

    def __init__(self, device: torch.device, watched: bool):
        """`watched`: somebody looks at the figures, which is worth waiting for the GPU whenever the time is taken."""
        self.device, self.watched = device, watched
        self.name = MODEL
        self.costs: dict[str, Cost] | None = None  # of the evaluation under way; between two nothing is counted

    @contextmanager
    def charge(self, name: str) -> Iterator[None]:
        """What is evaluated in this block counts on `name`; blocks may be nested."""
        before, self.name = self.name, name
        try:
            yield
        finally:
            self.name = before

    def now(self) -> float:
        """Seconds on a clock of its own."""
        if self.watched and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def spend(self, calls: int, rows: int, seconds: float) -> None:
        """Adds to the cost of the present name."""
        if self.costs is None:
            return
        cost = self.costs.setdefault(self.name, Cost())
        cost.calls += calls
        cost.rows += rows
        cost.seconds += seconds

    @contextmanager
    def network_call(self, rows: int) -> Iterator[None]:
        """One call of a network that is no diffusion model; diffusion models in the block keep their own time."""
        began, charged = self.now(), self._seconds()
        yield
        self.spend(1, rows, self.now() - began - (self._seconds() - charged))

    def _seconds(self) -> float:
        return sum(cost.seconds for cost in (self.costs or {}).values())
