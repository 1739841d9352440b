"""GLIDE's text transformer. It looks in all directions and does not hide padding: the network learned what padding
means.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F

from .config import HEAD_WIDTH, Config

# q, k, v [B, heads, L, 64] → [B, heads, L, 64]
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class TextAttention(nn.Module):
    def __init__(self, width: int, attention: Attention, dtype, device, operations):
        super().__init__()
        self.heads, self.attention = width // HEAD_WIDTH, attention
        self.c_qkv = operations.Linear(width, 3 * width, dtype=dtype, device=device)
        self.c_proj = operations.Linear(width, width, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The rows of c_qkv are [head][q, k, v], not [q, k, v][head].
        q, k, v = self.c_qkv(x).unflatten(-1, (self.heads, 3 * HEAD_WIDTH)).transpose(1, 2).split(HEAD_WIDTH, dim=-1)
        return self.c_proj(self.attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, dtype, device, operations):
        super().__init__()
        self.c_fc = operations.Linear(width, 4 * width, dtype=dtype, device=device)
        self.c_proj = operations.Linear(4 * width, width, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class TextBlock(nn.Module):
    def __init__(self, width: int, attention: Attention, dtype, device, operations):
        super().__init__()
        self.attn = TextAttention(width, attention, dtype, device, operations)
        self.ln_1 = operations.LayerNorm(width, dtype=torch.float32, device=device)
        self.mlp = MLP(width, dtype, device, operations)
        self.ln_2 = operations.LayerNorm(width, dtype=torch.float32, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x.float()).to(x.dtype))
        return x + self.mlp(self.ln_2(x.float()).to(x.dtype))


class Transformer(nn.Module):
    def __init__(self, config: Config, attention: Attention, dtype, device, operations):
        super().__init__()
        sizes = config.text_width, attention, dtype, device, operations
        self.resblocks = nn.ModuleList(TextBlock(*sizes) for _ in range(config.text_layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.resblocks:
            x = block(x)
        return x


class TextEncoder(nn.Module):
    """Tokens → what the U-Net reads. As in the original, norms and the two embeddings of positions stay float32
    whatever `dtype` is.

    `attention` and `operations` let a host bring its own; the defaults are PyTorch's.
    """

    def __init__(
        self, config: Config, dtype=torch.float32, device=None, operations=nn, attention: Attention | None = None
    ):
        super().__init__()
        attention = attention or F.scaled_dot_product_attention
        width, positions = config.text_width, (config.text_ctx, config.text_width)
        self.token_embedding = operations.Embedding(config.vocabulary, width, dtype=dtype, device=device)
        self.positional_embedding = nn.Parameter(torch.empty(positions, dtype=torch.float32, device=device))
        self.padding_embedding = nn.Parameter(torch.empty(positions, dtype=torch.float32, device=device))
        self.transformer = Transformer(config, attention, dtype, device, operations)
        self.final_ln = operations.LayerNorm(width, dtype=torch.float32, device=device)
        self.transformer_proj = operations.Linear(width, 4 * config.channels, dtype=dtype, device=device)

    def forward(
        self, tokens: torch.Tensor, mask: torch.Tensor, dtype: torch.dtype | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(xf_proj [B, 4C], added to the time embedding; xf_out [B, L, W], more keys for attention) of long tokens [B,
        L].

        mask [B, L]: True where there is text. Elsewhere token and position are replaced by the padding embedding of the
        position. xf_proj is read off the last position, which usually is padding.
        """
        positions = self.positional_embedding.to(tokens.device)
        x = self.token_embedding(tokens).float() + positions
        x = torch.where(mask[..., None], x, self.padding_embedding.to(tokens.device))
        x = self.transformer(x.to(dtype or self.token_embedding.weight.dtype))
        x = self.final_ln(x.float()).to(x.dtype)
        return self.transformer_proj(x[:, -1]), x
