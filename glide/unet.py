"""GLIDE's U-Net, of the form of guided-diffusion (Dhariwal & Nichol 2021), which reads text as more keys of its
self-attention.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from .config import HEAD_WIDTH, Config
from .text import Attention


def time_embedding(timesteps: torch.Tensor, width: int) -> torch.Tensor:
    """[B, width] of timesteps [B] in 0..999, which may be fractional: cosines, then sines, of frequencies 1 to nearly
    1/10000.
    """
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half)
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _norm(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """In float32, also where the rest of the network is not."""
    return norm(x.float()).to(x.dtype)


class ResBlock(nn.Module):
    """Two convolutions around a scale and shift from the embedding; `resize` 'up' or 'down' changes the size before the
    first.
    """

    def __init__(self, channels: int, out: int, emb: int, resize: str, groups, dtype, device, operations):
        super().__init__()
        self.resize = resize
        self.in_layers = nn.ModuleList([
            operations.GroupNorm(groups(channels), channels, dtype=torch.float32, device=device),
            nn.SiLU(),
            operations.Conv2d(channels, out, 3, padding=1, dtype=dtype, device=device),
        ])  # fmt: skip
        self.emb_layers = nn.Sequential(nn.SiLU(), operations.Linear(emb, 2 * out, dtype=torch.float32, device=device))
        self.out_layers = nn.ModuleList([
            operations.GroupNorm(groups(out), out, dtype=torch.float32, device=device),
            nn.SiLU(),
            nn.Identity(),  # dropout in training
            operations.Conv2d(out, out, 3, padding=1, dtype=dtype, device=device),
        ])  # fmt: skip
        same = channels == out
        self.skip_connection = (
            nn.Identity() if same else operations.Conv2d(channels, out, 1, dtype=dtype, device=device)
        )

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        h = F.silu(_norm(self.in_layers[0], x))
        h = self.in_layers[2](self._resized(h))
        scale, shift = self.emb_layers(emb).to(h.dtype)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(_norm(self.out_layers[0], h) * (1 + scale) + shift)
        return self.skip_connection(self._resized(x)) + self.out_layers[3](h)

    def _resized(self, x: torch.Tensor) -> torch.Tensor:
        if self.resize == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.resize == "up" else x


class AttentionBlock(nn.Module):
    """Pixels attend to all pixels and to all text positions, padding included."""

    def __init__(self, channels: int, text_width: int, attention: Attention, groups, dtype, device, operations):
        super().__init__()
        self.heads, self.attention = channels // HEAD_WIDTH, attention
        self.norm = operations.GroupNorm(groups(channels), channels, dtype=torch.float32, device=device)
        self.qkv = operations.Conv1d(channels, 3 * channels, 1, dtype=dtype, device=device)
        self.encoder_kv = operations.Conv1d(text_width, 2 * channels, 1, dtype=dtype, device=device)
        self.proj_out = operations.Conv1d(channels, channels, 1, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """x [B, C, H, W], context [B, W, L]."""
        q, k, v = self._heads(self.qkv(_norm(self.norm, x.flatten(2))), 3)
        text_k, text_v = self._heads(self.encoder_kv(context), 2)
        out = self.attention(q, torch.cat([text_k, k], dim=2), torch.cat([text_v, v], dim=2))
        return x + self.proj_out(out.transpose(2, 3).flatten(1, 2)).reshape(x.shape)

    def _heads(self, rows: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
        """[B, parts*C, L], ordered [head][part][64], → one [B, heads, L, 64] for each part."""
        return rows.unflatten(1, (self.heads, parts, HEAD_WIDTH)).transpose(3, 4).unbind(2)


class UNet(nn.Module):
    """Noisy picture, timestep and text → 3 channels of noise and 3 of its variance.

    As in the original, norms, time embedding and last convolution stay float32 whatever `dtype` is. Computes in the
    dtype of x. `attention` and `operations` let a host bring its own; the defaults are PyTorch's.
    """

    # Lists of lists of layers; torch's annotations would say of their elements only that they are modules.
    input_blocks: Any
    middle_block: Any
    output_blocks: Any

    def __init__(
        self, config: Config, dtype=torch.float32, device=None, operations=nn, attention: Attention | None = None
    ):
        super().__init__()
        self.config = config
        attention = attention or F.scaled_dot_product_attention
        base, emb, last = config.channels, 4 * config.channels, len(config.channel_mult) - 1
        widths = [base * mult for mult in config.channel_mult]
        sizes = config.groups, dtype, device, operations

        def res(channels: int, out: int, resize: str = "") -> ResBlock:
            return ResBlock(channels, out, emb, resize, *sizes)

        def attend(channels: int) -> AttentionBlock:
            return AttentionBlock(channels, config.text_width, attention, *sizes)

        self.time_embed = nn.Sequential(
            operations.Linear(base, emb, dtype=torch.float32, device=device),
            nn.SiLU(),
            operations.Linear(emb, emb, dtype=torch.float32, device=device),
        )
        first = operations.Conv2d(config.in_channels, base, 3, padding=1, dtype=dtype, device=device)
        self.input_blocks = nn.ModuleList([nn.ModuleList([first])])
        channels, skips = base, [base]
        for level, width in enumerate(widths):
            for _ in range(config.num_res_blocks):
                block = [res(channels, width)] + ([attend(width)] if config.attention[level] else [])
                self.input_blocks.append(nn.ModuleList(block))
                channels = width
                skips.append(channels)
            if level != last:
                self.input_blocks.append(nn.ModuleList([res(channels, channels, "down")]))
                skips.append(channels)
        self.middle_block = nn.ModuleList([res(channels, channels), attend(channels), res(channels, channels)])
        self.output_blocks = nn.ModuleList()
        for level in range(last, -1, -1):
            width = widths[level]
            for index in range(config.num_res_blocks + 1):
                block = [res(channels + skips.pop(), width)] + ([attend(width)] if config.attention[level] else [])
                channels = width
                if level and index == config.num_res_blocks:
                    block.append(res(width, width, "up"))
                self.output_blocks.append(nn.ModuleList(block))
        self.out = nn.ModuleList([
            operations.GroupNorm(config.groups(base), base, dtype=torch.float32, device=device),
            nn.SiLU(),
            operations.Conv2d(base, 6, 3, padding=1, dtype=torch.float32, device=device),
        ])  # fmt: skip

    def forward(
        self, x: torch.Tensor, timesteps: torch.Tensor, xf_proj: torch.Tensor, xf_out: torch.Tensor
    ) -> torch.Tensor:
        """float32 [B, 6, H, W] of x [B, in, H, W] (what it reads besides the noisy picture already behind it), ORIGINAL
        timesteps [B] in 0..999, xf_proj [B, 4C] and xf_out [B, L, W] of the text. H and W are multiples of
        `config.stride`.
        """
        emb = self.time_embed(time_embedding(timesteps, self.config.channels)) + xf_proj.float()
        context = xf_out.to(x.dtype).transpose(1, 2)
        h, skips = self.input_blocks[0][0](x), []
        skips.append(h)
        for block in self.input_blocks[1:]:
            h = self._run(block, h, emb, context)
            skips.append(h)
        h = self._run(self.middle_block, h, emb, context)
        for block in self.output_blocks:
            h = self._run(block, torch.cat([h, skips.pop()], dim=1), emb, context)
        return self.out[2](F.silu(self.out[0](h.float())))

    @staticmethod
    def _run(block: nn.ModuleList, h: torch.Tensor, emb: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        for layer in block:
            h = layer(h, context) if isinstance(layer, AttentionBlock) else layer(h, emb)
        return h
