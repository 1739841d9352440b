"""Tiny GLIDE networks with formula weights, as files that a user could have."""

from pathlib import Path

import torch
from glide_tools import weight

from guidance_lab.glide.config import Config
from guidance_lab.glide.text import TextEncoder
from guidance_lab.glide.unet import UNet

SIZES = {
    "channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention": (False, True),
    "text_ctx": 128, "text_width": 64, "text_layers": 1,
}  # fmt: skip


def write(folder: Path, name: str) -> Path:
    """The network that goes by the name of a published file: diffusion_models/base_inpaint.pt and so on."""
    path = folder / Path(name).name
    torch.save(tensors(Path(name).stem.replace("_", "-")), path)
    return path


def tensors(variant: str) -> dict[str, torch.Tensor]:
    """The weights of that file."""
    config = Config(variant=variant, **SIZES)
    with torch.device("meta"):
        parts = UNet(config), TextEncoder(config)
    shapes = {key: list(value.shape) for part in parts for key, value in part.state_dict().items()}
    return {key: weight(variant, key, shape) for key, shape in shapes.items()}
