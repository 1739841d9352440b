"""The sizes of a GLIDE network, read from the shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

HEAD_WIDTH = 64  # of every attention head of the released networks; the files do not say it
GROUPS = 32  # of every GroupNorm
# Channels that a network reads → what it is for. All of them write 6: three of the noise, three of its variance.
VARIANTS = {3: "base", 6: "upsample", 7: "base-inpaint", 10: "upsample-inpaint"}


@dataclass(frozen=True)
class Config:
    """Sizes of one network. `attention`: whether the blocks of a level attend, finest level first; the middle always
    does. `group_channels`: fewest channels in a group of a norm, which no file says: 1 in the released networks. In a
    narrow network a group of one would take the mean of its channel away, and with it the colour of a background.
    """

    variant: str
    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    attention: tuple[bool, ...]
    text_ctx: int
    text_width: int
    text_layers: int
    vocabulary: int = 50257
    group_channels: int = 1

    def groups(self, channels: int) -> int:
        """Groups of a GroupNorm over so many channels."""
        return min(GROUPS, channels // self.group_channels)

    @property
    def in_channels(self) -> int:
        return next(channels for channels, variant in VARIANTS.items() if variant == self.variant)

    @property
    def upsamples(self) -> bool:
        return self.variant.startswith("upsample")

    @property
    def inpaints(self) -> bool:
        return self.variant.endswith("inpaint")

    @property
    def noise_schedule(self) -> str:
        """Not in the file either: both upsamplers were trained with the linear schedule, both base networks with the
        cosine one.
        """
        return "linear" if self.upsamples else "squaredcos_cap_v2"

    @property
    def stride(self) -> int:
        """Height and width must be multiples of this."""
        return 2 ** (len(self.channel_mult) - 1)


def infer_config(tensors: Mapping[str, torch.Tensor]) -> Config:
    """The sizes of the network that `tensors` (names of the released files) belongs to; ValueError, in one sentence,
    when it is none.
    """

    def shape(key: str, dims: int) -> tuple[int, ...]:
        if key not in tensors:
            raise ValueError(f"this is not a whole GLIDE network: '{key}' is missing")
        if tensors[key].ndim != dims or 0 in tensors[key].shape:
            raise ValueError(
                f"this is not a GLIDE network: '{key}' has shape {list(tensors[key].shape)}, expected {dims} dimensions"
            )
        return tuple(tensors[key].shape)

    in_channels = shape("input_blocks.0.0.weight", 4)[1]
    if in_channels not in VARIANTS:
        raise ValueError(
            f"this is not a GLIDE network: it reads {in_channels} channels, and GLIDE's read {_list(VARIANTS)}"
        )
    channels = shape("time_embed.0.weight", 2)[1]
    blocks = _count(tensors, r"output_blocks\.(\d+)\.")
    # The last block of every level but the finest ends with a second residual block, which doubles the size.
    resizing = {match[1] for key in tensors if (match := re.match(r"output_blocks\.(\d+)\.[12]\.in_layers\.", key))}
    levels = len(resizing) + 1
    if blocks == 0 or blocks % levels or blocks // levels < 2:
        raise ValueError(
            f"this is not a whole GLIDE network: its {blocks} output blocks do not make {levels} equal levels"
        )
    res = blocks // levels - 1
    first = [1 + level * (res + 1) for level in range(levels)]
    widths = [shape(f"input_blocks.{index}.0.out_layers.3.weight", 4)[0] for index in first]
    if channels % GROUPS or any(width % channels for width in widths):
        raise ValueError(
            f"this is not a GLIDE network: the widths {widths} of its levels are no multiples of {channels}"
        )
    attention = tuple(f"input_blocks.{index}.1.qkv.weight" in tensors for index in first)
    text_ctx, text_width = shape("positional_embedding", 2)
    heads = [width for width, on in zip(widths, attention) if on] + [widths[-1], text_width]
    if any(width % HEAD_WIDTH for width in heads):
        raise ValueError(
            f"this is not a GLIDE network: attention heads are {HEAD_WIDTH} wide, and its widths are "
            f"{sorted(set(heads))}"
        )
    return Config(
        variant=VARIANTS[in_channels],
        channels=channels,
        channel_mult=tuple(width // channels for width in widths),
        num_res_blocks=res,
        attention=attention,
        text_ctx=text_ctx,
        text_width=text_width,
        text_layers=_count(tensors, r"transformer\.resblocks\.(\d+)\."),
        vocabulary=shape("token_embedding.weight", 2)[0],
    )


def _count(tensors: Mapping[str, torch.Tensor], pattern: str) -> int:
    """One more than the largest number that the pattern finds in the names."""
    return max((int(match[1]) + 1 for key in tensors if (match := re.match(pattern, key))), default=0)


def _list(numbers) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}"
