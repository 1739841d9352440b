"""The record of a guided sampling run: how large every term was, where it pointed, and what it cost."""

import json
import math
from dataclasses import asdict, dataclass, field

import torch

CFG = "CFG"
OTHER = "other nodes"
# What is left of the prediction when every known term is taken away counts as a term of its own above this relative
# size; below it, it is rounding.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class TermTrace:
    """One term of one evaluation. size: |term| / |prediction|; cosine: to the CFG direction C - U, None where there is
    none; weight: the weight in force (1 adds nothing), None where the term has none.
    """

    name: str
    size: float | None
    cosine: float | None
    weight: float | None


@dataclass(frozen=True)
class CostTrace:
    """What one name evaluated: calls of a network, predictions per picture of the batch, seconds inside the network."""

    name: str
    calls: int
    predictions: float
    seconds: float


@dataclass(frozen=True)
class NoteTrace:
    """What one name said in words about an evaluation, such as the caption that it worked with."""

    name: str
    text: str


@dataclass(frozen=True)
class Evaluation:
    """One model evaluation of the sampler: `step` is the step of the schedule that sigma falls in (0 is the first)."""

    step: int
    sigma: float
    seconds: float
    terms: tuple[TermTrace, ...]
    costs: tuple[CostTrace, ...]
    notes: tuple[NoteTrace, ...] = ()

    def summary(self) -> str:
        """One line to read while sampling: "step 3, sigma 4.42: CFG 12 %, Autoguidance 5 %"; steps count from 1 here,
        notes follow.
        """
        sizes = ", ".join(f"{term.name} {100 * term.size:.2g} %" for term in self.terms if term.size is not None)
        line = f"step {self.step + 1}, sigma {self.sigma:.3g}: {sizes or 'no guidance'}"
        return "; ".join([line, *(f"{note.name}: {note.text}" for note in self.notes)])


@dataclass
class Record:
    """All evaluations of one sampling run, in their order. `sigmas` is the schedule that the sampler was given."""

    sigmas: list[float]
    evaluations: list[Evaluation] = field(default_factory=list)

    def term_names(self) -> list[str]:
        """Names of all terms in the order in which they first appear."""
        return list(dict.fromkeys(term.name for evaluation in self.evaluations for term in evaluation.terms))

    def totals(self) -> list[CostTrace]:
        """The cost of every name over the whole run."""
        sums: dict[str, CostTrace] = {}
        for cost in (cost for evaluation in self.evaluations for cost in evaluation.costs):
            so_far = sums.get(cost.name, CostTrace(cost.name, 0, 0, 0.0))
            sums[cost.name] = CostTrace(
                cost.name,
                so_far.calls + cost.calls,
                so_far.predictions + cost.predictions,
                so_far.seconds + cost.seconds,
            )
        return list(sums.values())

    def to_json(self) -> str:
        """The whole record as JSON: {"sigmas", "evaluations": [...], "totals": [...]}; a number that is not finite is
        null.
        """
        whole = {
            "sigmas": self.sigmas,
            "evaluations": [asdict(e) for e in self.evaluations],
            "totals": [asdict(c) for c in self.totals()],
        }
        return json.dumps(whole, indent=1, allow_nan=False)


@dataclass
class Trace:
    """What connects a traced model with its plot: `latest` is the record of the run that began last, None before the
    first.
    """

    latest: Record | None = None


def relative_size(term: torch.Tensor, prediction: torch.Tensor) -> float | None:
    """|term| / |prediction|, both (batch, ...): Euclidean norms per picture, mean over the batch. None if not
    finite.
    """
    return _finite((_norm(term) / _norm(prediction)).mean().item())


def cosine(term: torch.Tensor, direction: torch.Tensor) -> float | None:
    """Cosine between term and direction, both (batch, ...), per picture, mean over the pictures; None if either is
    zero.
    """
    product = (term.float() * direction.float()).flatten(1).sum(1)
    return _finite((product / (_norm(term) * _norm(direction))).mean().item())


def account(
    cond: torch.Tensor,
    uncond: torch.Tensor | None,
    cfg: float | None,
    terms: list[tuple[str, torch.Tensor | None, float]],
    denoised: torch.Tensor,
) -> tuple[TermTrace, ...]:
    """Splits denoised = C + (cfg - 1)(C - U) + the terms + what other nodes made of it. All predictions are x0, (batch,
    ...).

    cond: C, what sizes are relative to; uncond: U, None at cfg 1, then there is no CFG term and no cosine;
    terms: (name, value as added or None, weight in force); those of one name add up. Sizes as in `relative_size`.
    """
    direction = None if uncond is None else cond.float() - uncond.float()
    parts: dict[str, tuple[torch.Tensor | None, float | None]] = {}
    if direction is not None and cfg is not None:
        parts[CFG] = direction * (cfg - 1), cfg
    for name, value, weight in terms:
        before = parts.get(name, (None, weight))[0]
        parts[name] = value if before is None else before if value is None else before + value, weight
    rest = denoised.float() - cond.float() - sum(value.float() for value, _ in parts.values() if value is not None)
    left = relative_size(rest, cond)
    if left is None or left > _ROUNDING:
        parts[OTHER] = rest, None
    traced = []
    for name, (value, in_force) in parts.items():
        angle = None if value is None or direction is None else cosine(value, direction)
        traced.append(TermTrace(name, 0.0 if value is None else relative_size(value, cond), angle, in_force))
    return tuple(traced)


def _norm(value: torch.Tensor) -> torch.Tensor:
    return value.float().flatten(1).norm(dim=1)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
