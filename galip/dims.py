"""The sizes of a GALIP generator, and how they are read off the shapes of its state dict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

HEAD_WIDTH = 64  # every CLIP ViT of OpenAI has heads of this width
MAX_BLOCKS, MAX_SIDE = 64, 4096  # far beyond any network that was trained: more is a damaged or hostile file


@dataclass(frozen=True)
class Dims:
    """Sizes of one generator. The defaults are those of the released checkpoints (CLIP ViT-B/32, 224x224).

    nz              width of the noise
    cond_dim        width of the sentence embedding
    grid            side of the CLIP patch grid, and of the noise code
    code_channels   channels of the noise code and of the bridge blocks
    code_hidden     channels between the two convolutions of a bridge block
    bridge_blocks   number of bridge blocks (M_Block)
    clip_width, clip_layers, clip_patch   the frozen CLIP ViT
    prompts         number of predicted prompt tokens; prompt j goes into ViT block j + 1
    channels        (in, out) of every G block
    sizes           side of the output of every G block; the only thing that shapes do not tell
    image_channels  channels of the image
    """

    nz: int = 100
    cond_dim: int = 512
    grid: int = 7
    code_channels: int = 64
    code_hidden: int = 32
    bridge_blocks: int = 4
    clip_width: int = 768
    clip_layers: int = 12
    clip_patch: int = 32
    prompts: int = 8
    channels: tuple[tuple[int, int], ...] = ((512, 512), (512, 512), (512, 512), (512, 256), (256, 128), (128, 64))
    sizes: tuple[int, ...] = (8, 16, 32, 64, 128, 224)
    image_channels: int = 3

    def __post_init__(self):
        blocks = max(self.clip_layers, self.bridge_blocks, len(self.channels))
        if blocks > MAX_BLOCKS or max(self.sizes, default=0) > MAX_SIDE:
            raise ValueError(
                f"it would have {blocks} blocks and pictures of {max(self.sizes, default=0)} pixels; a GALIP generator "
                f"has at most {MAX_BLOCKS} and {MAX_SIDE}"
            )
        if self.clip_width % HEAD_WIDTH:
            raise ValueError(
                f"the CLIP width is {self.clip_width}, but attention heads are {HEAD_WIDTH} wide; use a multiple of it"
            )
        if not 0 <= self.prompts < self.clip_layers:
            raise ValueError(
                f"{self.prompts} prompts do not fit a CLIP of {self.clip_layers} blocks; "
                f"prompt j goes into block j + 1, so at most {self.clip_layers - 1} fit"
            )
        if len(self.sizes) != len(self.channels) or min(self.sizes) < 1:
            raise ValueError(
                f"the generator has {len(self.channels)} blocks but the output sizes are {list(self.sizes)}; "
                "give one positive size per block"
            )
        for index in range(len(self.channels) - 1):
            if self.channels[index][1] != self.channels[index + 1][0]:
                raise ValueError(
                    f"GBlocks.{index} gives {self.channels[index][1]} channels but GBlocks.{index + 1} takes "
                    f"{self.channels[index + 1][0]}; the checkpoint is inconsistent"
                )

    @property
    def ngf(self) -> int:
        """The `ngf` of the official constructor: channels of the last block."""
        return self.channels[-1][1]


OFFICIAL = Dims()


def official_sizes(blocks: int) -> tuple[int, ...]:
    """Output sizes that the official NetG gives to `blocks` G blocks: 8, 16, 32, ... and 224 for the last one,
    always.
    """
    return tuple(8 * 2**index for index in range(blocks - 1)) + (224,)


def infer_dims(state_dict: Mapping[str, torch.Tensor], sizes: tuple[int, ...] | None = None) -> Dims:
    """Read the sizes of a generator from the shapes of its state dict (official names, no prefix).

    `sizes`: side of the output of every G block, where it is known from metadata; else `official_sizes`.
    Raises ValueError naming the tensor that is missing or the size that cannot be.
    """

    def shape(key: str, ndim: int) -> torch.Size:
        if key not in state_dict:
            raise ValueError(f"this is not a GALIP generator: it has no tensor '{key}'")
        if state_dict[key].ndim != ndim:
            raise ValueError(
                f"tensor '{key}' has shape {list(state_dict[key].shape)}; a GALIP generator has {ndim} dimensions there"
            )
        if 0 in state_dict[key].shape:
            raise ValueError(f"tensor '{key}' is empty")
        return state_dict[key].shape

    def count(prefix: str, key: str) -> int:
        number = 0
        while f"{prefix}.{number}.{key}" in state_dict:
            number += 1
        return number

    code, nz = shape("fc_code.weight", 2)
    hidden, code_channels = shape("mapping.FBlocks.0.conv1.weight", 4)[:2]
    width, _, patch, _ = shape("mapping.CLIP_ViT.conv1.weight", 4)
    positions, _ = shape("mapping.CLIP_ViT.positional_embedding", 2)
    prompts, cond = shape("mapping.fc_prompt.weight", 2)
    grid = math.isqrt(positions - 1)
    if grid * grid != positions - 1 or code != code_channels * grid * grid:
        raise ValueError(
            f"the noise code has {code} values in {code_channels} channels but the CLIP inside has {positions - 1} "
            "patches; they must be the same square grid, so this CLIP does not belong to this generator"
        )
    if prompts % width or cond <= nz:
        raise ValueError(
            f"mapping.fc_prompt is {prompts} x {cond}; expected a multiple of the CLIP width {width}, and more inputs "
            f"than the {nz} of the noise"
        )
    shape("GBlocks.0.c1.weight", 4)
    blocks = count("GBlocks", "c1.weight")
    kernels = [shape(f"GBlocks.{index}.c1.weight", 4) for index in range(blocks)]
    channels = tuple((kernel[1], kernel[0]) for kernel in kernels)
    return Dims(
        nz=nz,
        cond_dim=cond - nz,
        grid=grid,
        code_channels=code_channels,
        code_hidden=hidden,
        bridge_blocks=count("mapping.FBlocks", "conv1.weight"),
        clip_width=width,
        clip_layers=count("mapping.CLIP_ViT.transformer.resblocks", "ln_1.weight"),
        clip_patch=patch,
        prompts=prompts // width,
        channels=channels,
        sizes=tuple(sizes or official_sizes(blocks)),
        image_channels=shape("to_rgb.1.weight", 4)[0],
    )
