"""Classifier-free guidance, to which the caption term is added."""

import torch


def cfg(cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
    """D_uc + cfg*(D_c - D_uc) = D_c + s*(D_c - D_uc), in the order in which ComfyUI computes it, so that the bits
    agree.
    """
    return uncond + (cond - uncond) * scale
