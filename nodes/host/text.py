"""Text encoders in the middle of a sampling run."""

import comfy.sd
from comfy.model_patcher import ModelPatcher


def loaded_clip(clip: comfy.sd.CLIP, patcher: ModelPatcher) -> comfy.sd.CLIP:
    """A CLIP that works on `patcher`, which somebody else keeps loaded, and asks for no memory itself.

    `CLIP.load_model` makes room for its activations, in the worst case by unloading the diffusion model that is about to be used.
    """
    clone = clip.clone()
    clone.patcher = patcher
    clone.load_model = lambda tokens=None: patcher
    return clone
