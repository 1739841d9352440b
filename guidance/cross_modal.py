"""Cross-modal guidance (UPainting, arXiv 2210.16031): raise a score of the half-finished image by moving the estimate
x0.

A *score term* is any callable x_in [B, ...] -> [B] to be raised: cosine similarity of a CLIP, a classifier's log
probability, one crop of either. S is the sum of the terms. Two gradients, which differ in what they know:

    x0 only            dS/dx0 at the running estimate, the diffusion model is not differentiated (MPGD,
                       arXiv 2311.16424)
    through the model  dS/dx, back through the denoiser (UPainting, Universal Guidance, DPS)

By Tweedie dx0/dx = a*Cov[x0|x]/b^2, so the second is the first preconditioned by the posterior covariance.
"""

from collections.abc import Callable, Iterable
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch

from .frames import NoiseLevel, noise_fraction, radius, to_vp
from .glide import capped_weight

ScoreTerm = Callable[[torch.Tensor], torch.Tensor]

RMS, CLAMP, EXACT = "rms", "clamp", "exact"
X0, THROUGH = "x0", "through"


class Gradient(NamedTuple):
    """score [B]; value = dS/dx0 or dS/dx (`wrt`), float32 or wider; denoised = the estimate that the score saw. All
    detached.
    """

    score: torch.Tensor
    value: torch.Tensor
    denoised: torch.Tensor
    wrt: str


@contextmanager
def differentiable(in_place: bool = True):
    """Autograd on, whatever the caller switched off, and with `in_place` tolerant of models that write into their
    activations.

    Hosts sample under `inference_mode`, where `enable_grad` alone silently records nothing; ComfyUI's CLIP layers and
    Flux blocks add in place to tensors that the backward pass needs. The tolerance puts Python around every single
    operation, which a GPU has to wait for; without it such a model raises a RuntimeError about an "inplace operation",
    and never a wrong gradient.
    """
    tolerance = torch.autograd.graph.allow_mutation_on_saved_tensors() if in_place else nullcontext()
    with torch.inference_mode(False), torch.enable_grad(), tolerance:
        yield


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """A detached copy, at least float32, that autograd may save. Call it inside `differentiable`."""
    return tensor.detach().clone().to(torch.promote_types(tensor.dtype, torch.float32))


