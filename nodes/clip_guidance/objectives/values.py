"""What the objective nodes share: the weight, the output, and their check."""

import math

from ..._api import io
from ..objective import Objective, ObjectiveSocket, Scorer

CATEGORY = "Guidance Lab/CLIP/Objectives"


def weight_input() -> io.Float.Input:
    return io.Float.Input(
        "weight",
        default=1.0,
        min=-100000.0,
        max=100000.0,
        step=0.05,
        tooltip="How much this counts beside other objectives in Objective: Combine; negative lowers the score, 0 "
        "leaves it out. Usual -1 to 2. Alone only its sign counts in CLIP Guidance with size rms; with clamp or exact "
        "it is the guidance scale (UPainting: 20000).",
    )


def objective_output() -> ObjectiveSocket.Output:
    return ObjectiveSocket.Output(
        "objective",
        tooltip="What the guidance climbs: for CLIP Guidance, UPainting CLIP Guider, or Objective: Combine.",
    )


def objective(weight: float, scorer: Scorer) -> Objective:
    """The scorer with its weight; no part at all at weight 0. ValueError when the weight is no finite number."""
    if not math.isfinite(weight):
        raise ValueError(f"weight is {weight}; give a finite number, 1 to raise the score and -1 to lower it.")
    return Objective(((weight, scorer),) if weight else ())


def lines_of(text: str | None) -> list[str]:
    """The lines of a text that have words in them."""
    return [line.strip() for line in (text or "").splitlines() if line.strip()]
