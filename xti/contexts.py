"""The contexts of a P+ prompt: one [B, T, D] tensor per layer, made equally long, weighted and stacked."""

import math

import torch

# 8192 tokens x 16 layers x 768 channels are 400 MB in float32: beyond that the lengths do not fit each other.
MAX_TOKENS = 8192


def common_length(lengths: list[int]) -> int:
    """Least common multiple of the token counts: the length to which all can be repeated whole. Raises ValueError above
    8192.
    """
    length = math.lcm(*lengths)
    if length > MAX_TOKENS:
        raise ValueError(
            f"Prompts of {', '.join(map(str, sorted(set(lengths))))} tokens only meet at {length}, more than "
            f"{MAX_TOKENS}: "
            "make the longer prompts equally long."
        )
    return length


def repeat_to(context: torch.Tensor, length: int) -> torch.Tensor:
    """Repeat a [B, T, D] context along its tokens to `length`, a multiple of T.

    softmax(q [K;K]^T) [V;V] = softmax(q K^T) V: every key occurs equally often, so attention is unchanged (ComfyUI pads
    conds of different length the same way; padding with zeros would add keys and change it). Raises ValueError if T
    does not divide length.
    """
    repeats, rest = divmod(length, context.shape[1])
    if rest:
        raise ValueError(f"A context of {context.shape[1]} tokens cannot be repeated to {length}.")
    return context if repeats == 1 else context.repeat(1, repeats, 1)


def weighted(base: torch.Tensor, context: torch.Tensor, strength: float) -> torch.Tensor:
    """Blend a layer's own context with the base prompt's: base + strength * (context - base), both [B, T, D] after
    padding.

    strength 0 returns `base` itself and 1 returns `context` itself, bit for bit; above 1 extrapolates.
    """
    if strength == 0.0:
        return base
    if strength == 1.0:
        return context
    length = common_length([base.shape[1], context.shape[1]])
    return torch.lerp(repeat_to(base, length), repeat_to(context, length), strength)
