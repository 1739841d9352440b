"""The CLIP towers that GALIP uses, with OpenAI's state-dict names.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021). OpenAI weights need the
QuickGELU; open_clip's plain ViT-B-32 configuration has the same shapes and is a different function.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..weight_files.clip import MEAN, STD
from .dims import HEAD_WIDTH


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head attention with the parameter names of nn.MultiheadAttention."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, queries: torch.Tensor, keys: torch.Tensor, causal: bool = False) -> torch.Tensor:
        """[B, Q, width], [B, K, width] -> [B, Q, width]."""
        width = queries.shape[-1]
        q = F.linear(queries, self.in_proj_weight[:width], self.in_proj_bias[:width])
        k, v = F.linear(keys, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class ResidualAttentionBlock(nn.Module):
    """Pre-norm transformer block of CLIP."""

    def __init__(self, width: int):
        super().__init__()
        self.attn = Attention(width)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=QuickGELU(), c_proj=nn.Linear(4 * width, width))
        )
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, seen: torch.Tensor | None = None, causal: bool = False) -> torch.Tensor:
        """[B, N, width] -> [B, N, width]. `seen` [B, M, width]: more tokens that x attends to, but whose output nobody
        wants.
        """
        queries = self.ln_1(x)
        keys = queries if seen is None else torch.cat((queries, self.ln_1(seen)), dim=1)
        x = x + self.attn(queries, keys, causal)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int):
        super().__init__()
        self.resblocks = nn.ModuleList([ResidualAttentionBlock(width) for _ in range(layers)])


class VisionTransformer(nn.Module):
    """CLIP's image tower up to its last block: OpenAI's `visual.*` without ln_post and proj."""

    def __init__(self, width: int, layers: int, grid: int, patch: int):
        super().__init__()
        self.grid = grid
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(grid * grid + 1, width) * width**-0.5)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers)

    def tokens(self, patches: torch.Tensor) -> torch.Tensor:
        """Patch features [B, width, grid, grid] -> the tokens of block 0 [B, 1 + grid^2, width], CLS first."""
        patches = patches.flatten(2).transpose(1, 2)
        cls = self.class_embedding.expand(len(patches), 1, -1)
        return self.ln_pre(torch.cat((cls, patches), dim=1) + self.positional_embedding)

    def patches(self, tokens: torch.Tensor) -> torch.Tensor:
        """Patch tokens [B, grid^2, width] -> feature map [B, width, grid, grid]."""
        return tokens.transpose(1, 2).unflatten(2, (self.grid, self.grid))


class ImageEncoder(VisionTransformer):
    """The whole image tower, OpenAI's `visual.*`: what the discriminator sees, and the embedding of the CLIP loss.

    taps: blocks (0-based) after which the discriminator's features are taken; 1, 4, 8 in the paper.
    normalize_twice: the official slip that `preprocess` tells of; False shows a CLIP the picture as it is.
    """

    def __init__(
        self,
        width: int = 768,
        layers: int = 12,
        grid: int = 7,
        patch: int = 32,
        embed_dim: int = 512,
        taps: tuple[int, ...] = (1, 4, 8),
        normalize_twice: bool = True,
    ):
        super().__init__(width, layers, grid, patch)
        self.taps = taps
        self.normalize_twice = normalize_twice
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, embed_dim) * width**-0.5)

    def preprocess(self, image: torch.Tensor) -> torch.Tensor:
        """Image in [-1, 1] -> CLIP input of side grid * patch.

        The range is mapped to [0, 1] twice, so that CLIP sees -1 as mid-grey and never anything darker. It is a slip of
        the official code, kept because released discriminators are trained on it and the published CLIP scores measured
        with it.
        """
        side = self.grid * self.conv1.kernel_size[0]
        image = F.interpolate(image, size=(side, side), mode="nearest")
        image = image * 0.5 + 0.5
        if self.normalize_twice:
            image = (image + 1) * 0.5
        mean, std = (torch.tensor(v, dtype=image.dtype, device=image.device)[:, None, None] for v in (MEAN, STD))
        return (image - mean) / std

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Image [B, 3, H, W] in [-1, 1] -> features [B, taps, width, grid, grid], embedding [B, embed_dim] (not
        normalized).
        """
        x = self.tokens(self.conv1(self.preprocess(image)))
        features = []
        for index, block in enumerate(self.transformer.resblocks):
            x = block(x)
            if index in self.taps:
                features.append(self.patches(x[:, 1:]))
        return torch.stack(features, dim=1), self.ln_post(x[:, 0]) @ self.proj


class TextEncoder(nn.Module):
    """CLIP's text tower. Its output is GALIP's sentence embedding: at the end-of-text token, projected, NOT
    normalized.
    """

    def __init__(
        self, width: int = 512, layers: int = 12, context: int = 77, vocabulary: int = 49408, embed_dim: int = 512
    ):
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.randn(context, width) * 0.01)
        self.transformer = Transformer(width, layers)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, embed_dim) * width**-0.5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids [B, L], L up to the context length -> [B, embed_dim]. End-of-text is the largest id of a row."""
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        for block in self.transformer.resblocks:
            x = block(x, causal=True)
        end = tokens.argmax(dim=-1)
        return self.ln_final(x[torch.arange(len(x), device=x.device), end]) @ self.text_projection


def check_same_clip(clip: Mapping[str, torch.Tensor], generator: nn.Module) -> None:
    """Raise ValueError unless `clip`, the state dict of a whole CLIP (OpenAI or transformers names), is the generator's
    CLIP.

    Other trainings of ViT-B/32 (LAION) have the same shapes, so weights are compared: the position and class embeddings
    of the image tower, which are in both files. A text tower without its image tower cannot be checked.
    """
    mapping: Any = generator.mapping
    inside = mapping.CLIP_ViT
    wanted = (
        "get the CLIP this checkpoint was trained with: openai/clip-vit-base-patch32 (model.safetensors) for the "
        "released ones"
    )
    for names, own in (
        (("visual.class_embedding", "vision_model.embeddings.class_embedding"), inside.class_embedding),
        (
            ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
            inside.positional_embedding,
        ),
    ):
        other = next((clip[name] for name in names if name in clip), None)
        if other is None:
            raise ValueError(
                f"this CLIP file has no image tower to compare with the GALIP checkpoint ('{names[0]}'); {wanted}"
            )
        own, other = own.detach().float().cpu(), other.detach().float().cpu()
        if own.shape != other.shape or (own - other).norm() > 0.01 * own.norm():
            raise ValueError(f"this CLIP is not the one inside the GALIP checkpoint ('{names[0]}' differs); {wanted}")
