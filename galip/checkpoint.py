"""Reading GALIP generators from files of any official layout, safely, and writing them as safetensors."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .dims import infer_dims
from .generator import Generator


def load_generator(source: str | os.PathLike | Mapping, dtype: torch.dtype = torch.float32,
                   device: torch.device | str = "cpu", sizes: tuple[int, ...] | None = None) -> Generator:
    """A generator in eval mode from a file (.safetensors, or a torch file read with weights_only) or a state dict.

    Layouts: {'model': {'netG': ...}}, {'netG': ...} or the bare generator, each with or without 'module.' before every key.
    All sizes come from the shapes, except the output sizes of the blocks: `sizes`, else the file's metadata, else the
    official ones. Raises ValueError with one sentence for anything that is not a whole, finite GALIP generator.
    """
    name = "the state dict" if isinstance(source, Mapping) else f"'{os.path.basename(source)}'"
    tensors, metadata = (source, {}) if isinstance(source, Mapping) else read_file(source)
    try:
        tensors = select_generator(tensors)
        if sizes is None and "sizes" in metadata:
            if not re.fullmatch(r"\d+(,\d+)*", metadata["sizes"]):
                raise ValueError(f"its metadata gives the sizes '{metadata['sizes']}', expected numbers like 8,16,32")
            sizes = tuple(int(size) for size in metadata["sizes"].split(","))
        dims = infer_dims(tensors, sizes)
        with torch.device("meta"):
            generator = Generator(dims)
        check_tensors(tensors, generator.state_dict())
    except ValueError as error:
        raise ValueError(f"cannot load {name}: {error}") from error
    generator.load_state_dict({key: tensor.to(device, dtype, copy=True) for key, tensor in tensors.items()}, assign=True)
    generator.GBlocks.to(memory_format=torch.channels_last)
    return generator.eval()


def read_file(path: str | os.PathLike) -> tuple[Mapping, dict[str, str]]:
    """(whatever mapping the file holds, its safetensors metadata). Never runs code from the file."""
    name = os.path.basename(path)
    if not os.path.isfile(path):
        raise ValueError(f"there is no file '{name}' to load")
    if not name.endswith(".safetensors") and tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        raise ValueError(f"cannot read '{name}' safely with torch {torch.__version__} (CVE-2025-32434): "
                         "update torch to 2.6 or newer, or use a .safetensors file")
    try:
        if name.endswith(".safetensors"):
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # an untrusted file can fail in any way; the user needs one sentence
        raise ValueError(f"cannot read '{name}': it is damaged, or holds more than plain tensors (such files are never run); "
                         "download it again, or convert it to .safetensors where you trust it") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"cannot load '{name}': it holds a {type(content).__name__}, not a checkpoint dictionary")
    return content, {}


def select_generator(content: Mapping) -> dict[str, torch.Tensor]:
    """The generator's tensors out of any layout, without the 'module.' of data-parallel training."""
    for key in ("model", "netG"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
    if content and all(str(key).startswith("module.") for key in content):
        content = {key.removeprefix("module."): value for key, value in content.items()}
    for key, value in content.items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise ValueError(f"this is not a GALIP generator: '{key}' is not a floating point tensor")
    return dict(content)


def check_tensors(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError at the first difference in names or shapes, and at values that are not finite."""
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing:
        raise ValueError(f"{len(missing)} tensors of the generator are missing, first '{missing[0]}'; the file is incomplete")
    if unexpected:
        raise ValueError(f"{len(unexpected)} tensors do not belong to a GALIP generator, first '{unexpected[0]}'")
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            raise ValueError(f"'{key}' has shape {list(tensor.shape)}, but the other sizes of this generator "
                             f"ask for {list(expected[key].shape)}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"'{key}' contains values that are not finite (NaN or infinity); the checkpoint is broken")


def save_generator(generator: Generator, path: str | os.PathLike, dtype: torch.dtype = torch.float16,
                   metadata: Mapping[str, str] | None = None) -> None:
    """Write the generator alone (no D, C or optimisers) as safetensors of `dtype`, with its sizes as metadata.

    Raises ValueError for a weight that `dtype` cannot hold.
    """
    tensors = {key: tensor.to(dtype).contiguous() for key, tensor in generator.state_dict().items()}
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"'{key}' does not fit {dtype}: save as float32 instead")
    dims = generator.dims
    sizes = {"architecture": "GALIP", "ngf": dims.ngf, "nz": dims.nz, "cond_dim": dims.cond_dim,
             "ch_size": dims.image_channels, "sizes": ",".join(map(str, dims.sizes))}
    save_file(tensors, path, {**(metadata or {}), **{key: str(value) for key, value in sizes.items()}})
