"""GLIDE's diffusion in the frame it was trained in, x = sqrt(abar)*x0 + sqrt(1 - abar)*noise: schedules, respacing, one
step of sampling.

Pure: noise is given, never drawn. `fn(x, t)` is a network: pictures [B, 3, H, W] and ORIGINAL timesteps [B] → [B, 6, H,
W], three channels of noise and three that place its variance. (Nichol et al. 2021, arXiv 2112.10741; Nichol & Dhariwal
2021, arXiv 2102.09672.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Change = Callable[[torch.Tensor], torch.Tensor]
FAST27 = "fast27"  # the upsampler's steps: dense at the end of sampling, few at its beginning


def betas(name: str, steps: int = 1000) -> torch.Tensor:
    """float64 [steps]: "squaredcos_cap_v2", the cosine schedule capped at 0.999, or "linear", 1e-4 to 0.02 (for 1000
    steps).
    """
    if steps < 1:
        raise ValueError(f"A noise schedule of {steps} steps is none: give at least 1.")
    if name == "linear":
        scale = 1000 / steps
        return torch.linspace(scale * 1e-4, scale * 0.02, steps, dtype=torch.float64)
    if name == "squaredcos_cap_v2":

        def f(t: float) -> float:
            return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

        return torch.tensor(
            [min(1 - f((i + 1) / steps) / f(i / steps), 0.999) for i in range(steps)], dtype=torch.float64
        )
    raise ValueError(
        f"There is no noise schedule '{name}': GLIDE uses 'squaredcos_cap_v2' (base) and 'linear' (upsampler)."
    )


def respaced(spec: str, steps: int = 1000) -> list[int]:
    """The timesteps to keep, rising: "100" evenly spaced, "10,10,3,2,2" that many in equal sections, "ddim25" by an
    integer stride, "fast27" GLIDE's own for the upsampler, "" all. ValueError when the spec is none of these or asks
    for more than there are.
    """
    if spec == "":
        return list(range(steps))
    if spec == FAST27:
        # 999 is left out: the network gives nothing useful where the picture is all noise.
        return sorted({*respaced("10,10,3,2,2", steps), steps - 3} - {steps - 1})
    try:
        counts = [int(part) for part in spec.removeprefix("ddim").split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1 or (spec.startswith("ddim") and len(counts) > 1):
        raise ValueError(
            f"The steps '{spec}' are not understood: write a number like 100, parts like 10,10,3,2,2, ddim25, "
            f"or fast27."
        )
    if spec.startswith("ddim"):
        stride = next((stride for stride in range(1, steps + 1) if len(range(0, steps, stride)) == counts[0]), None)
        if stride is None:
            raise ValueError(
                f"No whole stride takes exactly {counts[0]} of {steps} steps: choose another number, or drop 'ddim'."
            )
        return list(range(0, steps, stride))
    size, larger = divmod(steps, len(counts))
    kept, start = set(), 0
    for index, count in enumerate(counts):
        here = size + (index < larger)
        if count > here:
            raise ValueError(f"Cannot take {count} steps out of {here}: '{spec}' asks for too many.")
        spacing, position = (here - 1) / (count - 1) if count > 1 else 1.0, 0.0
        for _ in range(count):
            kept.add(start + round(position))
            position += spacing  # accumulated, as the original does: a product rounds differently on ties
        start += here
    return sorted(kept)


class Schedule:
    """A noise schedule of which only some steps are kept. Index i counts the kept ones, 0 the cleanest; `timesteps[i]`
    is original.

    beta[i], abar[i], abar_prev[i] (1 for i = 0), log_beta[i] and log_posterior[i], the bounds of the log variance:
    floats.
    """

    def __init__(self, name: str, spec: str = "", steps: int = 1000):
        self.timesteps = respaced(spec, steps)
        full = torch.cumprod(1 - betas(name, steps), 0)
        self._set([math.sqrt(1 / bar - 1) for bar in (1.0, *full[self.timesteps].tolist())])

    @classmethod
    def from_sigmas(cls, sigmas: Sequence[float]) -> Schedule:
        """Of rising noise levels sqrt(1/abar - 1), the first one what the last step ends at: 0, a clean picture, or
        more where another sampler goes on. It knows no timesteps.

        ValueError when they do not rise.
        """
        if any(after <= before for before, after in zip(sigmas, sigmas[1:])):
            raise ValueError("A step of ancestral sampling needs less noise at its end than at its start.")
        schedule = cls.__new__(cls)
        schedule.timesteps = []
        schedule._set(sigmas)
        return schedule

    def _set(self, sigmas: Sequence[float]) -> None:
        bars = [1 / (1 + sigma**2) for sigma in sigmas]
        self.abar, self.abar_prev = bars[1:], bars[:-1]
        # In sigma, because 1 - abar/abar_prev loses its digits between two low noise levels.
        self.beta = [(now**2 - before**2) / (1 + now**2) for before, now in zip(sigmas, sigmas[1:])]
        self.log_beta = [math.log(beta) for beta in self.beta]
        posterior = [beta * (1 - before) / (1 - bar) for beta, bar, before in zip(self.beta, self.abar, self.abar_prev)]
        if posterior and posterior[0] == 0:
            # It would be log 0, and the network interpolates towards it: the next one takes its place.
            posterior[0] = posterior[1] if len(posterior) > 1 else self.beta[0]
        self.log_posterior = [math.log(value) for value in posterior]

    def __len__(self) -> int:
        return len(self.abar)

    def timestep(self, i: int, x: torch.Tensor) -> torch.Tensor:
        """Original timestep of step i, once for each picture of x: int64 [B]."""
        return torch.full((len(x),), self.timesteps[i], device=x.device)

    def x0(self, x: torch.Tensor, eps: torch.Tensor, i: int) -> torch.Tensor:
        """The picture that x would be without the noise eps."""
        return x / math.sqrt(self.abar[i]) - math.sqrt(1 / self.abar[i] - 1) * eps

    def eps(self, x: torch.Tensor, x0: torch.Tensor, i: int) -> torch.Tensor:
        """The noise that makes x of the picture x0."""
        return (x / math.sqrt(self.abar[i]) - x0) / math.sqrt(1 / self.abar[i] - 1)

    def log_variance(self, v: torch.Tensor, i: int) -> torch.Tensor:
        """Log variance of a step from the network's channels v: -1 the posterior's, 1 beta, between them by logarithm;
        not clamped.
        """
        share = (v + 1) / 2
        return share * self.log_beta[i] + (1 - share) * self.log_posterior[i]

    def posterior_mean(self, x: torch.Tensor, x0: torch.Tensor, i: int) -> torch.Tensor:
        """Mean of q(x_{t-1} | x_t, x0) (Ho et al. 2020, equation 7)."""
        a, p, b = self.abar[i], self.abar_prev[i], self.beta[i]
        return b * math.sqrt(p) / (1 - a) * x0 + (1 - p) * math.sqrt(1 - b) / (1 - a) * x

    def ddim(self, x0: torch.Tensor, eps: torch.Tensor, i: int, noise: torch.Tensor | None, eta: float) -> torch.Tensor:
        """The next sample (Song et al. 2020, equation 12); eta 0 is deterministic, 1 has DDPM's smallest variance."""
        a, p = self.abar[i], self.abar_prev[i]
        sigma = eta * math.sqrt((1 - p) / (1 - a)) * math.sqrt(1 - a / p)
        sample = math.sqrt(p) * x0 + math.sqrt(1 - p - sigma**2) * eps
        if i == 0 or sigma == 0:
            return sample
        if noise is None:
            raise ValueError(f"DDIM with eta {eta} adds noise: give it.")
        return sample + sigma * noise


