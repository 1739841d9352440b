"""Heads that rate a picture from its CLIP embedding, as LAION publishes them.

The head was fitted to ratings of people, 1 to 10, on embeddings of length 1 (LAION-Aesthetics V1: one linear layer; V2,
"improved aesthetic predictor": five layers, most published files without an activation between them).
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F

# Numbers of the linear layers in the published `nn.Sequential`s: between them lies a dropout, or ReLU and dropout.
_PLAIN, _RELU = (0, 2, 4, 6, 7), (0, 3, 6, 9, 11)


class Head(NamedTuple):
    """layers: (weight [out, in], bias [out]) in their order, float32; the last has one output. relu: between them."""

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    relu: bool

    @property
    def width(self) -> int:
        """Length of the embeddings that it rates."""
        return self.layers[0][0].shape[1]


def head_of(tensors: Mapping[str, torch.Tensor]) -> Head:
    """The head that a file of weights is. ValueError says, without a subject, why it is none."""
    numbers: tuple[int, ...] = (0,)
    names: tuple[str, ...] = ("",)
    if set(tensors) != {"weight", "bias"}:
        matches = map(re.compile(r"layers\.(\d+)\.(?:weight|bias)").fullmatch, tensors)
        numbers = tuple(sorted({int(match.group(1)) for match in matches if match}))
        names = tuple(f"layers.{i}." for i in numbers)
    wanted = {f"{name}{kind}" for name in names for kind in ("weight", "bias")}
    if (numbers not in (_PLAIN, _RELU) and names != ("",)) or set(tensors) != wanted:
        raise ValueError(
            "is no aesthetic head of LAION: it has to hold one linear layer (weight, bias), or five (layers.0.weight "
            "and so on)"
        )
    layers = tuple((tensors[f"{name}weight"].float(), tensors[f"{name}bias"].float()) for name in names)
    width = layers[0][0].shape[1] if layers[0][0].ndim == 2 else 0
    for weight, bias in layers:
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise ValueError("has layers whose sizes do not follow one another")
        width = len(bias)
    if width != 1:
        raise ValueError(f"gives {width} numbers for a picture instead of one rating")
    return Head(layers, numbers == _RELU)


def rating(embedding: torch.Tensor, head: Head) -> torch.Tensor:
    """Rating [B] of CLIP embeddings [B, D], D = `head.width`; their lengths do not matter. Differentiable."""
    x = F.normalize(embedding, dim=-1)
    for i, (weight, bias) in enumerate(head.layers):
        x = F.linear(F.relu(x) if head.relu and i else x, weight.to(x), bias.to(x))
    return x[:, 0]
