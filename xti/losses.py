"""What XTI training minimizes: the reconstruction of the images, and optionally a regulariser on the tokens."""

import torch

from .density import negative_log_density


def reconstruction_loss(
    x0_prediction: torch.Tensor, x0: torch.Tensor, scale: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Textual inversion's loss on what the network puts out, from x0 predictions, a scalar.

    x0_prediction, x0: [B, ...]. scale: [B], above 0, by how much x0 moves when the output moves by 1, so that the
    squared error of x0 is divided by its square. It is sigma for eps prediction, x0 = x - sigma eps, and for the
    velocity of flow models; `velocity_scale` for v prediction. mask: [B, 1, ...] weights of 0 to 1, not all 0 in a
    picture: each picture's error is its weighted mean, so that a small thing counts as much as a large one.
    """
    weight = scale.reshape(-1, *[1] * (x0.ndim - 1))
    error = ((x0_prediction - x0) / weight).square()
    if mask is None:
        return error.mean()
    mask = mask.to(error).expand_as(error)
    return ((error * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)).mean()


def velocity_scale(sigma: torch.Tensor, sigma_data: float = 1.0) -> torch.Tensor:
    """The scale of v prediction [B] (Salimans & Ho 2022): x0 = s^2 x / (sigma^2 + s^2) - v sigma s / sqrt(sigma^2 +
    s^2).

    s: sigma_data.
    """
    return sigma * sigma_data / (sigma.square() + sigma_data**2).sqrt()


def norm_loss(tokens: torch.Tensor, target: float) -> torch.Tensor:
    """mean_i (|e_i| - target)^2 over tokens [m, d], a scalar; target about 0.4 for CLIP-L.

    Growing norms are how textual inversion loses editability (Directional Textual Inversion, 2025).
    """
    return (tokens.norm(dim=1) - target).square().mean()


def norm_decay(tokens: torch.Tensor, target: float, rate: float) -> torch.Tensor:
    """Move the norm of each token [m, d] towards `target` and keep its direction: e/r (r + rate (target - r)), r = |e|.

    cloneofsimo/promptplusplus applies it after each step with target 0.4 and rate min(1, 100 x learning rate). A zero
    token has no direction and stays zero.
    """
    norms = tokens.norm(dim=1, keepdim=True)
    return torch.nn.functional.normalize(tokens, dim=1) * (norms + rate * (target - norms))


def density_loss(tokens: torch.Tensor, vocabulary: torch.Tensor, bandwidth: float) -> torch.Tensor:
    """mean_i of -log p(e_i) over tokens [m, d] (density.negative_log_density), a scalar in nats."""
    return negative_log_density(tokens, vocabulary, bandwidth).mean()
