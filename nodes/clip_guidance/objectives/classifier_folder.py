"""Image classifiers of timm and of transformers, and WD taggers, from a folder on this computer."""

import csv
from pathlib import Path
from typing import NamedTuple

import torch

from ...host.model_folders import read_json
from ...host.networks import checked_statistics
from ...host.transformers_folders import read_network, short
from .timm_folder import read_timm

_MAX_TAGS = 2**24  # bytes; that of WD taggers has 300,000


class Classifier(NamedTuple):
    """network: normalized pixels [B, 3, side, side] -> logits [B, K]. names: K class names, or none. tags: several can
    be true at once.

    bgr: it wants blue first. fill: what it was padded to squares with, 0 black to 1 white.
    """

    network: torch.nn.Module
    names: list[str]
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tags: bool = False
    bgr: bool = False
    fill: float = 0.0


class Logits(torch.nn.Module):
    """A classifier whose call gives the logits themselves. (A module of transformers cannot be managed by ComfyUI
    without a wrapper: ComfyUI writes `device` on what it loads, and there it is a property.)
    """

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        out = self.network(pixels)
        return out if isinstance(out, torch.Tensor) else out.logits


def read_classifier(folder: Path) -> Classifier:
    """The classifier in a folder. ValueError, in one sentence, when it holds none, or its weights are missing or
    another model's.
    """
    config = read_json(folder / "config.json")
    return _of_timm(folder, config) if "architecture" in config else _of_transformers(folder, config)


def _of_timm(folder: Path, config: dict) -> Classifier:
    name, given = config["architecture"], config.get("pretrained_cfg")
    given = given if isinstance(given, dict) else {}
    count = config.get("num_classes", given.get("num_classes"))
    if count is not None and (type(count) is not int or not 1 <= count <= 1_000_000):
        raise ValueError(f"{folder.name} says that it has {short(count)[:40]} classes: download its config.json again.")
    network = read_timm(folder, name, config.get("model_args"), count)
    names, tags = _tags(folder), True
    if not names:
        names, tags = _timm_names(config, given, count, folder.name), False
    own = network.pretrained_cfg
    size = given.get("input_size", own.get("input_size", (3, 224, 224)))
    side = size[-1] if isinstance(size, (list, tuple)) and len(size) == 3 else None
    statistics = (given.get(key, own.get(key, (0.5,) * 3)) for key in ("mean", "std"))
    mean, std = checked_statistics(*statistics, folder.name)
    return Classifier(Logits(network), names, _checked_side(side, folder), mean, std, tags, tags, 1.0 if tags else 0.0)


def _checked_side(side, folder: Path) -> int:
    if type(side) is not int or not 1 <= side <= 4096:
        raise ValueError(
            f"{folder.name} says that its pictures are {short(side)[:40]} pixels wide; expected a number of 1 to 4096: "
            f"download its files again."
        )
    return side


def _tags(folder: Path) -> list[str]:
    """Names of a WD tagger (SmilingWolf), which also tells that pixels are blue first and padded with white; [] for
    other models.
    """
    path = folder / "selected_tags.csv"
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file)) if path.stat().st_size <= _MAX_TAGS else []
    except (OSError, ValueError, csv.Error):
        rows = []
    if not rows or not all(isinstance(row.get("name"), str) for row in rows):
        raise ValueError(f"selected_tags.csv of {folder.name} has no column 'name': download it again.")
    return [row["name"] for row in rows]


def _timm_names(config: dict, given: dict, count: int | None, folder: str) -> list[str]:
    """Class names from the folder, or those of the ImageNet version with that number of classes, which timm has."""
    names = config.get("label_names") or given.get("label_names")
    descriptions = config.get("label_descriptions") or {}
    if names:
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"The label_names of {folder} are no list of names: download its config.json again.")
        described = descriptions if isinstance(descriptions, dict) else {}
        return [" ".join(str(described.get(name, name)).split()) for name in names]
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count})
    return ImageNetInfo(subset).label_descriptions() if subset else []


def _of_transformers(folder: Path, config: dict) -> Classifier:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as known

    kinds = config.get("architectures")
    kind = kinds[0] if isinstance(kinds, list) and kinds else "?"
    if config.get("model_type") == "timm_wrapper" or kind == "TimmWrapperForImageClassification":
        raise ValueError(
            f"{folder.name} is a model of timm in the wrapper of transformers, which is not read: use the folder that "
            f"timm publishes, whose config.json says 'architecture'."
        )
    names = [one for entry in known.values() for one in ((entry,) if isinstance(entry, str) else entry)]
    if kind not in names:
        raise ValueError(
            f"{folder.name} is a {short(kind)[:60]}, not an image classifier: choose one whose config.json says "
            f"ForImageClassification."
        )
    network = read_network(folder, kind, "an image classifier")
    try:
        pixels = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        mean, std = (pixels.image_mean, pixels.image_std) if pixels.do_normalize else ((0.0,) * 3, (1.0,) * 3)
        labels = network.config.id2label
        names = [" ".join(str(labels[i]).split()) for i in range(len(labels))]
        side = _side(network, pixels)
    except Exception as error:  # whatever a damaged file makes of transformers
        raise ValueError(
            f"{folder.name} cannot be read as an image classifier ({short(error)}): download the whole folder again."
        ) from None
    if all(name == f"LABEL_{i}" for i, name in enumerate(names)):
        names = []  # what transformers writes when nobody named them
    mean, std = checked_statistics(mean, std, folder.name)
    tags = network.config.problem_type == "multi_label_classification"
    return Classifier(Logits(network), names, _checked_side(side, folder), mean, std, tags)


def _side(network: torch.nn.Module, pixels) -> int:
    own = getattr(network.config, "image_size", None)
    for size in (own, getattr(pixels, "crop_size", None), pixels.size):
        if isinstance(size, int):
            return size
        side = (size or {}).get("height") or (size or {}).get("shortest_edge")
        if side:
            return side
    return 224
