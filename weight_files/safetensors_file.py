"""safetensors files: the header is checked before the library reads the tensors."""

import json
import math
import struct
from pathlib import Path
from typing import TypeGuard

import safetensors
import torch

from .pickle_scan import MAX_TENSORS

_MAX_HEADER = 8 * 2**20  # bytes; that of a file of 20,000 tensors has 3 million
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors (mapped, not yet read from the disk) and metadata. ValueError says, without a subject, what is wrong."""
    _check_header(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except Exception:  # whatever a damaged file makes of the library
        raise ValueError("is damaged or not a safetensors file") from None


def _check_header(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 2 <= length <= size - 8:
            raise ValueError("is damaged or not a safetensors file")
        if length > _MAX_HEADER:
            raise ValueError("is too complicated to be a file of weights")
        header = file.read(length)
    if header.count(b"[") > 2 * MAX_TENSORS + 2 or header.count(b"{") > MAX_TENSORS + 2:
        raise ValueError(f"holds more than {MAX_TENSORS:,} tensors, which no file of weights does")
    try:
        entries = json.loads(header)
    except (ValueError, RecursionError):
        raise ValueError("is damaged or not a safetensors file") from None
    if not isinstance(entries, dict):
        raise ValueError("is damaged or not a safetensors file")
    entries.pop("__metadata__", None)
    for key, entry in entries.items():
        _check_entry(key[:100], entry, size)


def _check_entry(key: str, entry, size: int) -> None:
    fields = [entry.get(name) for name in ("dtype", "shape", "data_offsets")] if isinstance(entry, dict) else [None] * 3
    kind, shape, offsets = fields
    if not isinstance(kind, str) or not _wholes(shape) or not _wholes(offsets) or len(offsets) != 2:
        raise ValueError("is damaged or not a safetensors file")
    if kind not in _ITEM_BYTES:
        raise ValueError(
            f"holds '{key}' in the number format {kind[:20]}, and only plain floats and whole ones are read"
        )
    if len(shape) > 8:
        raise ValueError(f"holds '{key}' of {len(shape)} dimensions, and weights have at most 8")
    if math.prod(shape) * _ITEM_BYTES[kind] != offsets[1] - offsets[0] or offsets[1] > size:
        raise ValueError(f"is damaged: '{key}' is cut off")


def _wholes(values) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**50 for value in values)
