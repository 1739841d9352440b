"""The recorded numbers of the official GLIDE code, and the formula that its weights and inputs were made of.

Everything follows fixtures/glide/golden.json (its `recipe` states the formula): a 32-bit hash of the name and the
index, so no weights need to be shipped.
"""

import json
import math
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "glide"
SMALL_KEYS = (
    ".w_t",
    ".w_pos",
    ".w_voc",
    ".patch_proj",
    ".f_c.w",
    ".f_c.b",
    ".f_2.w",
    ".f_2.b",
    "input.ln.g",
    "input.ln.b",
)


@cache
def facts() -> dict:
    return json.loads((FOLDER / "golden.json").read_text())


@cache
def tensors() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "golden.safetensors")


def hashed(name: str, shape: list[int], std: float, mean: float = 0.0, start: int = 0) -> torch.Tensor:
    """Uniform numbers with the given mean and standard deviation that depend on `name` and the index (from `start`)
    only; float32.
    """
    h = np.arange(start, start + math.prod(shape), dtype=np.uint32)
    h *= np.uint32(2654435761)
    h += np.uint32(zlib.crc32(name.encode()))
    h ^= h >> np.uint32(16)
    h *= np.uint32(2246822519)
    h ^= h >> np.uint32(13)
    h *= np.uint32(3266489917)
    h ^= h >> np.uint32(16)
    u = h.astype(np.float64)
    u = (u / 2**32 * 2 - 1) * math.sqrt(3)
    return torch.from_numpy((u * std + mean).astype(np.float32)).reshape(shape)


def state_dict(
    kind: str, shapes: dict | None = None, vocabulary_rows: list[int] | None = None
) -> dict[str, torch.Tensor]:
    """The weights of the image or text encoder, in the recorded shapes or in others; other rows of the vocabulary are
    zero.
    """

    def weight(key: str, shape: list[int]) -> torch.Tensor:
        name, fan_in = f"glide_{kind}.{key}", math.prod(shape[1:])
        if key.endswith(".w_voc") and vocabulary_rows is not None:
            value = torch.zeros(shape)
            for row in vocabulary_rows:
                value[row] = hashed(name, shape[1:], 0.5, start=row * shape[1])
            return value
        if key.endswith(".ln.g"):
            return hashed(name, shape, 0.1, 1.0)
        if key.endswith(".b"):
            return hashed(name, shape, 0.1)
        if key.endswith((".w_t", ".w_pos", ".w_voc")):
            return hashed(name, shape, 0.5)
        return hashed(name, shape, (1.5 if key.endswith((".f_q.w", ".f_k.w")) else 1.0) / math.sqrt(fan_in))

    return {key: weight(key, shape) for key, shape in (shapes or facts()["state_dict"][f"{kind}_encoder"]).items()}


def shrunk(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The recording's `small` variant."""
    return {key: value * 2**-6 if key.endswith(SMALL_KEYS) else value for key, value in weights.items()}


def images(name: str) -> torch.Tensor:
    """input.image or input.noisy, [2, 3, 64, 64]."""
    value = hashed(name, [2, 3, 64, 64], {"input.image": 0.5, "input.noisy": 1.0}[name])
    return value.clamp(-1, 1) if name == "input.image" else value