def guide(cond_out: torch.Tensor, uncond_out: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance of the noise, uncond + scale*(cond - uncond); the variance channels are the conditional
    ones.
    """
    eps, free = cond_out[:, :3], uncond_out[:, :3]
    return torch.cat([free + scale * (eps - free), cond_out[:, 3:]], dim=1)


def p_mean_variance(
    fn: Network, x: torch.Tensor, i: int, schedule: Schedule, denoised_fn: Change | None = None, clip: bool = True
) -> dict[str, torch.Tensor]:
    """The law of the next sample: mean, log_variance and pred_xstart, the clean picture that it aims at (after
    denoised_fn and clip).
    """
    out = fn(x, schedule.timestep(i, x))
    x0 = schedule.x0(x, out[:, :3], i)
    if denoised_fn is not None:
        x0 = denoised_fn(x0)
    if clip:
        x0 = x0.clamp(-1, 1)
    return {
        "mean": schedule.posterior_mean(x, x0, i),
        "log_variance": schedule.log_variance(out[:, 3:], i),
        "pred_xstart": x0,
    }


def p_sample(
    fn: Network,
    x: torch.Tensor,
    i: int,
    schedule: Schedule,
    noise: torch.Tensor,
    denoised_fn: Change | None = None,
    cond_fn: Network | None = None,
    clip: bool = True,
) -> dict[str, torch.Tensor]:
    """One ancestral step with the learned variance. cond_fn(x, t), a gradient of log p, moves the mean by
    variance*gradient; it moves neither pred_xstart nor anything that is clipped (Dhariwal & Nichol 2021, algorithm 1).
    No noise is added at i = 0.
    """
    law = p_mean_variance(fn, x, i, schedule, denoised_fn, clip)
    mean, log_variance = law["mean"], law["log_variance"]
    if cond_fn is not None:
        mean = mean + log_variance.exp() * cond_fn(x, schedule.timestep(i, x))
    sample = mean + (0.5 * log_variance).exp() * noise if i else mean
    return {"sample": sample, "pred_xstart": law["pred_xstart"]}


def ddim_sample(
    fn: Network,
    x: torch.Tensor,
    i: int,
    schedule: Schedule,
    noise: torch.Tensor | None = None,
    eta: float = 0.0,
    denoised_fn: Change | None = None,
    cond_fn: Network | None = None,
    clip: bool = True,
) -> dict[str, torch.Tensor]:
    """One DDIM step. The noise direction is derived from the clipped picture. cond_fn shifts it, eps - sqrt(1 -
    abar)*gradient, and the picture is derived from that again but not clipped again (Dhariwal & Nichol 2021, algorithm
    2).
    """
    x0 = p_mean_variance(fn, x, i, schedule, denoised_fn, clip)["pred_xstart"]
    eps = schedule.eps(x, x0, i)
    if cond_fn is not None:
        eps = eps - math.sqrt(1 - schedule.abar[i]) * cond_fn(x, schedule.timestep(i, x))
        x0 = schedule.x0(x, eps, i)
        # The original derives it once more from the new picture; the two are each other's inverse.
    return {"sample": schedule.ddim(x0, eps, i, noise, eta), "pred_xstart": x0}
