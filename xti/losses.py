"""What XTI training minimises: the reconstruction of the images, and optionally a regulariser on the tokens."""

import torch

from .density import negative_log_density


def reconstruction_loss(x0_prediction: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Textual inversion's loss E|eps - eps_theta|^2 from x0 predictions, a scalar.

    x0_prediction, x0: [B, ...]; sigma: [B], above 0. With x = x0 + sigma eps, x0_pred - x0 = -sigma (eps_pred - eps), so the
    squared error is divided by sigma^2. For flow models the same division gives the loss on the velocity.
    """
    weight = sigma.reshape(-1, *[1] * (x0.ndim - 1))
    return ((x0_prediction - x0) / weight).square().mean()


def norm_loss(tokens: torch.Tensor, target: float) -> torch.Tensor:
    """mean_i (|e_i| - target)^2 over tokens [m, d], a scalar; target about 0.4 for CLIP-L.

    Growing norms are how textual inversion loses editability (Directional Textual Inversion, 2025).
    """
    return (tokens.norm(dim=1) - target).square().mean()


def norm_decay(tokens: torch.Tensor, target: float, rate: float) -> torch.Tensor:
    """Move the norm of each token [m, d] towards `target` and keep its direction: e/r (r + rate (target - r)), r = |e|.

    cloneofsimo/promptplusplus applies it after each step with target 0.4 and rate min(1, 100 x learning rate). A zero token has no
    direction and stays zero.
    """
    norms = tokens.norm(dim=1, keepdim=True)
    return torch.nn.functional.normalize(tokens, dim=1) * (norms + rate * (target - norms))


def density_loss(tokens: torch.Tensor, vocabulary: torch.Tensor, bandwidth: float) -> torch.Tensor:
    """mean_i of -log p(e_i) over tokens [m, d] (density.negative_log_density), a scalar in nats."""
    return negative_log_density(tokens, vocabulary, bandwidth).mean()
