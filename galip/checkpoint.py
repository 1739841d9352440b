"""Reading GALIP generators from files of any official layout, safely, and writing them as safetensors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import torch

from ..weight_files import check_tensors, read_tree, save_tensors, tensors_of, unwrapped
from .dims import infer_dims
from .generator import Generator


def load_generator(
    source: str | os.PathLike | Mapping,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    sizes: tuple[int, ...] | None = None,
) -> Generator:
    """A generator in eval mode from a file (.safetensors, or a torch file read with weights_only) or a state dict.

    Layouts: {'model': {'netG': ...}}, {'netG': ...} or the bare generator, each with or without 'module.' before every
    key. All sizes come from the shapes, except the output sizes of the blocks: `sizes`, else the file's metadata, else
    the official ones. Raises ValueError with one sentence for anything that is not a whole, finite GALIP generator.
    """
    if isinstance(source, Mapping):
        name, tensors, metadata = "the state dict", source, {}
    else:
        name = f"'{os.path.basename(source)}'"
        tensors, metadata = read_tree(source)
    try:
        tensors = select_generator(tensors)
        if sizes is None and "sizes" in metadata:
            if not re.fullmatch(r"[0-9]{1,5}(,[0-9]{1,5}){0,31}", metadata["sizes"]):
                raise ValueError(
                    f"its metadata gives the sizes {metadata['sizes'][:60]!r}, expected numbers like 8,16,32"
                )
            sizes = tuple(int(size) for size in metadata["sizes"].split(","))
        dims = infer_dims(tensors, sizes)
        with torch.device("meta"):
            generator = Generator(dims)
        check_tensors(tensors, generator.state_dict(), "GALIP generator")
    except ValueError as error:
        raise ValueError(f"cannot load {name}: {error}") from error
    generator.load_state_dict(
        {key: tensor.to(device, dtype, copy=True) for key, tensor in tensors.items()}, assign=True
    )
    blocks: Any = generator.GBlocks  # torch's annotations do not know that `to` takes a memory format alone
    blocks.to(memory_format=torch.channels_last)
    return generator.eval()


def select_generator(content: object) -> dict[str, torch.Tensor]:
    """The generator's tensors out of any layout, without the 'module.' of data-parallel training."""
    try:
        return tensors_of(unwrapped(content, ("model", "netG")))
    except ValueError as error:
        raise ValueError(f"this is not a GALIP generator: it {error}") from None


def save_generator(
    generator: Generator,
    path: str | os.PathLike,
    dtype: torch.dtype = torch.float16,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the generator alone (no D, C or optimizers) as safetensors of `dtype`, with its sizes as metadata.

    Raises ValueError for a weight that `dtype` cannot hold, and where the file cannot be written.
    """
    tensors = {key: tensor.to(dtype).contiguous() for key, tensor in generator.state_dict().items()}
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"'{key}' does not fit {dtype}: save as float32 instead")
    dims = generator.dims
    sizes = {
        "architecture": "GALIP",
        "ngf": dims.ngf,
        "nz": dims.nz,
        "cond_dim": dims.cond_dim,
        "ch_size": dims.image_channels,
        "sizes": ",".join(map(str, dims.sizes)),
    }
    save_tensors(tensors, path, {**(metadata or {}), **{key: str(value) for key, value in sizes.items()}})
