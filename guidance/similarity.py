"""Similarity of two embeddings as a score to raise."""

import torch
import torch.nn.functional as F


def cosine(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cosine [B] of image embeddings [B, D] and targets [B, D] or [1, D]; their lengths do not matter."""
    return (F.normalize(image, dim=-1) * F.normalize(target, dim=-1)).sum(-1)


def spherical(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Minus half the squared angle, -theta^2/2 [B] (Crowson's spherical distance, used by UPainting and Disco
    Diffusion).

    Parallel to the gradient of the cosine, theta/sin(theta) times as long: 1.3 to 1.4 at CLIP's usual cosines of 0.35
    to 0.2.
    """
    chord = (F.normalize(image, dim=-1) - F.normalize(target, dim=-1)).norm(dim=-1)
    # arcsin has infinite slope at antipodal embeddings, and its argument can exceed 1 by rounding.
    return -2 * (chord / 2).clamp(max=1 - 1e-6).asin() ** 2
