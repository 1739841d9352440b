"""GLIDE's guidance forms (Nichol et al. 2021, arXiv 2112.10741) and its diffusion arithmetic.

GLIDE adds a gradient g = grad_x log p (x in the VP frame) in two ways that are not equally strong:

    mean form (ancestral sampling)  mean' = mean + Sigma*g                   Sigma = the model's variance
    eps form (DDIM)                 eps'  = eps - sqrt(1 - alpha_bar)*g      the same as mean + beta/sqrt(alpha)*g

beta/sqrt(alpha) is close to Sigma on most steps but not on the first: in GLIDE's 100 steps, 316 against 1.0 on step 99.
"""

import math

import torch

from .frames import NoiseLevel, radius


def cosine_alpha_bars(count: int = 1000) -> list[float]:
    """alpha_bar of every timestep of the cosine schedule (Nichol & Dhariwal 2021): beta_i = min(1 - f(i + 1)/f(i),
    0.999).
    """

    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    product, bars = 1.0, []
    for i in range(count):
        product *= 1 - min(1 - f((i + 1) / count) / f(i / count), 0.999)
        bars.append(product)
    return bars


def capped_weight(level: NoiseLevel, next_level: NoiseLevel | None = None, largest: float = 1.0) -> torch.Tensor:
    """The eps form in denoised space, (1 - abar)/sqrt(abar), with the early-step cap if `next_level` is given.

    The cap limits the equivalent weight in the mean form, beta/sqrt(alpha) with alpha = abar/abar_next, to `largest`:
    no variance Sigma exceeds 1, so with the default the eps form never pulls harder than the mean form's upper bound.
    It acts on steps with beta > 0.618 only (the first two of GLIDE's 100). It stays finite at abar = 0 (flow at sigma
    1). Pure, broadcasting.
    """
    # In signal and noise, because 1 - alpha_bar loses its digits at low noise in float32.
    weight = level.sigma**2 / (level.alpha * radius(level))
    if next_level is None:
        return weight
    drop = ((level.sigma * next_level.alpha) ** 2 - (next_level.sigma * level.alpha) ** 2).clamp(min=0)
    return torch.minimum(weight, largest * level.sigma**2 * next_level.alpha * radius(next_level) / drop)


def nearest_timestep(level: NoiseLevel, alpha_bars: list[float]) -> torch.Tensor:
    """The timestep (int64 [B]) of `alpha_bars` whose noise is closest to `level`, by log of the noise-to-signal
    ratio.
    """
    bars = torch.tensor(alpha_bars, dtype=torch.float64, device=level.sigma.device)
    table = (1 / bars - 1).log()
    target = 2 * (level.sigma.double() / level.alpha.double()).log().reshape(-1, 1)
    return (table - target.clamp(table.min(), table.max())).abs().argmin(1)


def renoise(x0: torch.Tensor, abar: float, generator: torch.Generator) -> torch.Tensor:
    """sqrt(abar)*x0 + sqrt(1 - abar)*n with n from `generator` (a CPU generator; the global state is not touched).

    Lets a noise-aware model score a clean estimate (randomized smoothing); differentiable in x0.
    """
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=generator.device).to(x0.device)
    return math.sqrt(abar) * x0 + math.sqrt(1 - abar) * noise
