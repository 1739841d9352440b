"""CLIP Scorer Loader: both towers of one CLIP, from one file or from what is already on the canvas."""

import logging
from pathlib import Path

import folder_paths

from ...weight_files.clip import MEAN, STD
from .._api import io
from ..host.node_text import show_on_node
from .clip_formats import as_open_clip, read_weights
from .clip_release import release
from .clip_text import tokenizer, tokenizer_folders
from .clip_towers import ComfyTowers
from .clip_weights import architecture, build, open_clip
from .objective import ScorerSocket
from .scorers import OpenCLIPScorer

CATEGORY = "Guidance Lab/CLIP"
FOLDERS = ("clip_vision", "text_encoders")
STATISTICS = {
    "openai": (MEAN, STD),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def scorer_files() -> list[str]:
    """Files that may be a CLIP with both towers: those of models/clip_vision, then those of models/text_encoders."""
    return list(dict.fromkeys(name for folder in FOLDERS for name in folder_paths.get_filename_list(folder)))


def scorer_file(name: str) -> Path:
    """The path of a file that `scorer_files` lists. ValueError when it is not there (any more)."""
    for folder in FOLDERS:
        path = folder_paths.get_full_path(folder, name)
        if path is not None:
            return Path(path)
    raise ValueError(
        f"There is no file '{name}' in models/clip_vision or models/text_encoders: put it there and refresh (press R)."
    )


def load_scorer(
    path: Path, activation: str = "auto", statistics: str = "auto", tokenizer_folder: str = "built in"
) -> tuple[OpenCLIPScorer, str]:
    """The scorer of an open_clip file, and what had to be assumed about it (empty when nothing).

    Raises ValueError, in one sentence, when the file is no CLIP with both towers or its tokenizer is missing.
    """
    weights = as_open_clip(read_weights(path))
    names = architecture({key: tuple(value.shape) for key, value in weights.items()})
    found = release(names, path, weights)
    quick_gelu = found.quick_gelu if activation == "auto" else activation == "quickgelu"
    mean, std = (found.mean, found.std) if statistics == "auto" else STATISTICS[statistics]
    config = open_clip().get_model_config(found.architecture)
    tokenize = tokenizer(config["text_cfg"], tokenizer_folder)  # before the weights: it may be missing
    module = build(found.architecture, weights, quick_gelu)
    side = module.visual.image_size
    scorer = OpenCLIPScorer(module, tokenize, mean, std, side if isinstance(side, int) else side[0], found.architecture)
    return scorer, found.doubt if "auto" in (activation, statistics) else ""


class CLIPScorerLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_CLIPScorerLoader",
            display_name="CLIP Scorer Loader",
            category=CATEGORY,
            description=(
                "Loads a CLIP that can compare a picture with a text: both towers from one open_clip file (ViT-B/32 to "
                "bigG, SigLIP, EVA02, MobileCLIP and more), or the CLIP and CLIP_VISION that you already have."
            ),
            search_aliases=[
                "CLIP score",
                "open_clip",
                "OpenCLIP",
                "SigLIP",
                "EVA02",
                "MobileCLIP",
                "CLIP loader",
                "image text similarity",
            ],
            inputs=[
                io.DynamicCombo.Input(
                    "source",
                    options=[
                        io.DynamicCombo.Option("file", _file_inputs()),
                        io.DynamicCombo.Option("comfyui", _comfyui_inputs()),
                    ],
                    tooltip="file: one file with both towers. comfyui: text encoder and CLIP vision model from the "
                    "canvas, when they are the two towers of one CLIP (ViT-L with a full clip_l file, bigG with "
                    "SDXL's, H with SD2's).",
                )
            ],
            outputs=[
                ScorerSocket.Output(
                    "scorer", tooltip="Both towers of the CLIP, for Objective: CLIP Text and Objective: CLIP Image."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, source: dict | None = None) -> io.NodeOutput:
        source = source or {}
        if source.get("source") == "comfyui":
            if source.get("clip") is None or source.get("clip_vision") is None:
                raise ValueError("CLIP Scorer Loader needs both a CLIP and a CLIP_VISION: one of them is empty.")
            return io.NodeOutput(ComfyTowers(source["clip"], source["clip_vision"]))
        if source.get("source") != "file":
            raise ValueError("CLIP Scorer Loader does not know this source: choose file or comfyui.")
        options = (
            source.get("activation", "auto"),
            source.get("pixel_statistics", "auto"),
            source.get("tokenizer", "built in"),
        )
        scorer, doubt = load_scorer(scorer_file(source["file"]), *options)
        message = scorer.name
        if doubt:
            message += f": took {doubt}; nothing in the file tells, so set it by hand if scores look wrong."
            logging.warning("Guidance Lab: CLIP Scorer Loader: %s", message)
        show_on_node(message, cls.hidden.unique_id)
        return io.NodeOutput(scorer)


def _file_inputs() -> list:
    return [
        io.Combo.Input(
            "file",
            options=scorer_files(),
            tooltip="A file with both towers in models/clip_vision or models/text_encoders: open_clip's .safetensors, "
            "or a CLIPModel of transformers. ViT-B/32 (0.6 GB) is quick, ViT-L/14 follows prompts better, at about 18 "
            "times the work for a look.",
        ),
        io.Combo.Input(
            "activation",
            options=["auto", "quickgelu", "gelu"],
            default="auto",
            tooltip="The CLIP's activation, which the weights cannot tell. auto knows it from open_clip_config.json "
            "beside the file, from the file's name, or from how OpenAI stores numbers, and says so when it has to "
            "assume. OpenAI, DFN, MetaCLIP: quickgelu.",
        ),
        io.Combo.Input(
            "pixel_statistics",
            options=["auto", *STATISTICS],
            default="auto",
            tooltip="Mean and deviation of the pixels that the CLIP was trained with. auto: as published for this file "
            "or architecture (SigLIP and PE: half, CLIPA: imagenet, MobileCLIP: none, others mostly openai).",
        ),
        io.Combo.Input(
            "tokenizer",
            options=["built in", *sorted(tokenizer_folders())],
            default="built in",
            tooltip="built in: CLIP's own, right for most. SigLIP, CLIPA and worldwide models need their own: a folder "
            "with its tokenizer.json in models/text_encoders. Nothing is downloaded.",
        ),
    ]


def _comfyui_inputs() -> list:
    return [
        io.Clip.Input(
            "clip",
            tooltip="A text encoder whose CLIP tower has its projection: SDXL's, SD2's, or a full clip_l file from "
            "Load CLIP. LoRAs and clip skip on it: LoRAs act, clip skip does not.",
        ),
        io.ClipVision.Input(
            "clip_vision", tooltip="The vision tower of the same CLIP, from Load CLIP Vision: ViT-L, ViT-H or bigG."
        ),
    ]


NODES = [CLIPScorerLoader]
