"""GLIDE Upsample: a small picture as what an upsampler enlarges."""

import comfy.model_management
import node_helpers
import torch

from ...glide.model import quantise
from .._api import io
from .run_state import CATEGORY, LOW_RES, TEMPERATURE


def to_range(image: torch.Tensor) -> torch.Tensor:
    """IMAGE [B, H, W, C] in 0..1 → [B, 3, H, W] in -1..1, without an alpha channel."""
    return image[..., :3].movedim(-1, 1).float() * 2 - 1


class GLIDEUpsample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_GLIDEUpsample",
            display_name="GLIDE Upsample",
            category=CATEGORY,
            description=(
                "Gives a picture of 64 pixels to GLIDE's upsampling network, which draws it again at 256: on a "
                "conditioning of that network's own text."
            ),
            search_aliases=["GLIDE", "upsampler", "super resolution", "64 to 256", "low_res", "upsample_temp"],
            inputs=[
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="The prompt, encoded with the CLIP of the upsampler's own GLIDE Loader; the same words as "
                    "for the base.",
                ),
                io.Image.Input(
                    "image",
                    tooltip="The picture to enlarge, 64×64 pixels from the base network. It is rounded to 8 bits, as "
                    "the network learned, and enlarged bilinearly.",
                ),
                io.Int.Input(
                    "width",
                    default=256,
                    min=32,
                    max=1024,
                    step=32,
                    tooltip="Width of the result in pixels; the network was trained for 256, four times the picture.",
                ),
                io.Int.Input(
                    "height",
                    default=256,
                    min=32,
                    max=1024,
                    step=32,
                    tooltip="Height of the result in pixels; the network was trained for 256.",
                ),
                io.Float.Input(
                    "temperature",
                    default=0.997,
                    min=0.9,
                    max=1.1,
                    step=0.001,
                    round=0.0001,
                    tooltip="GLIDE Sampler multiplies the first noise by it. 0.997 is the original's; a little less "
                    "gives smoother, more gives livelier pictures. Other samplers do not know it.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    tooltip="The conditioning with the picture. No CFG: use a BasicGuider, or KSampler with cfg 1 and "
                    "this on both inputs."
                ),
                io.Latent.Output(tooltip="An empty latent of the result's size, one for each picture of the batch."),
            ],
        )

    @classmethod
    def execute(cls, conditioning, image, width=256, height=256, temperature=0.997) -> io.NodeOutput:
        low_res = quantise(to_range(image))
        values = {LOW_RES: low_res, TEMPERATURE: temperature}
        device = comfy.model_management.intermediate_device()
        latent = {"samples": torch.zeros(len(low_res), 3, height, width, device=device)}
        return io.NodeOutput(node_helpers.conditioning_set_values(conditioning, values), latent)
