"""Learned tokens laid out in memory the way each project writes them to its files; random numbers, real names and
shapes.
"""

from pathlib import Path

import safetensors.torch
import torch

SD1_NAMES = "IN01 IN02 IN04 IN05 IN07 IN08 MID OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11".split()
SDXL_NAMES = "IN04 IN05 IN07 IN08 MID OUT00 OUT01 OUT02 OUT03 OUT04 OUT05".split()


def rows(layers: int = 16, vectors: int = 1, width: int = 768, seed: int = 0) -> torch.Tensor:
    """[layers, vectors, width] in the size of CLIP's token table."""
    return 0.015 * torch.randn(layers, vectors, width, generator=torch.Generator().manual_seed(seed))


def kohya(values: torch.Tensor) -> dict:
    return {name: values[i].clone() for i, name in enumerate(SD1_NAMES)}


def numbered(values: torch.Tensor, token: str = "<cat>") -> dict:
    """mkshing and SeongMon."""
    return {f"{token}-{i}": values[i, 0].clone() for i in range(16)}


def promptplusplus(values: torch.Tensor, common: torch.Tensor, token: str = "cat") -> dict:
    data = {f"<{token}-{i}-{j}>": values[i, j].clone() for i in range(16) for j in range(values.shape[1])}
    return {**data, f"<{token}>": common.clone()}


def ed_lora(concepts: dict) -> dict:
    lora = {"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_down.weight": torch.zeros(4, 320)}
    return {"params": {"new_concept_embedding": concepts, "text_encoder": {}, "unet": lora}}


def sdxl(clip_l: torch.Tensor, clip_g: torch.Tensor) -> dict:
    """Our own layout: [11, n, 768] and [11, n, 1280]."""
    data = {f"{name}.clip_l": clip_l[i].clone() for i, name in enumerate(SDXL_NAMES)}
    return {**data, **{f"{name}.clip_g": clip_g[i].clone() for i, name in enumerate(SDXL_NAMES)}}


def write(path: Path, data: dict, metadata: dict | None = None) -> Path:
    """Save by the file's ending: .safetensors, else torch.save. safetensors sorts the keys, torch.save keeps their
    order.
    """
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(data, path, metadata)
    else:
        torch.save(data, path)
    return path


def shuffled(data: dict, seed: int = 0) -> dict:
    keys = list(data)
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed)).tolist()
    return {keys[i]: data[keys[i]] for i in order}
