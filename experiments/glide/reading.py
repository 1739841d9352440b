"""What GLIDE's text transformer is to know of a caption: read from it by heads that are dropped after training, as with
the text encoder of the other Shapes models.

The loss of the pictures alone had taught it which words there are, and not which belong together: 240,000 samples on, a
linear read-out told the colour of a noun from the noun's state in 0.41, and the colour of the other noun in as many.
"""

import torch

from guidance_lab.experiments.training import read_outs
from guidance_lab.glide.config import Config
from guidance_lab.glide.tokenizer import encode

from .first_world.words import Heads, targets
from .first_world.world import Scene

WEIGHT = 0.05  # of the read-outs beside the loss of the pictures


def heads_for(config: Config) -> Heads:
    """Untrained heads for a network's xf_proj and xf_out."""
    return Heads(4 * config.channels, config.text_width)


def noun_positions(caption: str, drawn: Scene) -> list[int]:
    """Where the last token of each noun is."""
    positions, end = [], 0
    for thing in drawn.things:
        end = caption.index(thing.name, end) + len(thing.name)
        positions.append(len(encode(caption[:end])) - 1)
    return positions


def reading_loss(
    heads: Heads,
    text: tuple[torch.Tensor, torch.Tensor],
    drawn: list[Scene],
    prompts: list[tuple[str, set[str] | None]],
) -> tuple[torch.Tensor, float]:
    """(cross-entropy, share that is right) of the read-outs from (xf_proj [B, 4C], xf_out [B, L, W]) of `data.prompt`s;
    empty prompts say nothing and are left out.
    """
    proj, out = text
    said = [i for i, (_, left_out) in enumerate(prompts) if left_out is not None]
    if not said:
        return proj.sum() * 0, 1.0
    nouns = [out[i, noun_positions(prompts[i][0], drawn[i])] for i in said]
    rows = [targets(drawn[i], prompts[i][1]) for i in said]
    return read_outs(heads, proj[said].float(), torch.cat(nouns).float(), rows)
