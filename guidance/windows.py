"""Overlapping windows over a picture: how a model that sees only a part at a time predicts the whole.

Sliding-window guidance (Kaiser et al., arXiv 2411.10257) takes that prediction, averaged where windows overlap, as the
weaker one: it has the same detail and no view of the whole, so D + (w - 1)(D - windows) strengthens long-range order.
"""

import math
from collections.abc import Callable

import torch

Box = tuple[int, int, int, int]  # top, left, height, width


def window_starts(size: int, share: float, overlap: float, step: int = 8) -> tuple[int, list[int]]:
    """(length of a window, where each starts) along an axis of `size` cells; lengths and starts are multiples of `step`
    where the size is.

    share: length of a window as a part of the axis, 0..1; 1 is one window over all. overlap: the least part of a window
    that its neighbour covers too, 0 up to but not 1. Raises ValueError outside these ranges.
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"window share {share} is outside 0..1: give the part of each side that a window covers")
    if not 0.0 <= overlap < 1.0:
        raise ValueError(f"overlap {overlap} is not from 0 up to 1: give the part of a window that the next one shares")
    window = min(size, math.ceil(share * size / step) * step)
    if window == size:
        return size, [0]
    stride = max(step, math.floor(window * (1.0 - overlap) / step) * step)
    gaps = math.ceil((size - window) / stride)
    return window, [*(i * stride for i in range(gaps)), size - window]


def windows(height: int, width: int, share: float, overlap: float, step: int = 8) -> list[Box]:
    """Boxes that cover a picture of height x width cells, row by row; see `window_starts`."""
    tall, tops = window_starts(height, share, overlap, step)
    wide, lefts = window_starts(width, share, overlap, step)
    return [(top, left, tall, wide) for top in tops for left in lefts]


def crop(tensor: torch.Tensor, box: Box) -> torch.Tensor:
    """The part of (..., height, width) that lies in the box."""
    top, left, height, width = box
    return tensor[..., top : top + height, left : left + width]


def mean_of_windows(x: torch.Tensor, boxes: list[Box], predict: Callable[[Box], torch.Tensor]) -> torch.Tensor:
    """predict(box) (..., height, width of the box) for every box, averaged where boxes overlap; shape of x (..., H, W).

    The boxes cover x (see `windows`). Summed in float32 or wider, returned in the dtype of the predictions.
    """
    total: torch.Tensor | None = None
    count = torch.zeros(x.shape[-2:], device=x.device)
    for box in boxes:
        part = predict(box)
        if total is None:
            dtype = part.dtype
            wide = torch.promote_types(dtype, torch.float32)
            total = torch.zeros((*part.shape[:-2], *x.shape[-2:]), dtype=wide, device=part.device)
        crop(total, box).add_(part)
        crop(count, box).add_(1)
    if total is None:
        raise ValueError("There is no window to predict.")
    return (total / count).to(dtype)
