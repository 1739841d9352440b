"""Weaker versions of one network, as functions on tensors: what each "bad model" B does that the good one does not.

Autoguidance (Karras et al., arXiv 2406.02507) pushes a prediction away from a weaker model's. When no earlier
checkpoint is public, these papers damage the network itself: PAG (2403.17377), SEG (2408.00760), TPG (2506.10036),
S2-Guidance (2508.12880), Self-Guidance (2412.05827), and the weight blend behind W2SD (2502.00473).
"""

import math
import struct
from collections.abc import Sequence
from typing import TypeVar

import torch

from .seeds import generator_of

INFINITE_BLUR = 9999.0
Item = TypeVar("Item")


def step_generator(seed: int, sigma: float) -> torch.Generator:
    """A CPU generator that depends on nothing but the seed and the noise level.

    Steps are told apart by sigma, never by a call count: a two-evaluation sampler, a second cond or a repeated run
    draws the same numbers at the same sigma.
    """
    return generator_of(struct.pack("<Qf", seed % 2**64, sigma), bits=63)


def choose_blocks(candidates: Sequence[Item], fraction: float, generator: torch.Generator) -> list[Item]:
    """The blocks to drop at one step: round(fraction·n) of the n candidates without repetition, in their order, at
    least one.

    S2-Guidance (2508.12880, eq. 4) drops about 10 % of the non-critical blocks, drawn anew at every step.
    `fraction` 0 or no candidates gives an empty list. Raises ValueError when fraction is outside 0..1.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(
            f"drop fraction {fraction} is outside 0..1: give the share of blocks to drop, 0.1 for ten percent"
        )
    if fraction == 0.0 or not candidates:
        return []
    count = max(1, round(fraction * len(candidates)))
    drawn = torch.randperm(len(candidates), generator=generator)[:count]
    return [candidates[i] for i in sorted(drawn.tolist())]


def identity_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    text_tokens: int,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention of the image queries when the image-to-image part of the attention map is the identity (PAG,
    2403.17377).

    Every image token attends to the text tokens and to itself, to no other image token. Without text tokens that is
    out = v, the form of the paper for a UNet; with them it is the form for joint attention (text first, then image).
    q, k, v: (batch, heads, text_tokens + image tokens, width). `mask`: boolean (True = attend) or additive,
    broadcastable to (batch, heads, tokens, tokens). Returns (batch, heads, image tokens, width).
    """
    own_value = v[..., text_tokens:, :]
    if text_tokens == 0:
        return own_value
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    image_q = q[..., text_tokens:, :] * scale
    to_text = image_q @ k[..., :text_tokens, :].transpose(-1, -2)
    to_self = (image_q * k[..., text_tokens:, :]).sum(-1, keepdim=True)
    if mask is not None:
        tokens = q.shape[-2]
        mask = mask.expand(*mask.shape[:-2], tokens, tokens)
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -math.inf)
        rows = mask[..., text_tokens:, :]
        to_text = to_text + rows[..., :text_tokens]
        to_self = to_self + rows[..., text_tokens:].diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    weights = torch.cat((to_text, to_self), dim=-1).softmax(dim=-1, dtype=torch.float32).to(v.dtype)
    return weights[..., :text_tokens] @ v[..., :text_tokens, :] + weights[..., text_tokens:] * own_value


def gaussian_rows(size: int, sigma: float, device: torch.device | str = "cpu") -> torch.Tensor:
    """(size, size) float32 matrix whose row i is a Gaussian around i of standard deviation `sigma` cells, summing to
    one.

    It is normalized over the cells that exist, so `sigma` at or beyond INFINITE_BLUR gives the exact mean (1/size
    everywhere) and nothing has to be padded. `sigma` must be above 0.
    """
    if sigma >= INFINITE_BLUR:
        return torch.full((size, size), 1.0 / size, device=device)
    cell = torch.arange(size, dtype=torch.float32, device=device)
    weights = (-((cell[:, None] - cell[None, :]) ** 2) / (2.0 * sigma**2)).exp()
    return weights / weights.sum(dim=1, keepdim=True)


def blur_queries(q: torch.Tensor, grid: tuple[int, int], sigma: float, first: int = 0) -> torch.Tensor:
    """Queries blurred over the token grid by a Gaussian of `sigma` tokens (SEG, 2408.00760).

    Blurring the queries blurs the attention map over its query positions, because q·k is linear in q; in the limit of
    infinite sigma every query is the mean query. `q`: (..., tokens, width); the grid of (height, width) tokens starts
    at `first` and is row-major; tokens outside it (text, reference images) are left alone. Sigma 0 returns `q` itself.
    Raises ValueError when sigma is negative or the grid does not fit.
    """
    if sigma < 0:
        raise ValueError(f"blur sigma {sigma} is negative: give the width of the blur in tokens, 0 for none")
    if sigma == 0:
        return q
    height, width = grid
    last = first + height * width
    if last > q.shape[-2]:
        raise ValueError(f"a grid of {height} x {width} tokens does not fit in {q.shape[-2]} tokens")
    rows = gaussian_rows(height, sigma, q.device)
    columns = gaussian_rows(width, sigma, q.device)
    cells = q[..., first:last, :].float().unflatten(-2, (height, width))
    blurred = torch.einsum("yi,xj,...ijc->...yxc", rows, columns, cells).flatten(-3, -2).to(q.dtype)
    return torch.cat((q[..., :first, :], blurred, q[..., last:, :]), dim=-2)


def token_order(tokens: int, generator: torch.Generator, device: torch.device | str = "cpu") -> torch.Tensor:
    """A random order of `tokens` tokens (TPG, 2506.10036: x → Sx, S a permutation), one for the whole batch. (tokens,)
    int64.
    """
    return torch.randperm(tokens, generator=generator).to(device)


def shifted_sigma(sigma: torch.Tensor, shift: float, sigma_max: float) -> torch.Tensor:
    """The higher noise level σ' = min(σ·(1 + shift), sigma_max): beyond sigma_max the network was never trained. Any
    shape.
    """
    if shift < 0:
        raise ValueError(
            f"sigma shift {shift} is negative: a weaker prediction needs a higher noise level, so give 0 or more"
        )
    return torch.minimum(sigma * (1.0 + shift), torch.full_like(sigma, sigma_max).maximum(sigma))


def blend_strengths(amount: float) -> tuple[float, float]:
    """(share of the model, share of the base) in θ_B = (1 − amount)·θ_M + amount·θ_base. Raises ValueError outside
    0..1.
    """
    if not 0.0 <= amount <= 1.0:
        raise ValueError(f"blend amount {amount} is outside 0..1: 0 keeps the model, 1 gives the base model")
    return 1.0 - amount, amount
