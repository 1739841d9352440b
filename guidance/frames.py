"""Noise frames: what x, x0, eps, v and the score are to each other.

Every frame writes the noisy sample as x = a*x0 + b*n with n ~ N(0, 1), so one formula serves them all:

    frame   a                  b                    where it is used
    VE      1                  sigma                k-diffusion, ComfyUI's EPS, V and EDM models (and CosmosRFlow)
    flow    1 - sigma          sigma                rectified flow, ComfyUI's CONST models
    VP      sqrt(alpha_bar)    sqrt(1 - alpha_bar)  DDPM papers, diffusers

A guided score s' = s + gamma*grad S moves each quantity by a different factor (and eps with the opposite sign, because
eps = -b*s); the `*_shift` functions are those factors. The same gamma gives the same distribution in every frame.
"""

from typing import NamedTuple

import torch


class Level(NamedTuple):
    """Noise level of a batch: x = signal*x0 + noise*n; both broadcast over the sample they were made for."""

    signal: torch.Tensor
    noise: torch.Tensor


def _per_sample(value, x: torch.Tensor) -> torch.Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    value = torch.as_tensor(value, dtype=dtype, device=x.device)
    if value.numel() not in (1, x.shape[0]):
        raise ValueError(f"The noise level has {value.numel()} values for a batch of {x.shape[0]}: give one value, or one for each sample.")
    return value.reshape(-1, *[1] * (x.ndim - 1))


def ve(sigma, x: torch.Tensor) -> Level:
    """Level of x = x0 + sigma*n. `sigma`: number or [B]; `x`: [B, ...], read for shape, dtype and device only."""
    sigma = _per_sample(sigma, x)
    return Level(torch.ones_like(sigma), sigma)


def flow(sigma, x: torch.Tensor) -> Level:
    """Level of x = (1 - sigma)*x0 + sigma*n, sigma in [0, 1]. Arguments as in `ve`."""
    sigma = _per_sample(sigma, x)
    return Level(1 - sigma, sigma)


def vp(alpha_bar, x: torch.Tensor) -> Level:
    """Level of x = sqrt(alpha_bar)*x0 + sqrt(1 - alpha_bar)*n. `alpha_bar`: number or [B]; `x` as in `ve`."""
    alpha_bar = _per_sample(alpha_bar, x)
    return Level(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())


def radius(level: Level) -> torch.Tensor:
    """sqrt(a^2 + b^2): x / radius is the same sample in the VP frame."""
    return (level.signal**2 + level.noise**2).sqrt()


def alpha_bar(level: Level) -> torch.Tensor:
    """alpha_bar of the same noise level in the VP frame: a^2 / (a^2 + b^2)."""
    return (level.signal / radius(level)) ** 2


def noise_fraction(level: Level) -> torch.Tensor:
    """sqrt(1 - alpha_bar) of the same level in the VP frame: sigma/sqrt(1 + sigma^2) in VE."""
    return level.noise / radius(level)


def to_vp(x: torch.Tensor, level: Level) -> torch.Tensor:
    """The same sample x [B, ...] in the VP frame."""
    return x / radius(level)


def denoised_from_eps(x: torch.Tensor, eps: torch.Tensor, level: Level) -> torch.Tensor:
    """x0 = (x - b*eps) / a."""
    return (x - level.noise * eps) / level.signal


def eps_from_denoised(x: torch.Tensor, denoised: torch.Tensor, level: Level) -> torch.Tensor:
    """eps = (x - a*x0) / b."""
    return (x - level.signal * denoised) / level.noise


def denoised_from_v(x: torch.Tensor, v: torch.Tensor, level: Level) -> torch.Tensor:
    """x0 from v = sqrt(alpha_bar)*eps - sqrt(1 - alpha_bar)*x0 (Salimans & Ho 2022); x in its own frame."""
    r = radius(level)
    return (level.signal / r) * (x / r) - (level.noise / r) * v


def v_from_denoised(x: torch.Tensor, denoised: torch.Tensor, level: Level) -> torch.Tensor:
    """The inverse of `denoised_from_v`."""
    r = radius(level)
    return ((level.signal / r) * (x / r) - denoised) / (level.noise / r)


def denoised_from_velocity(x: torch.Tensor, velocity: torch.Tensor, level: Level) -> torch.Tensor:
    """x0 from the flow velocity n - x0: (x - b*velocity) / (a + b)."""
    return (x - level.noise * velocity) / (level.signal + level.noise)


def velocity_from_denoised(x: torch.Tensor, denoised: torch.Tensor, level: Level) -> torch.Tensor:
    """The inverse of `denoised_from_velocity`."""
    return (x - (level.signal + level.noise) * denoised) / level.noise


def denoised_from_score(x: torch.Tensor, score: torch.Tensor, level: Level) -> torch.Tensor:
    """Tweedie's formula: x0 = (x + b^2*score) / a."""
    return (x + level.noise**2 * score) / level.signal


def score_from_denoised(x: torch.Tensor, denoised: torch.Tensor, level: Level) -> torch.Tensor:
    """The inverse of `denoised_from_score`."""
    return (level.signal * denoised - x) / level.noise**2


def denoised_shift(score_shift: torch.Tensor, level: Level) -> torch.Tensor:
    """What adding `score_shift` (= gamma * grad_x S, x in its own frame) to the score adds to x0.

    b^2/a: sigma^2 in VE, (1 - alpha_bar)/sqrt(alpha_bar) in VP, sigma^2/(1 - sigma) in flow (infinite at sigma 1).
    """
    return level.noise**2 / level.signal * score_shift


def eps_shift(score_shift: torch.Tensor, level: Level) -> torch.Tensor:
    """What it adds to eps: -b * score_shift."""
    return -level.noise * score_shift


def v_shift(score_shift: torch.Tensor, level: Level) -> torch.Tensor:
    """What it adds to v: -(b/a) * r * score_shift; in VP, where r is 1, -sqrt((1 - alpha_bar)/alpha_bar)."""
    return -(level.noise / level.signal) * radius(level) * score_shift


def velocity_shift(score_shift: torch.Tensor, level: Level) -> torch.Tensor:
    """What it adds to the flow velocity: -(b + b^2/a) * score_shift, that is -sigma/(1 - sigma) in flow."""
    return -(level.noise + level.noise**2 / level.signal) * score_shift
