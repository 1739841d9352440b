"""Sampling of the toy: the 32-step deterministic Heun sampler and what a guidance makes of a denoiser."""

from collections.abc import Callable

import torch

from guidance_lab.guidance.autoguidance import autoguided

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(x [N,2], sigma []) -> the estimate of the clean x [N,2]."""

STEPS, SIGMA_MIN, SIGMA_MAX, RHO = 32, 0.002, 5.0, 7.0


def noise_levels(sigma_max: float = SIGMA_MAX, sigma_min: float = SIGMA_MIN, steps: int = STEPS) -> torch.Tensor:
    """The EDM schedule (arXiv:2206.00364, eq. 5): `steps` falling levels and a final 0, [steps + 1]."""
    ramp = torch.linspace(0, 1, steps)
    levels = (sigma_max ** (1 / RHO) + ramp * (sigma_min ** (1 / RHO) - sigma_max ** (1 / RHO))) ** RHO
    return torch.cat([levels, levels.new_zeros(1)])


@torch.no_grad()
def heun(denoise: Denoiser, x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Integrate dx/dsigma = (x - D(x; sigma)) / sigma down `levels` by Heun's method, Euler in the last step.

    x [N,2] starts distributed as p(x; levels[0]) and ends clean; 2 * len(levels) - 3 evaluations of `denoise`.
    """
    for sigma, following in zip(levels[:-1], levels[1:], strict=True):
        slope = (x - denoise(x, sigma)) / sigma
        ahead = x + (following - sigma) * slope
        if following > 0:
            slope = (slope + (ahead - denoise(ahead, following)) / following) / 2
            ahead = x + (following - sigma) * slope
        x = ahead
    return x


def guided(main: Denoiser, guide: Denoiser, weight: float) -> Denoiser:
    """Autoguidance of `main` by `guide` with the pack's own eq. 3; with a model of all classes as guide this is CFG."""
    return lambda x, sigma: autoguided(main(x, sigma), guide(x, sigma), weight)


def truncated(main: Denoiser, factor: float) -> Denoiser:
    """Naive truncation: the score multiplied by `factor` (> 1 sharpens), i.e. x + factor * (D - x)."""
    return lambda x, sigma: torch.lerp(x, main(x, sigma), factor)


def denoise_at_higher_sigma(main: Denoiser, factor: float) -> Denoiser:
    """The same network told that the same x is noisier by `factor` than it is: D(x; factor * sigma)."""
    return lambda x, sigma: main(x, sigma * factor)


def score_at_higher_sigma(main: Denoiser, factor: float) -> Denoiser:
    """x + sigma^2 * score(x; factor * sigma): the score of the noisier distribution taken as if it belonged to this
    sigma. Unlike `denoise_at_higher_sigma` it moves x less, not more.
    """
    return lambda x, sigma: torch.lerp(x, main(x, sigma * factor), factor**-2)
