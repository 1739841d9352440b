"""What x, x0, eps, v, velocity and the score are to each other in every noise frame, and what guidance adds to each.

A guided score s' = s + gamma*grad S moves each quantity by a different factor (and eps with the opposite sign, because
eps = -b*s); the `*_shift` functions are those factors. Letters as in `guidance_lab.guidance.frames`.
"""

import torch

from guidance_lab.guidance.frames import NoiseLevel, radius, ve


def vp(alpha_bar, x: torch.Tensor) -> NoiseLevel:
    """Level of x = sqrt(alpha_bar)*x0 + sqrt(1 - alpha_bar)*n. `alpha_bar`: number or [B]; `x` as in `ve`."""
    alpha_bar = ve(alpha_bar, x).sigma  # as given, shaped like x
    return NoiseLevel(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())


def denoised_from_eps(x: torch.Tensor, eps: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """x0 = (x - b*eps) / a."""
    return (x - level.sigma * eps) / level.alpha


def eps_from_denoised(x: torch.Tensor, denoised: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """eps = (x - a*x0) / b."""
    return (x - level.alpha * denoised) / level.sigma


def denoised_from_v(x: torch.Tensor, v: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """x0 from v = sqrt(alpha_bar)*eps - sqrt(1 - alpha_bar)*x0 (Salimans & Ho 2022); x in its own frame."""
    r = radius(level)
    return (level.alpha / r) * (x / r) - (level.sigma / r) * v


def v_from_denoised(x: torch.Tensor, denoised: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """The inverse of `denoised_from_v`."""
    r = radius(level)
    return ((level.alpha / r) * (x / r) - denoised) / (level.sigma / r)


def denoised_from_velocity(x: torch.Tensor, velocity: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """x0 from the flow velocity n - x0: (x - b*velocity) / (a + b)."""
    return (x - level.sigma * velocity) / (level.alpha + level.sigma)


def velocity_from_denoised(x: torch.Tensor, denoised: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """The inverse of `denoised_from_velocity`."""
    return (x - (level.alpha + level.sigma) * denoised) / level.sigma


def denoised_from_score(x: torch.Tensor, score: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """Tweedie's formula: x0 = (x + b^2*score) / a."""
    return (x + level.sigma**2 * score) / level.alpha


def score_from_denoised(x: torch.Tensor, denoised: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """The inverse of `denoised_from_score`."""
    return (level.alpha * denoised - x) / level.sigma**2


def denoised_shift(score_shift: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """What adding `score_shift` (= gamma * grad_x S, x in its own frame) to the score adds to x0.

    b^2/a: sigma^2 in VE, (1 - alpha_bar)/sqrt(alpha_bar) in VP, sigma^2/(1 - sigma) in flow (infinite at sigma 1).
    """
    return level.sigma**2 / level.alpha * score_shift


def eps_shift(score_shift: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """What it adds to eps: -b * score_shift."""
    return -level.sigma * score_shift


def v_shift(score_shift: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """What it adds to v: -(b/a) * r * score_shift; in VP, where r is 1, -sqrt((1 - alpha_bar)/alpha_bar)."""
    return -(level.sigma / level.alpha) * radius(level) * score_shift


def velocity_shift(score_shift: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """What it adds to the flow velocity: -(b + b^2/a) * score_shift, that is -sigma/(1 - sigma) in flow."""
    return -(level.sigma + level.sigma**2 / level.alpha) * score_shift
