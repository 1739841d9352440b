"""What GLIDE for Shapes learns from: scenes of the first edition at 32, 64 or 128 pixels, their captions, masks."""

import numpy as np
import torch
import torch.nn.functional as F

from guidance_lab.glide.model import quantise, resized

from .first_world.render import render
from .first_world.words import loose_caption
from .first_world.world import SIZE, Scene, Thing, random_scene

EMPTY = 0.2  # share of captions that are left out, for classifier-free guidance
LARGE = 2 * SIZE  # what the upsampler draws


def scene(index: int) -> Scene:
    """Scene `index` of the training set, which has no end."""
    return random_scene(np.random.default_rng([6, index]))


def prompt(drawn: Scene, rng: np.random.Generator) -> tuple[str, set[str] | None]:
    """A caption to train on, and what `loose_caption` left out of it: whole, or without background or colours,
    sometimes without its first article; or empty, and None.
    """
    if rng.random() < EMPTY:
        return "", None
    caption, left_out = loose_caption(drawn, rng)
    return caption.removeprefix("a ") if rng.random() < 0.1 else caption, left_out


def pictures(scenes: list[Scene], size: int = SIZE) -> torch.Tensor:
    """Their renders in -1..1, [B, 3, size, size]."""
    x = np.stack([render(drawn, size=size) for drawn in scenes])
    return torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1


def around(thing: Thing, margin: float, size: int = SIZE) -> tuple[slice, slice]:
    """The rows and columns of a picture of `size` that hold a thing, with `margin` around it (of 64 pixels)."""
    scale, half = size / SIZE, thing.size / 2 + margin
    rows, columns = (slice(max(0, round((at - half) * scale)), round((at + half) * scale)) for at in (thing.y, thing.x))
    return rows, columns


def known(scenes: list[Scene], size: int, rng: np.random.Generator) -> torch.Tensor:
    """Masks to learn inpainting from, [B, 1, size, size], 1 where the picture is known: in half of the rows nowhere, so
    that the network goes on learning what the base network does; in a quarter all but the square around one thing; in
    the rest all but one to three rectangles and ellipses.
    """
    y, x = np.mgrid[0:size, 0:size] + 0.5
    masks = np.ones((len(scenes), size, size), np.float32)
    for mask, drawn in zip(masks, scenes, strict=True):
        kind = rng.random()
        if kind < 0.5:
            mask[:] = 0
        elif kind < 0.75:
            thing = drawn.things[rng.integers(len(drawn.things))]
            mask[around(thing, rng.uniform(0, 8), size)] = 0
        else:
            for _ in range(rng.integers(1, 4)):
                half_y, half_x = rng.uniform(0.08, 0.4, 2) * size
                away = np.stack([(y - rng.uniform(0, size)) / half_y, (x - rng.uniform(0, size)) / half_x])
                mask[(np.square(away).sum(0) if rng.random() < 0.5 else np.abs(away).max(0)) < 1] = 0
    return torch.from_numpy(masks)[:, None]


def crops_to_enlarge(scenes: list[Scene], size: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(crops [B, 3, size, size] of the large pictures, the same crops of the enlarged small ones, rounded to 8 bits as
    the network will see them): the upsampler only ever looks at its surroundings, and crops cost less.
    """
    large = pictures(scenes, LARGE)
    low = resized(quantise(F.avg_pool2d(large, LARGE // SIZE)), (LARGE, LARGE))
    corners = rng.integers(0, LARGE - size + 1, (len(scenes), 2))

    def cut(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([row[:, top : top + size, left : left + size] for row, (top, left) in zip(x, corners)])

    return cut(large), cut(low)
