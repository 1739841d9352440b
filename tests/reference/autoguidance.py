"""Autoguidance's total weight, and how much a guide could help at best."""

import torch


def weights_from_total(total: float, mix: float) -> tuple[float, float]:
    """Appendix B.2: total guidance w shared out by alpha: (w_u, w_c) = ((1 - a)(w - 1) + 1, a(w - 1) + 1).

    mix: alpha in 0..1; 0 is pure classifier-free guidance of weight `total`, 1 pure autoguidance. ValueError outside
    0..1.
    """
    if not 0.0 <= mix <= 1.0:
        raise ValueError(f"The mix of classifier-free guidance and autoguidance is {mix}; give a number from 0 to 1.")
    return (1.0 - mix) * (total - 1.0) + 1.0, mix * (total - 1.0) + 1.0


def best_extrapolation(main: torch.Tensor, guide: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Diagnostic: the s* = w - 1 that brings M + s(M - B) nearest to the clean latent z, s* = <M - B, z - M> / |M -
    B|^2.

    All arguments (batch, ...); returns (batch,). Positive means that this guide can help; nan where M equals B.
    """
    difference = (main - guide).flatten(1)
    missing = (clean - main).flatten(1)
    return (difference * missing).sum(1) / difference.square().sum(1)
