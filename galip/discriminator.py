"""GALIP's discriminator on CLIP features: NetD extracts, NetC judges them together with the sentence.

Tao et al. (CVPR 2023), "mate-D"; state-dict names are the official ones. DBlocks hold an unused 1x1 shortcut because
the official checkpoints do.
"""

from __future__ import annotations

import torch
from torch import nn

from .layers import SLOPE


class DBlock(nn.Module):
    """shortcut(x) + gamma * conv(conv(x)) + beta * CLIP features of a deeper block; gamma and beta are learned
    scalars.
    """

    def __init__(self, channels_in: int, channels_out: int, clip_features: bool):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))
        if clip_features:
            self.beta = nn.Parameter(torch.zeros(1))
        self.conv_r = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.LeakyReLU(SLOPE),
        )
        self.conv_s = nn.Conv2d(channels_in, channels_out, 1)
        self.learned_shortcut = channels_in != channels_out

    def forward(self, x: torch.Tensor, clip_features: torch.Tensor | None = None) -> torch.Tensor:
        out = (self.conv_s(x) if self.learned_shortcut else x) + self.gamma * self.conv_r(x)
        return out if clip_features is None else out + self.beta * clip_features


class NetD(nn.Module):
    """Features of `taps` CLIP blocks -> one feature map."""

    def __init__(self, width: int = 768, channels: int = 512, taps: int = 3):
        super().__init__()
        self.DBlocks = nn.ModuleList([DBlock(width, width, True) for _ in range(taps - 1)])
        self.main = DBlock(width, channels, False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, taps, width, h, w], shallow to deep -> [B, channels, h, w]."""
        x = features[:, 0]
        for index, block in enumerate(self.DBlocks):
            x = block(x, features[:, index + 1])
        return self.main(x)


class NetC(nn.Module):
    """Score of a feature map with a sentence. Two kernels, of side 4 for the 7x7 grid of ViT-B/32, bring it to 1x1."""

    def __init__(self, channels: int = 512, cond_dim: int = 512, hidden: int = 128, kernel: int = 4, grid: int = 7):
        super().__init__()
        self.joint_conv = nn.Sequential(
            nn.Conv2d(channels + cond_dim, hidden, kernel, bias=False),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(hidden, 1, grid - kernel + 1, bias=False),
        )

    def forward(self, x: torch.Tensor, sentence: torch.Tensor) -> torch.Tensor:
        """[B, channels, h, w], raw sentence embedding [B, cond_dim] -> [B, 1, 1, 1] on the grid it was built for."""
        tiled = sentence[:, :, None, None].expand(-1, -1, *x.shape[2:])
        return self.joint_conv(torch.cat((x, tiled), dim=1))
