"""GLIDE Inpaint: a picture and a mask for the networks that were trained to fill holes."""

import comfy.model_management
import node_helpers
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .._api import io
from .run_state import CATEGORY, IMAGE, MASK
from .upsample import to_range


def resized(image: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """IMAGE at another size, bicubic with antialiasing as the original's pictures are; unchanged when it has the
    size.
    """
    if tuple(image.shape[1:3]) == (height, width):
        return image
    pictures = [Image.fromarray((frame[..., :3].cpu().numpy() * 255).round().astype(np.uint8)) for frame in image]
    frames = [np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)) for picture in pictures]
    return torch.from_numpy(np.stack(frames)).float() / 255


def holes(mask: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """What is to be filled, [B, 1, height, width] of 0 and 1, of a MASK [B, H, W] of any size. A pixel is to be filled
    when any part of it is painted (over 0.5); enlarging repeats pixels, so that a mask made at 64 pixels is the same
    region at 256."""
    painted = (mask.reshape(-1, 1, *mask.shape[-2:]) > 0.5).float()
    size = (min(height, painted.shape[-2]), min(width, painted.shape[-1]))
    return F.interpolate(F.adaptive_max_pool2d(painted, size), (height, width), mode="nearest")


class GLIDEInpaint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_GLIDEInpaint",
            display_name="GLIDE Inpaint",
            category=CATEGORY,
            description=(
                "Gives picture and mask to GLIDE's inpainting networks, which draw what the prompt says into the "
                "masked part and keep the rest. For iterative editing, feed each result in again."
            ),
            search_aliases=[
                "GLIDE",
                "inpainting",
                "fill",
                "text-guided editing",
                "iterative editing",
                "base_inpaint",
                "upsample_inpaint",
            ],
            inputs=[
                io.Conditioning.Input(
                    "positive", tooltip="The prompt of the whole picture, encoded with this network's own CLIP."
                ),
                io.Conditioning.Input(
                    "negative",
                    tooltip="An empty prompt of the same CLIP, for CFG (the original uses 5 at 64 pixels). For the "
                    "upsampler, the same as positive.",
                ),
                io.Image.Input(
                    "image", tooltip="The picture to change, of any size; it is brought to width and height, bicubic."
                ),
                io.Mask.Input(
                    "mask",
                    tooltip="1 where the picture is drawn anew, 0 where it is kept, of any size. A pixel of the result "
                    "is new when any part of it is painted.",
                ),
                io.Int.Input(
                    "width",
                    default=64,
                    min=8,
                    max=1024,
                    step=8,
                    tooltip="Width in pixels that this network works at: 64 for base_inpaint, 256 for "
                    "upsample_inpaint.",
                ),
                io.Int.Input(
                    "height",
                    default=64,
                    min=8,
                    max=1024,
                    step=8,
                    tooltip="Height in pixels that this network works at: 64 for base_inpaint, 256 for "
                    "upsample_inpaint.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with picture and mask."),
                io.Conditioning.Output(display_name="negative", tooltip="The empty prompt with picture and mask."),
                io.Latent.Output(
                    display_name="latent",
                    tooltip="An empty latent of this size: the known part is put back at each step.",
                ),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="The mask as it is used here, 1 = new; for the GLIDE Inpaint of the upsampler, so that "
                    "both fill the same part.",
                ),
            ],
        )

    @classmethod
    def execute(cls, positive, negative, image, mask, width=64, height=64) -> io.NodeOutput:
        fill = holes(mask, width, height)
        known = to_range(resized(image, width, height))
        if len(fill) not in (1, len(known)):
            raise ValueError(
                f"GLIDE Inpaint has {len(fill)} masks for {len(known)} pictures; give one mask, or one for each "
                "picture."
            )
        fill = fill.to(known)
        values = {IMAGE: known, MASK: 1 - fill}
        positive, negative = (node_helpers.conditioning_set_values(cond, values) for cond in (positive, negative))
        device = comfy.model_management.intermediate_device()
        latent = {"samples": torch.zeros(len(known), 3, height, width, device=device)}
        return io.NodeOutput(positive, negative, latent, fill[:, 0])