def blend(x: torch.Tensor, denoised: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """UPainting's x_in = f*x0 + (1 - f)*x_t with f = sqrt(1 - alpha_bar) and x_t in the VP frame.

    `x` [B, ...] is in the frame of `level` and is brought to VP here; at high noise x_in is x0, at the end it is x_t.
    """
    f = noise_fraction(level)
    return f * denoised + (1 - f) * to_vp(x, level)


def accumulate(terms: Iterable[ScoreTerm], x_in: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(score [B], dS/dx_in) summed over the terms, one graph at a time: the memory of one term, however many there are.

    Call it inside `differentiable`. Each sample's score is differentiated by itself (gradient of the sum over the
    batch), so a batch is so many singles. Raises ValueError when there is no term, or a term does not return [B]
    differentiable scores.
    """
    score: torch.Tensor | None = None
    gradient: torch.Tensor | None = None
    for term in terms:
        leaf = _own(x_in).requires_grad_()
        value = term(leaf)
        if value.shape != leaf.shape[:1]:
            raise ValueError(
                f"A guidance objective returned shape {list(value.shape)}: it must return one score for each image."
            )
        if not value.requires_grad:
            raise ValueError(
                "A guidance objective cannot be differentiated: its score does not depend on the image through "
                "autograd."
            )
        (g,) = torch.autograd.grad(value.sum(), leaf)
        gradient = g if gradient is None else gradient + g
        score = value.detach() if score is None else score + value.detach()
    if score is None or gradient is None:
        raise ValueError("Guidance has no objective: connect at least one.")
    return score, gradient


def x0_gradient(
    terms: Iterable[ScoreTerm],
    x: torch.Tensor,
    denoised: torch.Tensor,
    level: NoiseLevel,
    *,
    blended: bool = True,
    in_place: bool = True,
) -> Gradient:
    """Gradient of S with respect to the estimate `denoised` [B, ...]; no diffusion model in the graph.

    With `blended` the score sees x_in and the gradient carries its factor sqrt(1 - alpha_bar). `in_place`: as in
    `differentiable`. The leaf is the estimate: with the leaf at x_t the only path would be (1 - f)*x_t, and the
    guidance would silently vanish at high noise.
    """
    with differentiable(in_place):
        level = NoiseLevel(*map(_own, level))
        estimate = _own(denoised)
        x_in = blend(_own(x), estimate, level) if blended else estimate
        score, g = accumulate(terms, x_in)
        if blended:
            g = g * noise_fraction(level)
    return Gradient(score, g, denoised.detach(), X0)


def model_gradient(
    terms: Iterable[ScoreTerm],
    denoiser: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    level: NoiseLevel,
    *,
    blended: bool = True,
    in_place: bool = True,
) -> Gradient:
    """Gradient of S with respect to `x` [B, ...] back through `denoiser` (x -> x0, with its CFG inside).

    The terms are accumulated at x_in first and then take one vector-Jacobian product to x (as in Disco Diffusion), so
    the backward pass of the model is paid once, not once for each crop. The model is evaluated once; its x0 is handed
    back. Raises ValueError when x0 does not depend on x through autograd (an attention kernel without a backward, for
    one).
    """
    with differentiable(in_place):
        level = NoiseLevel(*map(_own, level))
        leaf = _own(x).requires_grad_()
        denoised = denoiser(leaf)
        if not denoised.requires_grad:
            raise ValueError(
                "The model cannot be differentiated here: its output has no gradient. Use the x0 gradient instead."
            )
        x_in = blend(leaf, denoised, level) if blended else denoised
        score, g = accumulate(terms, x_in)
        (g,) = torch.autograd.grad(x_in, leaf, grad_outputs=g.to(x_in.dtype))
        denoised = denoised.detach()
    return Gradient(score, g, denoised, THROUGH)


def sample_gradient(
    terms: Iterable[ScoreTerm], x: torch.Tensor, denoised: torch.Tensor, level: NoiseLevel, *, in_place: bool = True
) -> Gradient:
    """dS/dx of a score of the noisy sample itself: the terms take x_t in the VP frame, and no diffusion model is
    involved.

    Noise-aware classifiers and GLIDE's noised CLIP. `x` [B, ...] in the frame of `level`; `denoised` is only handed on.
    """
    with differentiable(in_place):
        level = NoiseLevel(*map(_own, level))
        score, g = accumulate(terms, to_vp(_own(x), level))
        g = g / radius(level)
    return Gradient(score, g, denoised.detach(), THROUGH)


def masked_rms(g: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Root mean square of each sample, [B, 1, ...], over the inside of `mask` (broadcastable to g, 1 = inside)."""
    dims = tuple(range(1, g.ndim))
    # Gradients of a cosine can be 1e-20 and smaller: their squares would be zero in float32.
    largest = g.abs().amax(dims, keepdim=True)
    unit = torch.where(largest > 0, g / largest, 0)
    weight = torch.ones_like(g) if mask is None else mask.to(g).expand_as(g)
    return largest * ((unit**2 * weight).sum(dims, keepdim=True) / weight.sum(dims, keepdim=True)).sqrt()


def shift(
    gradient: Gradient,
    level: NoiseLevel,
    strength: float,
    *,
    size: str = RMS,
    limit: float = 0.05,
    mask: torch.Tensor | None = None,
    next_level: NoiseLevel | None = None,
) -> torch.Tensor:
    """What to add to the denoised estimate, [B, ...] in float32 or wider; positive strength raises the score.

    `size` says what `strength` is:
      "rms"    the size itself. The VP gradient is scaled to RMS 1 in each sample, so the eps prediction moves by
               strength*sqrt(1 - alpha_bar) and x0 by RMS strength*(1 - alpha_bar)/sqrt(alpha_bar), with either
               gradient. UPainting's published defaults saturate their clamp and so are strength 0.5 here.
      "clamp"  UPainting's G*min(RMS(G), limit)/RMS(G), times strength (its 20000 and cond_weight belong in S and
               strength).
      "exact"  gamma of s' = s + gamma*grad S. x0 moves by b^2/a*gamma*dS/dx (through the model), or by gamma*dS/dx0
               (x0 only).
    `mask` (broadcastable, 1 = inside): no shift outside, RMS taken inside. `next_level`: caps the first, huge steps as
    `glide.capped_weight` explains; without it flow at sigma 1 has no finite shift and gets none.
    A sample whose gradient is zero or not finite gets no shift.
    """
    if size not in (RMS, CLAMP, EXACT):
        raise ValueError(f"Unknown size rule '{size}': use rms, clamp or exact.")
    g = gradient.value if mask is None else gradient.value * mask.to(gradient.value)
    through = gradient.wrt == THROUGH
    if through:
        g = g * radius(level)  # dS/dx in the VP frame, where the papers state their numbers
    weight = capped_weight(level, next_level) if through or size == RMS else torch.ones_like(level.sigma)
    rms = masked_rms(g, mask)
    if size == RMS:
        g = g / rms
    elif size == CLAMP:
        g = g * (rms.clamp(max=limit) / rms)
    result = strength * weight * g
    usable = torch.isfinite(result).flatten(1).all(1) & (rms.flatten() > 0)
    return torch.where(usable.reshape(rms.shape), result, 0)
