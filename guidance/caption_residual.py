"""Caption-residual guidance: push away from what a captioner says of the half-finished image, towards what was asked.

    D' = D_c + s*(D_c - D_uc) - b*(D_b - D_c)          s = cfg - 1

D_c, D_uc, D_b: the model's estimate under the prompt, the negative prompt, and the caption of the running estimate. The
coefficients sum to 1, so the formula is the same in eps, v and x0. It limits itself: as the caption approaches the
prompt, D_b approaches D_c and what is left is plain classifier-free guidance.
"""

import string

import torch


def caption_residual(guided: torch.Tensor, cond: torch.Tensor, captioned: torch.Tensor, weight: float) -> torch.Tensor:
    """guided - b*(D_b - D_c): the caption term on top of a result that is guided already (by CFG or by anything else).

    All [B, ...]; `weight` b >= 0. With D_b equal to D_c, or b = 0, the values of `guided` come back unchanged.
    """
    if weight == 0:
        return guided
    return guided - weight * (captioned - cond)


def same_caption(first: str, second: str) -> bool:
    """Whether two captions say the same: case, white space and punctuation at the ends do not count."""
    return _plain(first) == _plain(second)


def _plain(caption: str) -> str:
    return " ".join(caption.casefold().split()).strip(string.punctuation + " ")
