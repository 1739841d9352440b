"""What the scorers of an objective are shown of one estimate: crops of the decoded picture, and all of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from ...guidance.crops import Box, cut, random_boxes, view, whole_view
from ...guidance.cross_modal import ScoreTerm, accumulate
from ..host.decode import Decoder
from .objective import Objective, Scorer, ScoringStep

ViewScore = Callable[[torch.Tensor], torch.Tensor]  # picture [B, 3, H, W] -> score [B]


@dataclass(frozen=True)
class Views:
    """`crops` random squares and, with `whole`, all of the picture, at every step anew by `seed`. The score is the mean
    over the views. A scorer that judges the whole picture only (`Scorer.whole`) is shown that alone.
    """

    crops: int = 1
    whole: bool = True
    seed: int = 0

    def __post_init__(self):
        if self.crops < 0 or self.crops + self.whole == 0:
            raise ValueError("There is nothing to look at: set crops to 1 or more, or switch whole_view on.")


@dataclass
class Seen:
    """What the scorers saw of the first picture: `pieces` [3, h, w] in 0..1 with their place (None: all of it), and
    the squares `boxes`. `size` is the (height, width) that places and squares count in; `whole`: all of it was scored
    too.
    """

    pieces: list[tuple[Box | None, torch.Tensor]] = field(default_factory=list)
    boxes: tuple[Box, ...] = ()
    size: tuple[int, int] = (1, 1)
    whole: bool = False

    def begin(self, boxes: list[Box], size: tuple[int, int], whole: bool) -> None:
        self.pieces, self.boxes, self.size, self.whole = [], tuple(boxes), size, whole

    def add(self, box: Box | None, picture: torch.Tensor) -> None:
        """picture [B, 3, h, w]"""
        self.pieces.append((box, picture[0].detach()))


def crop_side(objective: Objective, decoder: Decoder) -> int:
    """Side, in latent cells, of a crop that decodes to the size that the largest scorer sees."""
    return max(1, round(max(scorer.side for _, scorer in objective.parts) / decoder.scale))


def score_terms(
    objective: Objective,
    decoder: Decoder,
    views: Views,
    shape: tuple[int, ...],
    step: ScoringStep,
    look: Seen | None = None,
) -> list[ScoreTerm]:
    """The terms of S as functions of a latent of `shape` [B, C, ..., h, w] in the model's space.

    A decoder for crops decodes squares of the size that the largest scorer sees, each by itself, so the memory is that
    of one. `look`: takes down what is seen.
    """
    height, width = shape[-2:]
    if decoder.crops:
        side = crop_side(objective, decoder)
        boxes = random_boxes(height, width, max(1, views.crops), side, side, step.generator)
        seen = [partial(_of_whole, weight / len(boxes), scorer, step) for weight, scorer in objective.parts]
        if look is not None:
            look.begin(boxes, (height, width), False)
        return [_decoded(partial(decoder.decode, box=box), seen, look, box) for box in boxes]
    height, width = height * decoder.scale, width * decoder.scale
    short = min(height, width)
    boxes = random_boxes(height, width, views.crops, max(1, short // 2), short, step.generator)
    seen = []
    for weight, scorer in objective.parts:
        shown = [] if scorer.whole and views.whole else boxes
        share = weight / (len(shown) + views.whole)
        seen += [partial(_of_box, share, scorer, step, box) for box in shown]
        seen += [partial(_of_whole, share, scorer, step)] if views.whole else []
    if look is not None:
        look.begin(boxes, (height, width), views.whole)
    return [_decoded(decoder.decode, seen, look)]


def noisy_terms(objective: Objective, views: Views, shape: tuple[int, ...], step: ScoringStep) -> list[ScoreTerm]:
    """The terms of S as functions of the noisy sample [B, 3, H, W] in the VP frame. Never resized, which would change
    its noise.
    """
    terms = []
    for weight, scorer in objective.parts:
        boxes = random_boxes(*shape[-2:], max(1, views.crops), scorer.side, scorer.side, step.generator)
        boxes = list(dict.fromkeys(boxes))  # one, when the picture is as small as the scorer's
        terms += [partial(_of_noisy_box, weight / len(boxes), scorer, step, box) for box in boxes]
    return terms


def _decoded(decode: Callable, scores: list[ViewScore], look: Seen | None = None, box: Box | None = None) -> ScoreTerm:
    """Decodes once and scores many views, one view's graph at a time; one backward pass through the decoder."""

    def term(latent: torch.Tensor) -> torch.Tensor:
        picture = decode(latent)
        if look is not None:
            look.add(box, picture)
        score, gradient = accumulate(scores, picture)
        surrogate = (picture * gradient).flatten(1).sum(1)
        return score + surrogate - surrogate.detach()  # the score's value, with the gradient of all views

    return term


def _of_whole(share: float, scorer: Scorer, step: ScoringStep, picture: torch.Tensor) -> torch.Tensor:
    return share * scorer.score(whole_view(picture, scorer.side, scorer.fill), step)


def _of_box(share: float, scorer: Scorer, step: ScoringStep, box: Box, picture: torch.Tensor) -> torch.Tensor:
    return share * scorer.score(view(picture, box, scorer.side), step)


def _of_noisy_box(share: float, scorer: Scorer, step: ScoringStep, box: Box, sample: torch.Tensor) -> torch.Tensor:
    return share * scorer.score(cut(sample, box), step)
