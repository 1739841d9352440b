"""All contexts of a per-layer prompt in one tensor; the nodes keep one per layer."""

import torch

from guidance_lab.xti.contexts import common_length, repeat_to


def stack(contexts: list[torch.Tensor]) -> torch.Tensor:
    """One context per layer, each [B, T_i, D], to [B, L, T, D] with T = lcm(T_i). Raises ValueError if B or D
    differ.
    """
    if not contexts:
        raise ValueError("A per-layer prompt needs at least one layer.")
    batch, _, width = contexts[0].shape
    for layer, context in enumerate(contexts):
        if context.shape[0] != batch or context.shape[2] != width:
            raise ValueError(
                f"The context of layer {layer} is {tuple(context.shape)}, that of layer 0 {tuple(contexts[0].shape)}: "
                "batch and width must agree (encode all prompts with the same CLIP)."
            )
    length = common_length([context.shape[1] for context in contexts])
    return torch.stack([repeat_to(context, length) for context in contexts], dim=1)
