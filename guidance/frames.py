"""Noise frames: how a noisy sample is made of the clean one and noise.

Every frame writes the noisy sample as x = a*x0 + b*n with n ~ N(0, 1), so one formula serves them all:

    frame   a                  b                    where it is used
    VE      1                  sigma                k-diffusion, ComfyUI's EPS, V and EDM models (and CosmosRFlow)
    flow    1 - sigma          sigma                rectified flow, ComfyUI's CONST models
    VP      sqrt(alpha_bar)    sqrt(1 - alpha_bar)  DDPM papers, diffusers

The conversions of x0 to eps, v, velocity and score, and what a guided score adds to each, are written out in
tests/reference/frames.py: the nodes work on x0 alone.
"""

from typing import NamedTuple

import torch


class NoiseLevel(NamedTuple):
    """Noise level of a batch: x = alpha*x0 + sigma*n (a and b above); both broadcast over the sample they were made
    for.
    """

    alpha: torch.Tensor
    sigma: torch.Tensor


def _per_sample(value, x: torch.Tensor) -> torch.Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    value = torch.as_tensor(value, dtype=dtype, device=x.device)
    if value.numel() not in (1, x.shape[0]):
        raise ValueError(
            f"The noise level has {value.numel()} values for a batch of {x.shape[0]}: give one value, or one for each "
            f"sample."
        )
    return value.reshape(-1, *[1] * (x.ndim - 1))


def ve(sigma, x: torch.Tensor) -> NoiseLevel:
    """Level of x = x0 + sigma*n. `sigma`: number or [B]; `x`: [B, ...], read for shape, dtype and device only."""
    sigma = _per_sample(sigma, x)
    return NoiseLevel(torch.ones_like(sigma), sigma)


def flow(sigma, x: torch.Tensor) -> NoiseLevel:
    """Level of x = (1 - sigma)*x0 + sigma*n, sigma in [0, 1]. Arguments as in `ve`."""
    sigma = _per_sample(sigma, x)
    return NoiseLevel(1 - sigma, sigma)


def radius(level: NoiseLevel) -> torch.Tensor:
    """sqrt(a^2 + b^2): x / radius is the same sample in the VP frame."""
    return (level.alpha**2 + level.sigma**2).sqrt()


def alpha_bar(level: NoiseLevel) -> torch.Tensor:
    """alpha_bar of the same noise level in the VP frame: a^2 / (a^2 + b^2)."""
    return (level.alpha / radius(level)) ** 2


def noise_fraction(level: NoiseLevel) -> torch.Tensor:
    """sqrt(1 - alpha_bar) of the same level in the VP frame: sigma/sqrt(1 + sigma^2) in VE."""
    return level.sigma / radius(level)


def to_vp(x: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """The same sample x [B, ...] in the VP frame."""
    return x / radius(level)
