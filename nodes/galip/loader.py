"""GALIP Loader and GALIP CLIP: the generator, and the text encoder that belongs to it."""

import comfy.model_management
import folder_paths
import torch

from ...galip import check_same_clip, load_generator
from ...weight_files import read_tensors
from .._api import io
from ..host.folders import files_in, path_of
from .model import CATEGORY, Galip, GalipSocket
from .text_tower import text_tower

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CLIP_FOLDERS = ("text_encoders", "clip_vision")


def precision_dtype(precision: str) -> torch.dtype:
    """The dtype of a choice of the node; auto is fp16 where ComfyUI thinks that it is fast, else fp32."""
    if precision == "auto":
        device = comfy.model_management.get_torch_device()
        return torch.float16 if comfy.model_management.should_use_fp16(device) else torch.float32
    return PRECISIONS[precision]


class GALIPLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_GALIPLoader",
            display_name="GALIP Loader",
            category=CATEGORY,
            description=(
                "Loads a GALIP generator, which draws a picture from a text in one pass. Official checkpoints draw "
                "224×224 pixels. "
                "Their weights are for academic research only, so ask their author before commercial use; nothing is "
                "downloaded."
            ),
            search_aliases=[
                "GALIP",
                "GAN",
                "one step",
                "one pass text to image",
                "pre_cc12m",
                "pre_coco",
                "generative adversarial CLIPs",
            ],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=files_in("galip"),
                    tooltip="A checkpoint in models/galip, such as pre_cc12m.pth or pre_coco.pth as published, a "
                    "training state, or what GALIP Save wrote. Only plain tensors are read; code in a file is never "
                    "run.",
                ),
                io.Combo.Input(
                    "precision",
                    options=["auto", *PRECISIONS],
                    default="auto",
                    tooltip="auto: fp16 on a GPU that is fast with it, else fp32, the exact pictures. bf16 takes about "
                    "half the time on newer CPUs and changes pixels by about 1 %.",
                ),
            ],
            outputs=[
                GalipSocket.Output(
                    display_name="galip", tooltip="The generator with its own CLIP image tower, 139 million weights."
                ),
            ],
        )

    @classmethod
    def execute(cls, file, precision="auto") -> io.NodeOutput:
        generator = load_generator(path_of("galip", file), dtype=precision_dtype(precision))
        return io.NodeOutput(Galip(generator, file))


class GALIPCLIP(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_GALIPCLIP",
            display_name="GALIP CLIP",
            category=CATEGORY,
            description=(
                "Loads the text encoder that a GALIP checkpoint was trained with, OpenAI's CLIP ViT-B/32 for the "
                "official ones, and checks that it is the right one. Use CLIP Text Encode after it."
            ),
            search_aliases=[
                "GALIP text encoder",
                "ViT-B/32",
                "clip-vit-base-patch32",
                "OpenAI CLIP",
                "ViT-B-32-quickgelu",
            ],
            inputs=[
                GalipSocket.Input(
                    "galip", tooltip="The generator. The image tower inside it shows whether the file is its CLIP."
                ),
                io.Combo.Input(
                    "file",
                    options=[
                        f"{folder}/{name}" for folder in CLIP_FOLDERS for name in folder_paths.get_filename_list(folder)
                    ],
                    tooltip="A whole CLIP, text and image tower, in models/text_encoders or models/clip_vision: "
                    "model.safetensors of openai/clip-vit-base-patch32, or the open_clip file of "
                    "timm/vit_base_patch32_clip_224.openai.",
                ),
            ],
            outputs=[
                io.Clip.Output(
                    tooltip="For CLIP Text Encode; its pooled output is what GALIP Sampler reads. Prompts are cut "
                    "after 75 tokens, and weights such as (word:1.3) have no effect."
                ),
            ],
        )

    @classmethod
    def execute(cls, galip, file) -> io.NodeOutput:
        folder, _, name = file.partition("/")
        tensors = read_tensors(path_of(folder, name), inside=("state_dict",), whole=True).tensors
        try:
            check_same_clip(tensors, galip.generator)
            clip = text_tower(tensors, folder_paths.get_folder_paths("embeddings"))
            width = clip.cond_stage_model.clip_l.transformer.text_projection.out_features
            if width != galip.dims.cond_dim:
                raise ValueError(
                    f"its sentence embedding has {width} values, but the generator takes {galip.dims.cond_dim}"
                )
        except ValueError as error:
            raise ValueError(f"Cannot use '{name}' with {galip.name}: {error}.") from error
        return io.NodeOutput(clip)
