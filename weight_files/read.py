"""The one way in which the pack reads files of weights.

    tensors, metadata = read_tensors(path, inside=("state_dict",))

A file is untrusted: nothing in it is executed, nothing outside it is opened, and its sizes are checked before anything
is allocated. Reading takes at most about four times its size and 64 MB. Every refusal is a ValueError of one sentence
that begins with the file's name.
"""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from . import safetensors_file, torch_file

SAFETENSORS = (".safetensors", ".sft")
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
LIMIT = 32 * 2**30  # bytes; no CLIP, captioner or classifier that fits an ordinary computer is larger
MAX_KEY = 512  # characters
# Line breaks, signs that turn the direction of writing, and what cannot be written.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+")
MAX_DEPTH = 12  # of dictionaries in dictionaries
MAX_ENTRIES = 200_000  # of all dictionaries and lists together
_CHUNK = 2**22  # numbers that are looked at at once


class Tree(NamedTuple):
    """`content`: what a file holds, as plain dictionaries and lists with tensors, numbers, texts and None in them.
    `metadata`: of a safetensors file, else empty.
    """

    content: object
    metadata: dict[str, str]


class Weights(NamedTuple):
    """`tensors`: by name, on the CPU, dense, without a graph. `metadata`: of a safetensors file, else empty."""

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]


def read_tree(path: str | os.PathLike, limit_bytes: int = LIMIT) -> Tree:
    """Everything in a .safetensors (.sft) or PyTorch file (any other ending), with its nesting.

    Every tensor is dense, of plain floats or whole numbers, and no larger than what the file stores for it. Texts and
    other small values are as the file has them. ValueError for a file that is missing, damaged, too large, too nested,
    or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path.name}: there is no such file.")
    try:
        size = path.stat().st_size
        if size == 0:
            raise ValueError("is empty")
        if size > limit_bytes:
            raise ValueError(f"has {size:,} bytes, more than the {limit_bytes:,} that such a file can have")
        content: object
        with torch.inference_mode(False), torch.no_grad():
            if path.suffix.lower() in SAFETENSORS:
                content, metadata = safetensors_file.load(path)
            else:
                content, metadata = torch_file.load(path), {}
            return Tree(_Copy().of(content, MAX_DEPTH), metadata)
    except OSError as error:
        raise ValueError(
            f"{path.name}: the file cannot be read: {error.strerror or 'the disk gives an error'}."
        ) from None
    except ValueError as error:
        raise ValueError(f"{path.name}: the file {_CONTROL.sub(' ', str(error))}.") from None


def read_tensors(
    path: str | os.PathLike, inside: tuple[str, ...] = (), limit_bytes: int = LIMIT, whole: bool = False
) -> Weights:
    """The named tensors of a file of weights.

    inside: names of dictionaries around them that are taken off one after the other, where the file has them, such as
    `state_dict`. The `module.` of data-parallel training is taken off too. whole: also allow whole numbers. ValueError
    as `read_tree`, and as `tensors_of`.
    """
    tree = read_tree(path, limit_bytes)
    try:
        return Weights(tensors_of(unwrapped(tree.content, inside), whole), tree.metadata)
    except ValueError as error:
        raise ValueError(f"{Path(path).name}: the file {error}.") from None


def unwrapped(content: object, inside: tuple[str, ...]) -> object:
    """The dictionary inside others of these names, where they are there, without a `module.` that all its keys have."""
    for name in inside:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if isinstance(content, Mapping) and content and all(str(key).startswith("module.") for key in content):
        content = {str(key).removeprefix("module."): value for key, value in content.items()}
    return content


def tensors_of(content: object, whole: bool = False) -> dict[str, torch.Tensor]:
    """The same dictionary, when it holds nothing but named dense tensors of floats (`whole`: or of whole numbers).

    ValueError says, without a subject, what is the first thing that is wrong.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"holds a {_kind(content)}, not named weights")
    if not content:
        raise ValueError("holds no tensors")
    for key, value in content.items():
        if not isinstance(key, str):
            raise ValueError(f"holds numbered tensors, not named ones (the first is {str(key)[:20]})")
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"holds a {_kind(value)} under '{key[:100]}', where a tensor should be")
        reason = unusual(value, whole)
        if reason:
            raise ValueError(f"holds '{key[:100]}', which is {reason}")
    return dict(content)


def unusual(tensor: torch.Tensor, whole: bool = False) -> str | None:
    """Why a tensor is not plain dense numbers; None when it is."""
    if tensor.is_meta:
        return "without data (meta)"
    if tensor.is_quantized:
        return "quantised, and only plain numbers are read"
    if tensor.layout is not torch.strided or tensor.is_nested:
        return "sparse or nested, and only dense tensors are read"
    if tensor.dtype not in (FLOATS + WHOLE if whole else FLOATS):
        numbers = "plain floats or whole numbers" if whole else "plain floats"
        return f"of {str(tensor.dtype).removeprefix('torch.')}, and only {numbers} are read"
    return None


def finite(tensor: torch.Tensor) -> bool:
    """Whether all numbers are finite; unlike torch.isfinite(tensor).all() it takes next to no memory."""
    flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().flatten()
    return all(bool(torch.isfinite(part).all()) for part in flat.split(_CHUNK)) if flat.numel() else True


class _Copy:
    """Counts what it copies into plain dictionaries and lists, so that a file that repeats itself ends."""

    def __init__(self):
        self.entries = 0

    def of(self, value: object, depth: int) -> object:
        self.entries += 1
        if self.entries > MAX_ENTRIES or depth < 0:
            raise ValueError("is nested too deeply or repeats itself, which no file of weights does")
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, torch.nn.ParameterDict):  # its own methods would run what the file gives for their names
            value = vars(value).get("_parameters")
        if isinstance(value, dict):
            return {self._key(key): self.of(item, depth - 1) for key, item in dict.items(value)}
        if isinstance(value, (list, tuple)):
            return [self.of(item, depth - 1) for item in tuple(value)]
        return value

    def _key(self, key: object) -> object:
        if not isinstance(key, (str, int)):
            raise ValueError(f"holds something under a {_kind(key)}, where a name should be")
        if isinstance(key, str) and _CONTROL.search(key):
            raise ValueError(f"has a name with line breaks or control characters in it ('{key[:20]}...')")
        if isinstance(key, str) and len(key) > MAX_KEY:
            raise ValueError(f"has a name of {len(key):,} characters ('{key[:20]}...'); {MAX_KEY} are enough")
        return key

    def _tensor(self, value: torch.Tensor) -> torch.Tensor:
        reason = unusual(value, whole=True)
        if reason:
            raise ValueError(f"holds a tensor that is {reason}")
        if math.prod(value.shape) * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError("holds a tensor that repeats its numbers")
        return value.detach()


def _kind(value: object) -> str:
    names = {
        dict: "dictionary",
        list: "list",
        tuple: "list",
        str: "text",
        torch.Tensor: "tensor",
        type(None): "nothing",
    }
    return names.get(type(value), type(value).__name__)
