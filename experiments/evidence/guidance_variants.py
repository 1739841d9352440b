"""Changes of CLIP guidance that papers propose and the nodes do not offer: measured by `evidence likelihood` first.

Each is the product's guidance class with one thing changed; `VARIANTS` names them.
"""

from dataclasses import dataclass, field
from functools import partial

import torch

from guidance_lab.guidance.cross_modal import Gradient
from guidance_lab.nodes.clip_guidance.score_guidance import ScoreGuidance, _State

BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's own
SAMPLES, SPREAD = 3, 0.5  # of the Monte-Carlo smoothing
REPEATS, EARLY = 4, 0.5  # of recurrence: how often a step is taken, in which share of the steps


@dataclass
class _Moments(_State):
    first: torch.Tensor | None = None
    second: torch.Tensor | None = None
    taken: list[int] = field(default_factory=list)  # steps whose gradient is in the moments


class Adam(ScoreGuidance):
    """Adaptive moments (arXiv 2603.16797): g becomes m / (sqrt(v) + eps), m and v the running, bias-corrected means of
    g and g^2 over the steps; what follows (`shift`) is unchanged.
    """

    name = "CLIP guidance, Adam"

    def begin(self, run):
        return _Moments(**vars(super().begin(run)))

    def _move(self, step, state, denoised, level, scored):
        if scored and step.index not in state.taken:
            state.taken.append(step.index)
            state.gradient = adam(state, state.gradient)
        return super()._move(step, state, denoised, level, scored)


def adam(state: _Moments, gradient: Gradient) -> Gradient:
    """The gradient after Adam; the moments in `state` go on by one step. `state.taken` holds this step already."""
    (b1, b2), t, g = BETAS, len(state.taken), gradient.value
    state.first = (1 - b1) * g + (0 if state.first is None else b1 * state.first)
    state.second = (1 - b2) * g**2 + (0 if state.second is None else b2 * state.second)
    value = (state.first / (1 - b1**t)) / ((state.second / (1 - b2**t)).sqrt() + EPSILON)
    return gradient._replace(value=value)


class Smoothed(ScoreGuidance):
    """Loss-guided diffusion (LGD): the score is the mean over x0 + r n, n ~ N(0, 1), r = SPREAD b / sqrt(a^2 + b^2).

    The noise is drawn by the generator of the step, so a run that is repeated is the same run.
    """

    name = "CLIP guidance, smoothed"

    def _terms(self, step, level, look):
        generator = torch.Generator().manual_seed(step.index)
        spread = SPREAD * level.sigma / (level.alpha**2 + level.sigma**2).sqrt()
        terms = []
        for _ in range(SAMPLES):
            noise = torch.randn(step.x.shape, generator=generator).to(step.x) * spread
            terms += [partial(_beside, term, noise) for term in super()._terms(step, level, look)]
        return terms


def _beside(term, noise, x_in):
    return term(x_in + noise.to(x_in)) / SAMPLES


def recurrent_euler(model, x, sigmas, extra_args=None, callback=None, disable=None, repeats=REPEATS):
    """Euler steps of which the early ones are taken `repeats` times (Universal Guidance, 2302.07121; FreeDoM's time
    travel, 2303.09833): after a step from sigma to sigma', noise of sqrt(sigma^2 - sigma'^2) leads back to sigma.
    """
    extra_args = extra_args or {}
    generator = torch.Generator().manual_seed(extra_args.get("seed", 0))
    count, rows = len(sigmas) - 1, x.new_ones(len(x))
    for i, (sigma, lower) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        for left in reversed(range(repeats if i < EARLY * count else 1)):
            denoised = model(x, sigma * rows, **extra_args)
            x = denoised + lower / sigma * (x - denoised)
            if left:
                noise = torch.randn(x.shape, generator=generator).to(x)
                x = x + (sigma**2 - lower**2).sqrt() * noise
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
    return x


VARIANTS = {"adam": Adam, "smoothed": Smoothed}
