"""GLIDE's guidance forms (Nichol et al. 2021, arXiv 2112.10741) and its diffusion arithmetic.

GLIDE adds a gradient g = grad_x log p (x in the VP frame) in two ways that are not equally strong:

    mean form (ancestral sampling)  mean' = mean + Sigma*g                   Sigma = the model's variance
    eps form (DDIM)                 eps'  = eps - sqrt(1 - alpha_bar)*g      the same as mean + beta/sqrt(alpha)*g

beta/sqrt(alpha) is close to Sigma on most steps but not on the first: in GLIDE's 100 steps, 316 against 1.0 on step 99.
"""

import math
from typing import NamedTuple

import torch

from .frames import Level, radius


class Step(NamedTuple):
    """One step of a respaced DDPM schedule; `timestep` is the index in the full schedule, `alpha_bar_prev` of the next cleaner step."""

    timestep: int
    alpha_bar: float
    alpha_bar_prev: float
    beta: float
    min_variance: float


def cosine_alpha_bars(count: int = 1000) -> list[float]:
    """alpha_bar of every timestep of the cosine schedule (Nichol & Dhariwal 2021): beta_i = min(1 - f(i + 1)/f(i), 0.999)."""

    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    product, bars = 1.0, []
    for i in range(count):
        product *= 1 - min(1 - f((i + 1) / count) / f(i / count), 0.999)
        bars.append(product)
    return bars


def respaced(alpha_bars: list[float], count: int) -> list[Step]:
    """`count` evenly spaced steps of a longer schedule, index 0 the cleanest; `Step.timestep` is the ORIGINAL index.

    beta'_i = 1 - abar[t_i]/abar[t_(i-1)]; min_variance is the posterior variance beta*(1 - abar_prev)/(1 - abar).
    Raises ValueError when count is not in 2..len(alpha_bars).
    """
    if not 2 <= count <= len(alpha_bars):
        raise ValueError(f"Cannot take {count} steps of a schedule that has {len(alpha_bars)}: choose between 2 and {len(alpha_bars)}.")
    stride, position, timesteps = (len(alpha_bars) - 1) / (count - 1), 0.0, []
    for _ in range(count):
        timesteps.append(round(position))
        position += stride  # accumulated as GLIDE does: i*stride rounds differently on ties
    bars = [alpha_bars[t] for t in timesteps]
    previous = [1.0, *bars[:-1]]
    betas = [1 - bar / before for bar, before in zip(bars, previous, strict=True)]
    variances = [beta * (1 - before) / (1 - bar) for bar, before, beta in zip(bars, previous, betas, strict=True)]
    variances[0] = variances[1]  # it would be 0, and the model interpolates its logarithm
    return [Step(*row) for row in zip(timesteps, bars, previous, betas, variances, strict=True)]


def variance(model_variance: torch.Tensor, step: Step) -> torch.Tensor:
    """Sigma from the model's variance channels [B, C, ...] in -1..1: log-linear between the posterior variance and beta."""
    share = (model_variance + 1) / 2
    return (share * math.log(step.beta) + (1 - share) * math.log(step.min_variance)).exp()


def clamped_x0(x: torch.Tensor, eps: torch.Tensor, step: Step) -> torch.Tensor:
    """x0 = (x - sqrt(1 - abar)*eps)/sqrt(abar), clamped to [-1, 1] as GLIDE does before any guidance."""
    return (x / math.sqrt(step.alpha_bar) - math.sqrt(1 / step.alpha_bar - 1) * eps).clamp(-1, 1)


def posterior_mean(x: torch.Tensor, x0: torch.Tensor, step: Step) -> torch.Tensor:
    """Mean of q(x_(t-1) | x_t, x0) (Ho et al. 2020, eq. 7)."""
    alpha = step.alpha_bar / step.alpha_bar_prev
    of_x0 = math.sqrt(step.alpha_bar_prev) * step.beta / (1 - step.alpha_bar)
    of_x = math.sqrt(alpha) * (1 - step.alpha_bar_prev) / (1 - step.alpha_bar)
    return of_x0 * x0 + of_x * x


def mean_form(mean: torch.Tensor, sigma: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """mean' = mean + Sigma*g (Dhariwal & Nichol 2021, algorithm 1; GLIDE's condition_mean). Sigma is the variance."""
    return mean + sigma * gradient


def eps_form(x0: torch.Tensor, gradient: torch.Tensor, step: Step) -> torch.Tensor:
    """x0 after eps' = eps - sqrt(1 - abar)*g (GLIDE's condition_score); eps is the one that belongs to `x0`. Not clamped again."""
    return x0 + (1 - step.alpha_bar) / math.sqrt(step.alpha_bar) * gradient


def ddim(x: torch.Tensor, x0: torch.Tensor, step: Step) -> torch.Tensor:
    """The next sample of DDIM with eta 0: sqrt(abar_prev)*x0 + sqrt(1 - abar_prev)*eps."""
    eps = (x - math.sqrt(step.alpha_bar) * x0) / math.sqrt(1 - step.alpha_bar)
    return math.sqrt(step.alpha_bar_prev) * x0 + math.sqrt(1 - step.alpha_bar_prev) * eps


def capped_weight(level: Level, next_level: Level | None = None, largest: float = 1.0) -> torch.Tensor:
    """The eps form in denoised space, (1 - abar)/sqrt(abar), with the early-step cap if `next_level` is given.

    The cap limits the equivalent weight in the mean form, beta/sqrt(alpha) with alpha = abar/abar_next, to `largest`: no
    variance Sigma exceeds 1, so with the default the eps form never pulls harder than the mean form's upper bound. It acts
    on steps with beta > 0.618 only (the first two of GLIDE's 100). It stays finite at abar = 0 (flow at sigma 1). Pure, broadcasting.
    """
    # In signal and noise, because 1 - alpha_bar loses its digits at low noise in float32.
    weight = level.noise**2 / (level.signal * radius(level))
    if next_level is None:
        return weight
    drop = ((level.noise * next_level.signal) ** 2 - (next_level.noise * level.signal) ** 2).clamp(min=0)
    return torch.minimum(weight, largest * level.noise**2 * next_level.signal * radius(next_level) / drop)


def nearest_timestep(level: Level, alpha_bars: list[float]) -> torch.Tensor:
    """The timestep (int64 [B]) of `alpha_bars` whose noise is closest to `level`, by log of the noise-to-signal ratio."""
    bars = torch.tensor(alpha_bars, dtype=torch.float64, device=level.noise.device)
    table = (1 / bars - 1).log()
    target = 2 * (level.noise.double() / level.signal.double()).log().reshape(-1, 1)
    return (table - target.clamp(table.min(), table.max())).abs().argmin(1)


def renoise(x0: torch.Tensor, abar: float, generator: torch.Generator) -> torch.Tensor:
    """sqrt(abar)*x0 + sqrt(1 - abar)*n with n from `generator` (a CPU generator; the global state is not touched).

    Lets a noise-aware model score a clean estimate (randomised smoothing); differentiable in x0.
    """
    noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=generator.device).to(x0.device)
    return math.sqrt(abar) * x0 + math.sqrt(1 - abar) * noise
