"""GLIDE's two forms of guidance on a respaced DDPM schedule, as its code computes them (arXiv 2112.10741).

GLIDE adds a gradient g = grad_x log p (x in the VP frame) in two ways that are not equally strong:

    mean form (ancestral sampling)  mean' = mean + Sigma*g                   Sigma = the model's variance
    eps form (DDIM)                 eps'  = eps - sqrt(1 - alpha_bar)*g      the same as mean + beta/sqrt(alpha)*g

beta/sqrt(alpha) is close to Sigma on most steps but not on the first: in GLIDE's 100 steps, 316 against 1.0 on step 99.
"""

import math
from typing import NamedTuple

import torch


class Step(NamedTuple):
    """One step of a respaced DDPM schedule; `timestep` is the index in the full schedule, `alpha_bar_prev` of the next
    cleaner step.
    """

    timestep: int
    alpha_bar: float
    alpha_bar_prev: float
    beta: float
    min_variance: float


def respaced(alpha_bars: list[float], count: int) -> list[Step]:
    """`count` evenly spaced steps of a longer schedule, index 0 the cleanest; `Step.timestep` is the ORIGINAL index.

    beta'_i = 1 - abar[t_i]/abar[t_(i-1)]; min_variance is the posterior variance beta*(1 - abar_prev)/(1 - abar).
    Raises ValueError when count is not in 2..len(alpha_bars).
    """
    if not 2 <= count <= len(alpha_bars):
        raise ValueError(
            f"Cannot take {count} steps of a schedule that has {len(alpha_bars)}: choose between 2 and "
            f"{len(alpha_bars)}."
        )
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
    """Sigma from the model's variance channels [B, C, ...] in -1..1: log-linear between the posterior variance and
    beta.
    """
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
    """x0 after eps' = eps - sqrt(1 - abar)*g (GLIDE's condition_score); eps is the one that belongs to `x0`. Not
    clamped again.
    """
    return x0 + (1 - step.alpha_bar) / math.sqrt(step.alpha_bar) * gradient


def ddim(x: torch.Tensor, x0: torch.Tensor, step: Step) -> torch.Tensor:
    """The next sample of DDIM with eta 0: sqrt(abar_prev)*x0 + sqrt(1 - abar_prev)*eps."""
    eps = (x - math.sqrt(step.alpha_bar) * x0) / math.sqrt(1 - step.alpha_bar)
    return math.sqrt(step.alpha_bar_prev) * x0 + math.sqrt(1 - step.alpha_bar_prev) * eps
