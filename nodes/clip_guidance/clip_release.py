"""What equal shapes cannot tell about a CLIP file: its activation, the pixel statistics it was trained with, its exact
architecture.

open_clip records them for every file it publishes ("pretrained tags"). A file is taken for one of them by its name or
its folder's name.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from ..host.model_folders import read_json
from ..host.networks import checked_statistics
from .clip_weights import open_clip


class Release(NamedTuple):
    """What has to be known beside the weights. `doubt`: what was assumed without evidence, for the user to read; empty
    if nothing was.
    """

    architecture: str
    quick_gelu: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    doubt: str


def release(names: list[str], path: Path, weights: Mapping[str, torch.Tensor]) -> Release:
    """The first rule that gives an answer decides, for the activation and for the statistics:

    1. open_clip_config.json beside the file; 2. a published file whose name is in the file's or folder's name; 3. all
    published files of the architecture agree; 4. (activation) weights in fp16 with LayerNorms in fp32, or OpenAI's
    three counters: OpenAI, QuickGELU;
    5. GELU and the statistics of most published files, with a `doubt`.
    """
    hint = _letters(f"{path.parent.name}/{path.stem}")
    name = max(names, key=lambda each: (_letters(each) in hint, len(each) if _letters(each) in hint else 0))
    published = _published(name)
    beside = _config_beside(path)
    named = _named(hint, published)
    doubts = []

    activations = {bool(entry.get("quick_gelu")) for entry in published.values()}
    if "quick_gelu" in beside:
        quick_gelu = beside["quick_gelu"]
    elif named is not None:
        quick_gelu = bool(named.get("quick_gelu"))
    elif len(activations) < 2:
        quick_gelu = activations == {True}
    elif _from_openai(weights):
        quick_gelu = True
    else:
        quick_gelu = False
        doubts.append("its activation as GELU (QuickGELU exists too: OpenAI's, DFN's and MetaCLIP's files need it)")

    statistics = [(tuple(entry["mean"]), tuple(entry["std"])) for entry in published.values()]
    if "mean" in beside:
        mean, std = beside["mean"], beside["std"]
    elif named is not None:
        mean, std = named["mean"], named["std"]
    else:
        openai = (open_clip().OPENAI_DATASET_MEAN, open_clip().OPENAI_DATASET_STD)
        mean, std = max(statistics or [openai], key=statistics.count)
        if len(set(statistics)) > 1:
            doubts.append("its pixel statistics as OpenAI's (one published file of this size has 0.5)")
    return Release(name, quick_gelu, tuple(mean), tuple(std), " and ".join(doubts))


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _published(name: str) -> dict[str, dict]:
    """open_clip's record of every published file of this architecture, by tag."""
    return open_clip().pretrained._PRETRAINED.get(name, {})


def _named(hint: str, published: dict[str, dict]) -> dict | None:
    """The record whose file, repository or tag is named in `hint`; the longest name wins, so that dfn2b_s39b is not
    dfn2b.
    """
    found = []
    for tag, entry in published.items():
        own = (tag, Path(entry.get("url", "")).stem, entry.get("hf_hub", "").strip("/").split("/")[-1])
        found += [(len(key), tag) for key in map(_letters, own) if len(key) >= 5 and key in hint]
    if not found and "openai" in published and re.search(r"clipvit(base|large)patch", hint):
        return published["openai"]  # as OpenAI's repositories are called
    return published[max(found)[1]] if found else None


def _config_beside(path: Path) -> dict:
    """`quick_gelu`, `mean`, `std` as open_clip_config.json in the same folder says; empty without one. Nothing else in
    it is used. ValueError when its numbers cannot be those of pictures.
    """
    if not (path.parent / "open_clip_config.json").is_file():
        return {}
    config = read_json(path.parent / "open_clip_config.json")
    sizes, pixels = config.get("model_cfg"), config.get("preprocess_cfg")
    known = {"quick_gelu": bool(sizes.get("quick_gelu"))} if isinstance(sizes, dict) else {}
    if isinstance(pixels, dict) and "mean" in pixels and "std" in pixels:
        mean, std = checked_statistics(pixels["mean"], pixels["std"], f"open_clip_config.json beside {path.name}")
        return {**known, "mean": mean, "std": std}
    return known


def _from_openai(weights: Mapping[str, torch.Tensor]) -> bool:
    norm, matrix = weights.get("ln_final.weight"), weights.get("visual.conv1.weight")
    mixed = norm is not None and matrix is not None and norm.dtype == torch.float32 and matrix.dtype == torch.float16
    return mixed or "input_resolution" in weights
