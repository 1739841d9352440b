"""What the tests of XTI training and files share: tiny text encoders of the host's own classes, and ways to train."""

import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import tiny_networks
import torch

from guidance_lab.nodes.layers.learned_tokens import vocabulary
from guidance_lab.nodes.layers.token_training import in_training
from guidance_lab.xti.layers import SD1_CONFIG

# All sixteen layers of SD1.5, a few channels each.
SIXTEEN = {
    **tiny_networks.SD15, "channel_mult": [1, 1, 1, 1], "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": SD1_CONFIG["transformer_depth"],
    "transformer_depth_output": SD1_CONFIG["transformer_depth_output"],
}  # fmt: skip
CAPTION = {"captions": "own lines", "lines": "a photo of a {} on a table"}
WITHOUT = {"regulariser": "none"}


def sixteen_layers(seed: int = 0):
    """A MODEL with SD1.5's sixteen cross-attention layers, text width 24."""
    return tiny_networks.build("SD15", seed, SIXTEEN)


def sdxl(seed: int = 0):
    """A small SDXL for `sdxl_clip`: its pooled text is 16 wide beside the six sizes of 256."""
    return tiny_networks.build("SDXL", seed, {**tiny_networks.SDXL, "adm_in_channels": 16 + 6 * 256})


def _clip(encoder, tokenizer, widths: dict[str, int], heads: int, seed: int) -> comfy.sd.CLIP:
    """A CLIP of ComfyUI's own classes, which add in place, with other sizes and random weights."""
    configs = {
        f"{name}_model_config": {
            "hidden_size": width,
            "num_hidden_layers": 3,
            "num_attention_heads": heads,
            "intermediate_size": 2 * width,
        }
        for name, width in widths.items()
    }

    class Target:
        params: dict = {}
        clip = encoder

    Target.tokenizer = tokenizer
    clip = comfy.sd.CLIP(Target, embedding_directory=None, model_options=configs)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in clip.cond_stage_model.named_parameters():
        value = (
            torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
            if parameter.ndim > 1
            else None
        )
        constant = 1.0 if name.endswith("weight") else 0.0
        parameter.data = (torch.full(parameter.shape, constant) if value is None else value).to(parameter)
    for name, width in widths.items():
        getattr(clip.tokenizer, name).embedding_size = width
    return clip


def sd1_clip(width: int = 24, heads: int = 4, seed: int = 0) -> comfy.sd.CLIP:
    """CLIP-L with its real tokenizer and vocabulary, three layers."""
    return _clip(comfy.sd1_clip.SD1ClipModel, comfy.sd1_clip.SD1Tokenizer, {"clip_l": width}, heads, seed)


def sdxl_clip(seed: int = 0) -> comfy.sd.CLIP:
    """CLIP-L of width 8 and CLIP-G of width 16: together the 24 of `tiny_networks.SDXL`."""
    return _clip(comfy.sdxl_clip.SDXLClipModel, comfy.sdxl_clip.SDXLTokenizer, {"clip_l": 8, "clip_g": 16}, 2, seed)


def latents(count: int = 3, size: int = 8, seed: int = 5) -> dict:
    """LATENT of random pictures."""
    return {"samples": torch.randn(count, 4, size, size, generator=torch.Generator().manual_seed(seed))}


def train(run_node, model, clip, **options):
    """(xti, plot) of a short run of XTI Train."""
    if "images" not in options:
        options.setdefault("latents", latents())
    given = dict(
        init_word="cat", steps=2, batch=3, pictures_at_once=3, preview_every=0, captions=CAPTION, regulariser=WITHOUT
    )
    return run_node("GuidanceLab_XTITrain", model=model, clip=clip, **{**given, **options})


def opened(model, clip, caption: str = "a photo of a {} on a table", vectors: int = 1):
    """`in_training` as the node enters it: from inference mode into autograd. Use with `outside_inference`."""
    return in_training(model, clip, [caption], vectors)


def outside_inference():
    """What the node runs training in, whatever the caller is in."""
    return torch.inference_mode(False)


def in_vocabulary(clip) -> dict[str, torch.Tensor]:
    """Word → its row of CLIP-L's table."""
    found = vocabulary(clip, "clip_l")
    return dict(zip(found.words, found.rows, strict=True))
