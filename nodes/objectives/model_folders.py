"""Networks that come as folders with a config.json, as timm and transformers save them.

Nothing is downloaded, and no code and no pickle in them is run.
"""

import json
import os
from pathlib import Path

import folder_paths


def model_folders(kind: str) -> dict[str, Path]:
    """Name -> folder of everything with a config.json in models/`kind`, at most two levels down, extra_model_paths.yaml included."""
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
            f"There is no folder '{name}' with a config.json in models/{kind}: put it there, refresh (press R) and choose it again."
        )
    return path


def read_json(path: Path) -> dict:
    """A JSON object. ValueError when the file is missing or is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path.parent.name} has no readable {path.name}: download the whole folder again.")
    return content


def weights_file(folder: Path) -> Path:
    """The .safetensors file of a folder. ValueError when it has none."""
    for name in ("model.safetensors", "*.safetensors"):
        for path in sorted(folder.glob(name)):
            return path
    raise ValueError(
        f"{folder.name} has no .safetensors weights, and pickled ones (.bin, .pt) are not read because they can run code: "
        "download the safetensors version of the model."
    )
