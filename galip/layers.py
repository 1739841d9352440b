"""Blocks of the generator: text-conditioned modulation (DFBLK), bridge block (M_Block) and upsampling block (G_Block).

Tao et al., "GALIP: Generative Adversarial CLIPs for Text-to-Image Synthesis" (CVPR 2023); DFBLK is from DF-GAN (CVPR
2022). A modulation is a pair (gamma, beta) of [B, C, 1, 1]; each block takes the four that belong to it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from .fast import Fast, four_phase_conv, phase_kernels

SLOPE = 0.2

Modulation = tuple[torch.Tensor, torch.Tensor]


def upsample(x: torch.Tensor, size: int) -> torch.Tensor:
    """Nearest neighbour by floor(i * in / out), which for 7 -> 8 doubles the first row ('nearest-exact' would not)."""
    return F.interpolate(x, size=(size, size), mode="nearest")


def modulate(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, in_place: bool) -> torch.Tensor:
    """leaky_relu(x * gamma + beta)."""
    if in_place:
        return F.leaky_relu(torch.addcmul(beta, x, gamma), SLOPE, inplace=True)
    return F.leaky_relu(x * gamma + beta, SLOPE)


def modulation_mlp(cond_dim: int, channels: int, bias: float) -> nn.Sequential:
    """Two-layer MLP that starts as the constant `bias`."""
    first, last = nn.Linear(cond_dim, channels), nn.Linear(channels, channels)
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, bias)
    return nn.Sequential(OrderedDict(linear1=first, relu1=nn.ReLU(), linear2=last))


class Affine(nn.Module):
    """Predicts a scale and a shift per channel from (noise, sentence)."""

    def __init__(self, cond_dim: int, channels: int):
        super().__init__()
        self.fc_gamma = modulation_mlp(cond_dim, channels, 1.0)
        self.fc_beta = modulation_mlp(cond_dim, channels, 0.0)


class DFBlock(nn.Module):
    """Two modulations, each followed by a leaky ReLU."""

    def __init__(self, cond_dim: int, channels: int):
        super().__init__()
        self.affine0 = Affine(cond_dim, channels)
        self.affine1 = Affine(cond_dim, channels)

    def forward(self, x: torch.Tensor, modulations: list[Modulation], fast: Fast) -> torch.Tensor:
        for gamma, beta in modulations:
            x = modulate(x, gamma, beta, fast.in_place)
        return x


class MBlock(nn.Module):
    """Bridge block: residual, convolution THEN modulation, constant size."""

    def __init__(self, channels: int, hidden: int, cond_dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1)
        self.fuse1 = DFBlock(cond_dim, hidden)
        self.conv2 = nn.Conv2d(hidden, channels, 3, padding=1)
        self.fuse2 = DFBlock(cond_dim, channels)

    def forward(self, x: torch.Tensor, modulations: list[Modulation], fast: Fast) -> torch.Tensor:
        """[B, channels, h, w] -> the same shape."""
        h = self.fuse1(self.conv1(x), modulations[:2], fast)
        return x + self.fuse2(self.conv2(h), modulations[2:], fast)


class GBlock(nn.Module):
    """Upsampling block: residual, modulation THEN convolution, output side `size`."""

    def __init__(self, channels_in: int, channels_out: int, cond_dim: int, size: int):
        super().__init__()
        self.size = size
        self.c1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.c2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.fuse1 = DFBlock(cond_dim, channels_in)
        self.fuse2 = DFBlock(cond_dim, channels_out)
        self.c_sc = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        self.register_buffer("phases", None, persistent=False)

    def forward(self, x: torch.Tensor, modulations: list[Modulation], fast: Fast) -> torch.Tensor:
        """[B, in, h, w] -> [B, out, size, size]."""
        if fast.affine_first:
            shortcut = upsample(self.c_sc(x), self.size)
            h = self.fuse1(x, modulations[:2], fast)
            if fast.four_phase and self.size == 2 * x.shape[-1]:
                h = four_phase_conv(h, self.phase_kernels(), cast(torch.Tensor, self.c1.bias))
            else:
                h = self.c1(upsample(h, self.size))
        else:
            x = upsample(x, self.size)
            shortcut = self.c_sc(x)
            h = self.c1(self.fuse1(x, modulations[:2], fast))
        return shortcut + self.c2(self.fuse2(h, modulations[2:], fast))

    def phase_kernels(self) -> torch.Tensor:
        """The stored kernels, or fresh ones where a gradient may want to reach c1."""
        if self.phases is None or torch.is_grad_enabled():
            return phase_kernels(self.c1.weight)
        return self.phases

    def derive(self, keep: bool) -> None:
        """Store the four-phase kernels of c1, or forget them."""
        self.phases = phase_kernels(self.c1.weight.detach()) if keep else None
