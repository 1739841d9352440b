"""GLIDE (Nichol et al. 2021, arXiv 2112.10741; openai/glide-text2im): text to 64 pixels, to 256, inpainting.

Pure PyTorch. The four networks (base, upsample, base-inpaint, upsample-inpaint) are told apart by their weights.

    model = load("base.pt")
    tokens, mask = tokenize(["a red cube"], model.config.text_ctx)
    schedule = diffusion.Schedule(model.config.noise_schedule, "100")
    fn = lambda x, t: model(x, t, tokens, mask)  # two of them and diffusion.guide make classifier-free guidance
    x = diffusion.p_sample(fn, x, i, schedule, noise)["sample"]  # for i from 99 to 0
"""

from . import diffusion
from .checkpoint import load, save
from .config import Config
from .model import GlideModel, quantise
from .tokenizer import tokenize

__all__ = ["Config", "GlideModel", "diffusion", "load", "quantise", "save", "tokenize"]
