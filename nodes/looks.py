"""What the scorers of an objective are shown of one estimate: crops of the decoded picture, and all of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from ..guidance.crops import Box, cut, random_boxes, view, whole_view
from ..guidance.cross_modal import ScoreTerm, accumulate
from .host.decode import Decoder
from .objective import Moment, Objective, Scorer

Look = Callable[[torch.Tensor], torch.Tensor]  # picture [B, 3, H, W] -> score [B]


@dataclass(frozen=True)
class Looks:
    """`crops` random squares and, with `whole`, all of the picture, at every step anew by `seed`. The score is the mean over the looks."""

    crops: int = 1
    whole: bool = True
    seed: int = 0

    def __post_init__(self):
        if self.crops < 0 or self.crops + self.whole == 0:
            raise ValueError("There is nothing to look at: set crops to 1 or more, or switch whole_view on.")


def crop_side(objective: Objective, decoder: Decoder) -> int:
    """Side, in latent cells, of a crop that decodes to the size that the largest scorer sees."""
    return max(1, round(max(scorer.side for _, scorer in objective.parts) / decoder.scale))


def score_terms(objective: Objective, decoder: Decoder, looks: Looks, shape: tuple[int, ...], moment: Moment) -> list[ScoreTerm]:
    """The terms of S as functions of a latent of `shape` [B, C, ..., h, w] in the model's space.

    A decoder for crops decodes squares of the size that the largest scorer sees, each by itself, so the memory is that of one.
    """
    height, width = shape[-2:]
    if decoder.crops:
        side = crop_side(objective, decoder)
        boxes = random_boxes(height, width, max(1, looks.crops), side, side, moment.generator)
        seen = [partial(_of_whole, weight / len(boxes), scorer, moment) for weight, scorer in objective.parts]
        return [_decoded(partial(decoder.decode, box=box), seen) for box in boxes]
    height, width = height * decoder.scale, width * decoder.scale
    short = min(height, width)
    boxes = random_boxes(height, width, looks.crops, max(1, short // 2), short, moment.generator)
    seen = []
    for weight, scorer in objective.parts:
        share = weight / (len(boxes) + looks.whole)
        seen += [partial(_of_box, share, scorer, moment, box) for box in boxes]
        seen += [partial(_of_whole, share, scorer, moment)] if looks.whole else []
    return [_decoded(decoder.decode, seen)]


def noisy_terms(objective: Objective, looks: Looks, shape: tuple[int, ...], moment: Moment) -> list[ScoreTerm]:
    """The terms of S as functions of the noisy sample [B, 3, H, W] in the VP frame. Never resized, which would change its noise."""
    terms = []
    for weight, scorer in objective.parts:
        boxes = random_boxes(*shape[-2:], max(1, looks.crops), scorer.side, scorer.side, moment.generator)
        boxes = list(dict.fromkeys(boxes))  # one, when the picture is as small as the scorer's
        terms += [partial(_of_noisy_box, weight / len(boxes), scorer, moment, box) for box in boxes]
    return terms


def _decoded(decode: Look, seen: list[Look]) -> ScoreTerm:
    """Decodes once and looks many times, one look's graph at a time; one backward pass through the decoder."""

    def term(latent: torch.Tensor) -> torch.Tensor:
        picture = decode(latent)
        score, gradient = accumulate(seen, picture)
        pull = (picture * gradient).flatten(1).sum(1)
        return score + pull - pull.detach()  # the score, with the gradient of all looks

    return term


def _of_whole(share: float, scorer: Scorer, moment: Moment, picture: torch.Tensor) -> torch.Tensor:
    return share * scorer.score(whole_view(picture, scorer.side, scorer.fill), moment)


def _of_box(share: float, scorer: Scorer, moment: Moment, box: Box, picture: torch.Tensor) -> torch.Tensor:
    return share * scorer.score(view(picture, box, scorer.side), moment)


def _of_noisy_box(share: float, scorer: Scorer, moment: Moment, box: Box, sample: torch.Tensor) -> torch.Tensor:
    return share * scorer.score(cut(sample, box), moment)
