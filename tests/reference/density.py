"""The gradient of the vocabulary density in closed form; training takes autograd's."""

import torch


def density_gradient(tokens: torch.Tensor, vocabulary: torch.Tensor, bandwidth: float) -> torch.Tensor:
    """Gradient of -log p(e), [m, d]: (e - sum_v softmax_v(-|e-v|^2 / 2h^2) v) / h^2, the negative mean shift over
    h^2.
    """
    weights = torch.softmax((tokens[:, None] - vocabulary).square().sum(2) / (-2 * bandwidth**2), dim=1)
    return (tokens - weights @ vocabulary) / bandwidth**2
