"""Image classifiers of timm and of transformers, and WD taggers, from a folder on this computer."""

import csv
from pathlib import Path
from typing import NamedTuple

import torch

from .clip_formats import read_weights
from .model_folders import read_json, weights_file


class Classifier(NamedTuple):
    """network: normalised pixels [B, 3, side, side] -> logits [B, K]. names: K class names, or none. tags: several can be true at once.

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
    """A classifier whose call gives the logits themselves. (A module of transformers cannot be managed by ComfyUI without a wrapper:
    ComfyUI writes `device` on what it loads, and there it is a property.)"""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        out = self.network(pixels)
        return out if isinstance(out, torch.Tensor) else out.logits


def read_classifier(folder: Path) -> Classifier:
    """The classifier in a folder. ValueError, in one sentence, when it holds none, or its weights are missing or another model's."""
    config = read_json(folder / "config.json")
    return _of_timm(folder, config) if "architecture" in config else _of_transformers(folder, config)


def _of_timm(folder: Path, config: dict) -> Classifier:
    import timm  # slow, and not needed for the other kinds

    name, given = config["architecture"], config.get("pretrained_cfg", {})
    if not timm.is_model(name):
        raise ValueError(
            f"{folder.name} is a '{name}', which timm {timm.__version__} does not have: update timm, or use another classifier."
        )
    count = config.get("num_classes", given.get("num_classes"))
    weights = read_weights(weights_file(folder))
    try:
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            network = timm.create_model(name, pretrained=False, num_classes=count, **config.get("model_args", {}))
            network.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{folder.name}: the weights are not those of '{name}' ({_short(error)}): download the whole folder again."
        ) from None
    names, tags = _tags(folder), True
    if not names:
        names, tags = _timm_names(config, count), False
    size = given.get("input_size", network.pretrained_cfg.get("input_size", (3, 224, 224)))
    mean, std = (tuple(given.get(key, network.pretrained_cfg.get(key, (0.5,) * 3))) for key in ("mean", "std"))
    return Classifier(Logits(network), names, size[-1], mean, std, tags, bgr=tags, fill=1.0 if tags else 0.0)


def _tags(folder: Path) -> list[str]:
    """Names of a WD tagger (SmilingWolf), which also tells that pixels are blue first and padded with white; [] for other models."""
    path = folder / "selected_tags.csv"
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or "name" not in rows[0]:
        raise ValueError(f"selected_tags.csv of {folder.name} has no column 'name': download it again.")
    return [row["name"] for row in rows]


def _timm_names(config: dict, count: int) -> list[str]:
    """Class names from the folder, or those of the ImageNet version with that number of classes, which timm has."""
    names = config.get("label_names") or config.get("pretrained_cfg", {}).get("label_names")
    descriptions = config.get("label_descriptions") or {}
    if names:
        return [descriptions.get(name, name) for name in names]
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count})
    return ImageNetInfo(subset).label_descriptions() if subset else []


def _of_transformers(folder: Path, config: dict) -> Classifier:
    import transformers

    kinds = config.get("architectures") or ["?"]
    if not any("ForImageClassification" in kind for kind in kinds):
        raise ValueError(
            f"{folder.name} is a {kinds[0]}, not an image classifier: choose one whose config.json says ForImageClassification."
        )
    weights_file(folder)
    try:
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            network, report = transformers.AutoModelForImageClassification.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
            pixels = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a damaged file makes of transformers
        raise ValueError(
            f"{folder.name} cannot be read as an image classifier ({_short(error)}): download the whole folder again."
        ) from None
    if report["missing_keys"]:
        raise ValueError(
            f"{folder.name} lacks {len(report['missing_keys'])} weights such as {min(report['missing_keys'])}, so it is no trained "
            "classifier: use a model that was fine-tuned for classification."
        )
    labels = network.config.id2label
    names = [labels[i] for i in range(len(labels))]
    if all(name == f"LABEL_{i}" for i, name in enumerate(names)):
        names = []  # what transformers writes when nobody named them
    mean, std = (pixels.image_mean, pixels.image_std) if pixels.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    tags = network.config.problem_type == "multi_label_classification"
    return Classifier(Logits(network), names, _side(network, pixels), tuple(mean), tuple(std), tags)


def _side(network: torch.nn.Module, pixels) -> int:
    own = getattr(network.config, "image_size", None)
    for size in (own, getattr(pixels, "crop_size", None), pixels.size):
        if isinstance(size, int):
            return size
        side = (size or {}).get("height") or (size or {}).get("shortest_edge")
        if side:
            return side
    return 224


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
