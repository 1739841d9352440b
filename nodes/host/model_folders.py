"""Networks that come as folders with a config.json, as timm and transformers save them.

Nothing is downloaded, no code and no pickle in them is run, and no file outside the folder is read.
"""

import json
import os
import re
from pathlib import Path

import folder_paths
import torch

from ...weight_files import read_tensors

_MAX_JSON = 16 * 2**20  # bytes; names of 21,000 classes take two million
_MAX_DEPTH = 12
# What a config.json can say to make transformers import code, fetch another model, or read other files.
_NEVER = {
    "auto_map", "custom_pipelines", "custom_generate", "quantization_config", "compression_config", "kernel_config",
    "fusion_config", "use_kernels", "transformers_weights", "gguf_file", "init_inputs", "use_pretrained_backbone",
    "use_timm_backbone", "backbone", "base_model_name_or_path",
}  # fmt: skip
# A network that a config.json asks for is built before its weights are looked at: one of a billion layers never ends.
_LARGEST = ((re.compile("layer|depth|block|stage|image_with"), 512), (re.compile("image_size|patch_size"), 4096),
            (re.compile("num_"), 2**16), (re.compile(""), 2**24))  # fmt: skip
_TIMM_TYPES = ("timm_wrapper", "timm_backbone")
_ATTENTIONS = ("eager", "sdpa")


def model_folders(kind: str) -> dict[str, Path]:
    """Name -> folder of everything with a config.json in models/`kind`, at most two levels down, extra_model_paths.yaml
    included.
    """
    folder_paths.add_model_folder_path(kind, os.path.join(folder_paths.models_dir, kind))
    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(kind)):
        for config in sorted([*root.glob("*/config.json"), *root.glob("*/*/config.json")]):
            found.setdefault(config.parent.relative_to(root).as_posix(), config.parent)
    return found


def chosen_folder(kind: str, name: str) -> Path:
    """The folder of that name. ValueError when it is not there (any more)."""
    path = model_folders(kind).get(name)
    if path is None:
        raise ValueError(
            f"There is no folder '{name}' with a config.json in models/{kind}: put it there, refresh (press R) and "
            f"choose it again."
        )
    return path


def read_json(path: Path) -> dict:
    """A JSON object. ValueError when the file is missing, larger than 16 MB, or is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= _MAX_JSON else None
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path.parent.name} has no readable {path.name}: download the whole folder again.")
    return content


def check_configs(folder: Path) -> None:
    """ValueError when a *config.json of the folder asks for code, for another model, or for a file outside."""
    for path in sorted(folder.glob("*config.json")):
        try:
            _check(read_json(path), folder, _MAX_DEPTH)
        except _NotAllowed as found:
            raise ValueError(f"{path.name} of {folder.name} {found}: use a folder without it.") from None


def check_sizes(folder: Path) -> None:
    """ValueError when the config.json of the folder asks for a network far larger than any that exists."""
    try:
        _check_sizes(read_json(folder / "config.json"), "", _MAX_DEPTH)
    except _NotAllowed as found:
        raise ValueError(f"config.json of {folder.name} {found}: download the whole folder again.") from None


def _check_sizes(value: object, key: str, depth: int) -> None:
    if depth < 0:
        raise _NotAllowed("is nested too deeply")
    if isinstance(value, (dict, list)):
        for name, item in value.items() if isinstance(value, dict) else ((key, item) for item in value):
            _check_sizes(item, name, depth - 1)
    elif type(value) is int:
        largest = next(limit for pattern, limit in _LARGEST if pattern.search(key))
        if abs(value) > largest:
            raise _NotAllowed(f"gives '{key[:60]}' as {str(value)[:30]}, and no network has more than {largest:,}")


class _NotAllowed(Exception):
    pass


def _check(value: object, folder: Path, depth: int) -> None:
    if depth < 0:
        raise _NotAllowed("is nested too deeply")
    for item in value if isinstance(value, list) else ():
        _check(item, folder, depth - 1)
    for key, item in value.items() if isinstance(value, dict) else ():
        if key in _NEVER and item not in (None, False, {}, []):
            raise _NotAllowed(f"has '{key}', which loads code or another model and is not allowed here")
        if key == "model_type" and item in _TIMM_TYPES:
            raise _NotAllowed(f"wraps a model of timm ('{item}'), which is only read as timm's own folder")
        if key.lstrip("_").startswith("attn_implementation") and isinstance(item, str) and item not in _ATTENTIONS:
            raise _NotAllowed(f"asks for the attention {item[:60]!r}, which may load code")
        if isinstance(item, str) and key.endswith(("_file", "_path", "_dir")) and _outside(item, folder):
            raise _NotAllowed(f"names a file outside the folder in '{key}'")
        _check(item, folder, depth - 1)


def _outside(name: str, folder: Path) -> bool:
    """Whether a file of that name would be read elsewhere. A path that leads nowhere (many files carry one of the
    computer that they were made on) is not.
    """
    if "://" in name or name.startswith(("\\\\", "//")):
        return True
    try:
        path = (folder / name).resolve()
        return path.exists() and not path.is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):
        return True


def weights_file(folder: Path) -> Path:
    """The .safetensors file of a folder, the first one where there are several. ValueError when it has none."""
    for name in ("model.safetensors", "*.safetensors"):
        for path in sorted(folder.glob(name)):
            return path
    raise ValueError(
        f"{folder.name} has no .safetensors weights, and pickled ones (.bin, .pt) are not read because they can run "
        f"code: download the safetensors version of the model."
    )


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a folder: its model.safetensors, else the parts that model.safetensors.index.json lists, else its
    only .safetensors file. ValueError when they are missing or damaged.
    """
    first = weights_file(folder)
    index = folder / "model.safetensors.index.json"
    if first.name == "model.safetensors" or not index.is_file():
        return read_tensors(first, whole=True).tensors
    listed = read_json(index).get("weight_map")
    names = set(map(str, listed.values())) if isinstance(listed, dict) else set()
    tensors = {}
    for name in sorted(names):
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise ValueError(f"{index.name} of {folder.name} names a file outside the folder: download it again.")
        tensors |= read_tensors(folder / name, whole=True).tensors
    return tensors
