"""What the gradient of CLIP guidance climbs: the value of a GUIDANCELAB_OBJECTIVE socket.

An objective is a weighted sum of scorers, so that "Combine" is concatenation. A scorer looks at square views of the
decoded estimate and gives one score per picture, differentiable in the view. Who guides decides what it is shown (whole
picture, crops) and loads its models.
"""

from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher

from ...guidance.frames import NoiseLevel
from .._api import io

ObjectiveSocket = io.Custom("GUIDANCELAB_OBJECTIVE")
ScorerSocket = io.Custom("GUIDANCELAB_CLIP_SCORER")


@dataclass(frozen=True)
class ScoringStep:
    """When a score is asked for: the noise level of the sampling step and a CPU generator that belongs to this step
    alone.
    """

    level: NoiseLevel
    generator: torch.Generator


class Scorer:
    """One network that scores pictures. Immutable; everything that does not depend on the picture is computed before
    sampling.

    `side`: pixels of the square view it takes. `models`: what has to be loaded on the device while it scores. `fill`:
    what surrounds a picture that is not square, 0 black to 1 white; None: it is squeezed to a square. `noisy`: it
    scores the noisy sample x_t of a pixel-space model, in the VP frame and in -1..1, instead of a clean picture.
    `whole`: what it looks for is said of the whole picture: no crops are shown to it where the whole view can be.
    `memory`: bytes that one look at one picture keeps for its gradient; measured 9 MiB (ViT-B/32) to 430 MiB (SO400M, L
    at 336 pixels) for a CLIP.
    """

    name: str = ""
    side: int = 224
    models: tuple[ModelPatcher, ...] = ()
    fill: float | None = 0.0
    noisy: bool = False
    whole: bool = False
    memory: float = 512 * 2**20

    def score(self, view: torch.Tensor, step: ScoringStep) -> torch.Tensor:
        """Scores [B], to be raised, of views [B, 3, side, side]: RGB in 0..1 (float32, neither clamped nor rounded)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Objective:
    """Weighted scorers: S = sum of weight * score."""

    parts: tuple[tuple[float, Scorer], ...]

    @property
    def models(self) -> tuple[ModelPatcher, ...]:
        """The models of all parts, each module once."""
        found: list[ModelPatcher] = []
        for _, scorer in self.parts:
            found += [m for m in scorer.models if not any(m.model is other.model for other in found)]
        return tuple(found)

    def scaled(self, weight: float) -> "Objective":
        """The same objective with every weight multiplied."""
        return Objective(tuple((weight * own, scorer) for own, scorer in self.parts))
