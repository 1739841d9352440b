"""Weights and inputs that are a formula of name and index, so that reference numbers need no download and no random
numbers.
"""

import math
import zlib

import numpy as np
import torch


def formula(name: str, shape: tuple[int, ...], std: float, mean: float = 0.0) -> torch.Tensor:
    """A hash of (name, index), uniform with the given mean and standard deviation: float32 tensor of `shape`."""
    size, seed = math.prod(shape), np.uint32(zlib.crc32(name.encode()))
    out = np.empty(size, dtype=np.float32)
    chunk = 1 << 18
    for start in range(0, size, chunk):
        h = np.arange(start, min(start + chunk, size), dtype=np.uint32)  # arithmetic modulo 2^32
        h *= np.uint32(2654435761)
        h += seed
        for shift, factor in ((16, 2246822519), (13, 3266489917)):
            h ^= h >> np.uint32(shift)
            h *= np.uint32(factor)
        h ^= h >> np.uint32(16)
        u = h.astype(np.float64)
        u *= 2.0**-32 * 2 * math.sqrt(3) * std
        u += mean - math.sqrt(3) * std
        out[start : start + chunk] = u
    return torch.from_numpy(out).reshape(shape)


def moments(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Standard deviation and mean of the weight `name`; large enough that no part of the network is silent."""
    parts = name.split(".")
    fan_in = math.prod(shape) / shape[0] if shape else 1
    if name.endswith("linear2.weight"):
        return 0.5 / math.sqrt(fan_in), 0.0
    if name.endswith("linear2.bias"):
        return 0.2, 1.0 if "fc_gamma" in parts else 0.0
    if parts[-1] in ("class_embedding", "positional_embedding") or "token_embedding" in parts:
        return 0.5, 0.0
    if any(part.startswith("ln_") for part in parts):
        return 0.1, 1.0 if parts[-1] == "weight" else 0.0
    if parts[-1] == "in_proj_weight":
        return 1.5 / math.sqrt(fan_in), 0.0
    if parts[-1] in ("text_projection", "proj"):
        return 1 / math.sqrt(shape[0]), 0.0
    if parts[-1] in ("gamma", "beta"):
        return 0.05, 0.5
    if len(shape) >= 2:
        return 1 / math.sqrt(fan_in), 0.0
    return 0.1, 0.0


def formula_state_dict(module: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    """Formula weights for every tensor of `module` (it may be on the meta device); `prefix` is part of the formula's
    name.
    """
    return {
        key: formula(prefix + key, tuple(tensor.shape), *moments(key, tuple(tensor.shape)))
        for key, tensor in module.state_dict().items()
    }


def build(kind, prefix: str, *args) -> torch.nn.Module:
    """Module `kind(*args)` with formula weights."""
    with torch.device("meta"):
        module = kind(*args)
    module.load_state_dict(formula_state_dict(module, prefix), assign=True)
    return module.eval()


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """The noise [batch, 100] and sentence embedding [batch, 512] of the reference numbers (batch up to 2)."""
    return formula("input.noise", (2, 100), 1.0)[:batch], formula("input.sent", (2, 512), 0.45)[:batch]
