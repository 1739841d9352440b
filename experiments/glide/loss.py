"""The hybrid loss of improved diffusion models (Nichol & Dhariwal 2021, arXiv 2102.09672): noise, and its variance."""

import math

import numpy as np
import torch

from guidance_lab.glide.diffusion import Schedule

# Largest weight of a step. The mean of a picture, its background, shows through noise that hides all else: only from
# timestep 960 on, where 1/SNR is above 250, has a network to take it from the text. So the weight reaches that far;
# with 20, and with uniform timesteps, backgrounds were as the noise would have them.
NOISY_END = 1000.0
# (first timestep, one after the last, share of the samples); all others are uniform. From 940 on text decides the
# background, which is learned soon (before, 0.4 of the samples were there); from 650 on, which object is drawn.
SHARES = ((940, 1000, 0.15), (650, 940, 0.5))


def timesteps(batch: int, rng: np.random.Generator, shares: tuple[tuple[int, int, float], ...] = SHARES) -> np.ndarray:
    """int64 [batch] of 0..999: `shares` of them uniform over parts, the rest over all."""
    t = rng.integers(0, 1000, batch)
    which, before = rng.random(batch), 0.0
    for first, end, share in shares:
        here = (which >= before) & (which < before + share)
        t[here] = rng.integers(first, end, here.sum())
        before += share
    return t


def noise_of(shape: torch.Size, offset: float, generator: torch.Generator) -> torch.Tensor:
    """Normal noise, with a constant of deviation `offset` on each channel of each picture (offset noise, Guttenberg
    2023): it hides the mean, so that a network learns at more timesteps, and faster, that text decides the background.
    """
    constant = torch.randn(shape[0], shape[1], 1, 1, generator=generator)
    return torch.randn(shape, generator=generator) + offset * constant


class HybridLoss:
    """L = w_t |eps - eps_net|² + L_vlb. w_t = 1/SNR_t between 1 and NOISY_END: the plain loss hardly sees the noisy
    end, where text decides what is drawn (Salimans & Ho 2022, section 4). L_vlb, in bits per channel, trains the
    variance alone: the mean in it is stopped, and clamped as in sampling.
    """

    def __init__(self, noise_schedule: str):
        schedule = Schedule(noise_schedule)
        self.table = torch.tensor(
            [schedule.abar, schedule.abar_prev, schedule.beta, schedule.log_beta, schedule.log_posterior]
        )  # [5, 1000]

    def values(self, t: torch.Tensor) -> torch.Tensor:
        """(abar, abar_prev, beta, log beta, log posterior variance) of timesteps t [B], each [B, 1, 1, 1]."""
        return self.table[:, t].view(5, -1, 1, 1, 1)

    def noised(self, x0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        abar = self.values(t)[0]
        return abar.sqrt() * x0 + (1 - abar).sqrt() * noise

    def __call__(
        self, out: torch.Tensor, x: torch.Tensor, x0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """(loss, its parts to log) of a network's output [B, 6, H, W] for x = noised(x0, t, noise)."""
        abar, before, beta, log_beta, log_posterior = self.values(t)
        eps, v = out.float().chunk(2, dim=1)
        error = (eps - noise).square()
        weighted = (((1 - abar) / abar).clamp(1, NOISY_END) * error).mean()
        guess = (x / abar.sqrt() - (1 / abar - 1).sqrt() * eps.detach()).clamp(-1, 1)
        log_variance = (v + 1) / 2 * log_beta + (1 - v) / 2 * log_posterior
        # KL of q(x_{t-1} | x_t, x0) from the network's step; for t = 0 the usual stand-in for the last decoder
        away = (beta * before.sqrt() / (1 - abar) * (x0 - guess)).square()
        kl = 0.5 * (log_variance - log_posterior - 1 + (log_posterior - log_variance).exp() + away / log_variance.exp())
        bound = kl.mean() / math.log(2)
        return weighted + bound, {"loss": weighted.item(), "eps": error.mean().item(), "bound": bound.item()}
