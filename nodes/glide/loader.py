"""GLIDE Loader: one file → MODEL, CLIP and VAE."""

import comfy.model_management
import torch

from .._api import io
from ..host.folders import path_of
from .run_state import CATEGORY, SHIPPED

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FOLDER = "diffusion_models"


def precision_dtype(precision: str) -> torch.dtype:
    """The dtype of a choice of the node; auto is fp16 where ComfyUI thinks that it is fast, else fp32."""
    if precision == "auto":
        device = comfy.model_management.get_torch_device()
        return torch.float16 if comfy.model_management.should_use_fp16(device) else torch.float32
    return PRECISIONS[precision]


def load(path: str, dtype: torch.dtype) -> tuple:
    """(MODEL, CLIP, VAE) of a GLIDE file or of one of `SHIPPED`; ValueError, in one sentence, when it is none."""
    import comfy.sd

    from ...glide.checkpoint import text_tensors
    from .network import fingerprint, make_unet, read_network
    from .text import make_clip

    config, tensors = read_network(path)
    text = text_tensors(tensors)
    model = make_unet(config, tensors, path, dtype)
    clip = make_clip(config, text, fingerprint(config, text), dtype)
    return model, clip, comfy.sd.VAE({"pixel_space_vae": torch.tensor(1.0)})


class GLIDELoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        import folder_paths

        return io.Schema(
            node_id="GuidanceLab_GLIDELoader",
            display_name="GLIDE Loader",
            category=CATEGORY,
            description=(
                "Loads one of GLIDE's networks: text to 64×64 pixels, 64 to 256, or their inpainting variants. It "
                "knows which by the weights. OpenAI publishes them under the MIT licence; nothing is downloaded. "
                "Small ones that draw Shapes come with the pack."
            ),
            search_aliases=[
                "GLIDE",
                "glide-text2im",
                "base.pt",
                "upsample.pt",
                "base_inpaint.pt",
                "upsample_inpaint.pt",
                "pixel diffusion",
                "OpenAI diffusion",
            ],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[*folder_paths.get_filename_list(FOLDER), *SHIPPED],
                    tooltip="A file in models/diffusion_models: base.pt, upsample.pt, base_inpaint.pt or "
                    "upsample_inpaint.pt as published, or a .safetensors of the same names. Only plain tensors are "
                    "read; code in a file is never run. The Shapes networks know the words of Shapes alone, such as "
                    "'a red ball on white', read 32 tokens and enlarge 64 to 128 pixels.",
                ),
                io.Combo.Input(
                    "precision",
                    options=["auto", *PRECISIONS],
                    default="auto",
                    tooltip="How the weights are kept: auto is fp16 on a GPU that is fast with it, else fp32. fp16 "
                    "halves the memory and changes a prediction by about 0.25 %; norms, time embedding and last layer "
                    "stay fp32 as in the original.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The U-Net, 385 to 398 million weights with the text part, in pixel space. The clamp of "
                    "the original, and the known part in inpainting, are on it, so every sampler works."
                ),
                io.Clip.Output(
                    tooltip="The text transformer of this very file (77 million weights, 128 tokens), for CLIP Text "
                    "Encode. Each GLIDE network has its own, and refuses the text of another. Prompt weights such as "
                    "(word:1.3) have no effect."
                ),
                io.Vae.Output(
                    tooltip="Picture to latent and back: in pixel space only a change of range, 0..1 to -1..1, so "
                    "nothing is lost."
                ),
            ],
        )

    @classmethod
    def execute(cls, file: str, precision="auto") -> io.NodeOutput:
        path = file if file in SHIPPED else path_of(FOLDER, file)
        return io.NodeOutput(*load(path, precision_dtype(precision)))
