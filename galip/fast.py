"""The exact optimizations of the generator: what they are, and the mathematics of the four-phase convolution.

All of them are algebra, not approximation: in exact arithmetic the image is the same. `PLAIN` is the official order of
operations, kept for tests and benchmarks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Fast:
    """Which optimizations are on.

    affine_first   modulate, and apply the 1x1 shortcut, before nearest upsampling: both act per pixel, so they
                   commute with it
    four_phase     nearest x2 then a 3x3 convolution as four 2x2 convolutions (needs affine_first)
    fused_mlps     the first layers of all modulation MLPs share their input: one matrix product
    kv_prompts     tokens whose output is dropped (prompts; CLS in the last block) only get keys and values
    in_place       x * gamma + beta and the leaky ReLU in one buffer
    channels_last  NHWC activations in the image blocks (at 7x7, NCHW is both faster and closer on a CPU)
    """

    affine_first: bool = True
    four_phase: bool = True
    fused_mlps: bool = True
    kv_prompts: bool = True
    in_place: bool = True
    channels_last: bool = True


FAST = Fast()
PLAIN = Fast(False, False, False, False, False, False)


def phase_kernels(weight: torch.Tensor) -> torch.Tensor:
    """2x2 kernels that equal nearest x2 upsampling followed by the 3x3 kernel `weight` [out, in, 3, 3].

    Output row 2i sees source rows (i-1, i, i), output row 2i+1 sees (i, i, i+1), so the taps that meet on one row add
    up. Returns [4 * out, in, 2, 2], phases in the order (row, column) = (0,0), (0,1), (1,0), (1,1).
    """

    def split(w: torch.Tensor, dim: int) -> list[torch.Tensor]:
        first, middle, last = w.unbind(dim)
        return [torch.stack((first, middle + last), dim), torch.stack((first + middle, last), dim)]

    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))  # sums of half-precision taps round once
    phases = [kernel for rows in split(wide, 2) for kernel in split(rows, 3)]
    return torch.cat(phases).to(weight.dtype)


def four_phase_conv(x: torch.Tensor, kernels: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """conv3x3(nearest_x2(x), padding 1) by the kernels of `phase_kernels`: [B, in, H, W] -> [B, out, 2H, 2W]."""
    batch, _, height, width = x.shape
    out = bias.shape[0]
    memory_format = (
        torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    )
    y = torch.empty((batch, out, 2 * height, 2 * width), dtype=x.dtype, device=x.device, memory_format=memory_format)
    # Window r of the padded conv sees source rows r-1 and r: phase 0 of row i is window i, phase 1 is window i+1.
    windows = F.conv2d(x, kernels, bias.repeat(4), padding=1).split(out, dim=1)
    for phase, window in enumerate(windows):
        row, column = divmod(phase, 2)
        y[:, :, row::2, column::2] = window[:, :, row : row + height, column : column + width]
    return y
