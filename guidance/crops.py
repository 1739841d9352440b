"""Views of an image for a scorer that sees a small square: random crops, and the whole image.

Averaging a score over random crops keeps its gradient from finding adversarial patterns; the whole view keeps the
composition in sight. Crops are drawn once for the batch, so that a batch of two is two singles.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .seeds import generator_of


class Box(NamedTuple):
    """A square, in pixels or latent cells."""

    top: int
    left: int
    side: int


def crop_generator(seed: int, step: int) -> torch.Generator:
    """A CPU generator of its own for one sampling step: the same seed and step give the same crops, however often it is
    asked.
    """
    # 32 bits, because a CPU generator reads the low half of its seed only
    return generator_of(f"{seed}:{step}".encode(), bits=32)


def random_boxes(
    height: int, width: int, count: int, smallest: int, largest: int, generator: torch.Generator
) -> list[Box]:
    """`count` squares inside height x width, sides uniform in smallest..largest (cut to what fits), positions uniform.

    For a crop of the latent before decoding let smallest = largest = the scorer's side / 8. Raises ValueError on an
    impossible range.
    """
    if not 1 <= smallest <= largest or count < 0:
        raise ValueError(
            f"Cannot draw {count} crops with sides {smallest} to {largest}: sides start at 1 and must not shrink."
        )
    fits = min(height, width)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    boxes = []
    for _ in range(count):
        side = draw(min(smallest, fits), min(largest, fits))
        boxes.append(Box(draw(0, height - side), draw(0, width - side), side))
    return boxes


def cut(image: torch.Tensor, box: Box) -> torch.Tensor:
    """The box out of image [B, C, H, W], not resized."""
    return image[:, :, box.top : box.top + box.side, box.left : box.left + box.side]


def view(image: torch.Tensor, box: Box, size: int) -> torch.Tensor:
    """The box out of image [B, C, H, W], resized to [B, C, size, size] (bicubic, antialiased as CLIP's own; not
    rounded, not clamped).
    """
    return _resize(cut(image, box), size)


def whole_view(image: torch.Tensor, size: int, fill: float | None = 0.0) -> torch.Tensor:
    """All of image [B, C, H, W] as [B, C, size, size]: padded with `fill` to a centred square and resized, or (None)
    squeezed.
    """
    if fill is None:
        return _resize(image, size)
    height, width = image.shape[-2:]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    padded = F.pad(image, (left, side - width - left, top, side - height - top), value=fill)
    return _resize(padded, size)


def _resize(image: torch.Tensor, size: int) -> torch.Tensor:
    if image.shape[-2:] == (size, size):
        return image
    return F.interpolate(image, size=(size, size), mode="bicubic", align_corners=False, antialias=True)
