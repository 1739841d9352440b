"""GALIP's training losses as pure functions (Tao et al., CVPR 2023, section 3.3).

Scores are NetC outputs [B, 1, 1, 1] (any shape works: they are averaged); losses are scalars.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def mismatched(sentence: torch.Tensor) -> torch.Tensor:
    """Sentences [B, cond_dim] that do not belong to their images: the batch rolled by one."""
    return sentence.roll(-1, dims=0)


def hinge_real(score: torch.Tensor) -> torch.Tensor:
    """E[max(0, 1 - score)]."""
    return F.relu(1 - score).mean()


def hinge_fake(score: torch.Tensor) -> torch.Tensor:
    """E[max(0, 1 + score)]."""
    return F.relu(1 + score).mean()


def gradient_norm(score: torch.Tensor, features: torch.Tensor, sentence: torch.Tensor) -> torch.Tensor:
    """||d score / d (features, sentence)||_2 per sample, one joint norm: [B], differentiable.

    features (CLIP features of real images) and sentence must require grad, and score be computed from them. The
    gradient stops at the CLIP features: no backward through the image tower.
    """
    gradients = torch.autograd.grad(score.sum(), (features, sentence), create_graph=True)
    return torch.cat([gradient.flatten(1) for gradient in gradients], dim=1).norm(dim=1)


def matching_aware_gradient_penalty(
    score: torch.Tensor, features: torch.Tensor, sentence: torch.Tensor, weight: float = 2.0, power: float = 6.0
) -> torch.Tensor:
    """weight * E[ gradient_norm^power ]: the matching-aware gradient penalty of DF-GAN, in CLIP feature space."""
    return weight * (gradient_norm(score, features, sentence) ** power).mean()


def clip_similarity(embedding: torch.Tensor, sentence: torch.Tensor) -> torch.Tensor:
    """E[cos(image embedding, sentence)]."""
    return F.cosine_similarity(embedding, sentence, dim=1).mean()
