"""Reading GLIDE's networks from files, safely, and writing them as safetensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

import torch

from ..weight_files import check_tensors, read_tensors, save_tensors
from .config import Config, infer_config
from .model import GlideModel

# The text transformer's tensors; all others are the U-Net's.
TEXT_KEYS = (
    "token_embedding.",
    "positional_embedding",
    "padding_embedding",
    "transformer.",
    "final_ln.",
    "transformer_proj.",
)


def load(
    source: str | os.PathLike | Mapping,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    group_channels: int = 1,
) -> GlideModel:
    """A network in eval mode from a file (.safetensors, or a torch file read with weights_only) or a state dict.

    Variant and sizes come from the shapes. dtype float16: as in the original, norms and embeddings of time and position
    stay float32. `group_channels`: see `Config`, for a network of ours. Raises ValueError with one sentence for
    anything that is not a whole, finite GLIDE network.
    """
    config, tensors = read(source)
    with torch.device("meta"):
        model = GlideModel(replace(config, group_channels=group_channels), dtype)
    for module, part in ((model.unet, unet_tensors(tensors)), (model.text_encoder, text_tensors(tensors))):
        dtypes = {key: value.dtype for key, value in module.state_dict().items()}
        module.load_state_dict(
            {key: value.to(device, dtypes[key], copy=True) for key, value in part.items()}, assign=True
        )
    return model.eval().requires_grad_(False)


def read(source: str | os.PathLike | Mapping) -> tuple[Config, dict[str, torch.Tensor]]:
    """(sizes, tensors by the released names) of a file or a state dict, checked; ValueError with one sentence as in
    `load`.
    """
    name = "the state dict" if isinstance(source, Mapping) else f"'{os.path.basename(source)}'"
    tensors = source if isinstance(source, Mapping) else read_tensors(source).tensors
    try:
        for key, value in tensors.items():
            if not isinstance(key, str) or not isinstance(value, torch.Tensor) or not value.is_floating_point():
                raise ValueError(f"this is not a GLIDE network: '{key}' is not a floating point tensor")
        config = infer_config(tensors)
        with torch.device("meta"):
            model = GlideModel(config)
        check_tensors(tensors, {**model.unet.state_dict(), **model.text_encoder.state_dict()}, "GLIDE network")
    except ValueError as error:
        raise ValueError(f"cannot load {name}: {error}") from error
    return config, dict(tensors)


def text_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of the text transformer."""
    return {key: value for key, value in tensors.items() if key.startswith(TEXT_KEYS)}


def unet_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of the U-Net."""
    return {key: value for key, value in tensors.items() if not key.startswith(TEXT_KEYS)}


def save(model: GlideModel, path: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
    """Write the network as safetensors with the released names; in `dtype`, or as it is. ValueError for a weight that
    does not fit.
    """
    tensors = {**model.unet.state_dict(), **model.text_encoder.state_dict()}
    tensors = {key: value.to(dtype or value.dtype).cpu().contiguous() for key, value in tensors.items()}
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"'{key}' does not fit {dtype}: save as float32 instead")
    save_tensors(tensors, path, {"architecture": "GLIDE", "variant": model.config.variant})
