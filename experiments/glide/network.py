"""The networks of GLIDE for Shapes: their sizes, their words, and a training copy of them that is fast on a CPU."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from guidance_lab.experiments.training import initialize
from guidance_lab.glide.config import Config
from guidance_lab.glide.model import GlideModel
from guidance_lab.glide.text import TextEncoder
from guidance_lab.glide.tokenizer import encode, pad
from guidance_lab.glide.unet import UNet
from guidance_lab.shapes.shipped import GLIDE_GROUP_CHANNELS

from .first_world.world import BACKGROUNDS, COLOURS, OBJECTS, RELATIONS, TEXTURES

CHECKPOINT = Path(__file__).resolve().parent / "checkpoint"
TEXT_CTX = 32  # the longest caption of Shapes has 28 tokens
WORDS = ("a", "and", "on", *" ".join(RELATIONS).split(), *COLOURS, *TEXTURES, *OBJECTS, *BACKGROUNDS)
# GPT-2's ids of these words at the beginning of a prompt and after a space; all other rows of the embedding stay unused
VOCABULARY = sorted({token for word in WORDS for token in (*encode(word), *encode(f" {word}"))})

# Heads 64 wide come with the format of the files. 32 channels without attention keep the two
# finest levels cheap; most of the weights are at 8 pixels, where they cost little.
BASE = Config(
    variant="base",
    channels=32,
    channel_mult=(1, 1, 2, 4),
    num_res_blocks=1,
    attention=(False, False, False, True),
    text_ctx=TEXT_CTX,
    text_width=64,
    text_layers=4,
    vocabulary=len(VOCABULARY),
    group_channels=GLIDE_GROUP_CHANNELS,
)
CONFIGS = {
    "base": BASE,
    "inpaint": replace(BASE, variant="base-inpaint"),
    "upsample": replace(BASE, variant="upsample", channel_mult=(1, 1, 2), attention=(False,) * 3, text_layers=1),
}


def words(captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows of the small embedding, whether there is text), both [B, TEXT_CTX], of captions of Shapes."""
    rows = {token: row for row, token in enumerate(VOCABULARY)}
    padded = [pad(encode(caption), TEXT_CTX) for caption in captions]
    # padding is replaced before anything reads it, so any row stands for it
    ids = [[rows[token] if text else 0 for token, text in zip(*pair, strict=True)] for pair in padded]
    return torch.tensor(ids), torch.tensor([mask for _, mask in padded])


class _ChannelsLastGroupNorm(torch.autograd.Function):
    """PyTorch's group norm for channels-last pictures on a CPU: the same numbers, and a backward pass that is several
    times as fast."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float):
        batch, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        count = height * width * channels // groups
        mean = rows.sum(1).view(batch, groups, -1).sum(2) / count
        square = rows.square().sum(1).view(batch, groups, -1).sum(2) / count
        rstd = (square - mean.square()).clamp(min=0).add(eps).rsqrt()
        scale = rstd[..., None] * weight.view(groups, -1)
        shift = bias.view(groups, -1) - mean[..., None] * scale
        ctx.save_for_backward(rows, weight, mean, rstd)
        out = torch.addcmul(shift.view(batch, 1, channels), rows, scale.view(batch, 1, channels))
        return out.view(batch, height, width, channels).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        # With h = (x - mean)*rstd: dL/dx = rstd*(w*g - mean(w*g) - h*mean(w*g*h)), means over a group.
        rows, weight, mean, rstd = ctx.saved_tensors
        (batch, groups), (_, channels, height, width) = mean.shape, gradient.shape
        gradient = gradient.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        count = height * width * channels // groups
        plain = gradient.sum(1).view(batch, groups, -1)
        along = ((gradient * rows).sum(1).view(batch, groups, -1) - mean[..., None] * plain) * rstd[..., None]
        w = weight.view(groups, -1)
        slope = -rstd.square() * (along * w).sum(2) / count
        shift = -rstd * (plain * w).sum(2) / count - slope * mean
        slope, shift = (value.repeat_interleave(channels // groups, 1)[:, None] for value in (slope, shift))
        dx = (gradient * (rstd[..., None] * w).view(batch, 1, channels)).addcmul_(rows, slope).add_(shift)
        dx = dx.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return dx, along.sum(0).flatten(), plain.sum(0).flatten(), None, None


class GroupNorm(nn.GroupNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 4 or x.device.type != "cpu":
            return super().forward(x)
        return _ChannelsLastGroupNorm.apply(x, self.weight, self.bias, self.num_groups, self.eps)


class Operations:
    """The layers of the training copy."""

    Conv1d, Conv2d, Linear = nn.Conv1d, nn.Conv2d, nn.Linear
    Embedding, LayerNorm, GroupNorm = nn.Embedding, nn.LayerNorm, GroupNorm


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """q, k, v [B, heads, L, 64] → [B, heads, L, 64]; on a CPU and in bfloat16 faster than PyTorch's fused one."""
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return weights.float().softmax(-1).to(v.dtype) @ v


def untrained(config: Config, seed: int = 5) -> GlideModel:
    """A network to train, channels-last: every branch begins silent, as in the original (zero last layers)."""
    with torch.device("meta"):
        model = GlideModel(config)
    model.text_encoder = TextEncoder(config, operations=Operations, attention=attention)
    model.unet = UNet(config, operations=Operations, attention=attention)
    initialize(model, seed)
    for name, p in model.unet.named_parameters():
        if ".out_layers.3." in name or ".proj_out." in name or name.startswith("out.2."):
            nn.init.zeros_(p)
    model.unet.to(memory_format=torch.channels_last)
    return model
