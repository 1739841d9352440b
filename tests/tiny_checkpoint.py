"""Random SD1.5 checkpoints, small enough for a test and real enough for CheckpointLoaderSimple.

ComfyUI recognizes SD1.5 by 320 model channels, context width 768 and convolutional `proj_in`; depth is read from the
weights, so only the depth is shrunk. Import this after ComfyUI is on the path.
"""

import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

TINY1 = dict(channel_mult=[1], num_res_blocks=[1], transformer_depth=[1], transformer_depth_output=[1, 1])
# The block numbering of SD1.5: cross-attention in input 1,2,4,5,7,8, middle 0, output 3-11; 16 layers in all.
SD15_LAYOUT = dict(
    channel_mult=[1, 1, 1, 1],
    num_res_blocks=[2, 2, 2, 2],
    transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
    transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
)


def _fill(module: torch.nn.Module, prefix: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """fp16 weights for every name of a `meta` module: 1 for scales, 0 for biases, normal / sqrt(fan in) for the
    rest.
    """
    weights = {}
    for name, parameter in module.state_dict().items():
        if not parameter.is_floating_point():
            value = torch.arange(parameter.numel()).reshape(parameter.shape)
        elif parameter.ndim < 2:
            value = torch.full(parameter.shape, 1.0 if name.endswith("weight") else 0.0, dtype=torch.float16)
        else:
            fan_in = parameter[0].numel()
            value = (torch.randn(parameter.shape, generator=generator) / math.sqrt(fan_in)).half()
        weights[prefix + name] = value
    return weights


def unet_weights(layout: dict = TINY1, seed: int = 0) -> dict[str, torch.Tensor]:
    """State dict of an SD1.5-layout UNet under `model.diffusion_model.`"""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=320, transformer_depth_middle=1, context_dim=768,
        num_heads=8,
        use_spatial_transformer=True, legacy=False, device="meta", operations=comfy.ops.disable_weight_init, **layout,
    )  # fmt: skip
    return _fill(unet, "model.diffusion_model.", torch.Generator().manual_seed(seed))


def vae_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """State dict of a TAESD autoencoder (f8, 4 channels) under `first_stage_model.`"""
    import comfy.taesd.taesd

    with torch.device("meta"):
        vae = comfy.taesd.taesd.TAESD()
    weights = _fill(vae, "first_stage_model.", torch.Generator().manual_seed(seed))
    weights["first_stage_model.vae_scale"] = torch.tensor(1.0)
    weights["first_stage_model.vae_shift"] = torch.tensor(0.0)
    return weights


def clip_weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """State dict of a CLIP-L text encoder (its size cannot be chosen) under `cond_stage_model.transformer.`"""
    import comfy.clip_model
    import comfy.ops
    import comfy.sd1_clip

    config = json.loads((Path(comfy.sd1_clip.__file__).parent / "sd1_clip_config.json").read_text())
    clip = comfy.clip_model.CLIPTextModel(config, torch.float16, "meta", comfy.ops.disable_weight_init)
    return _fill(clip, "cond_stage_model.transformer.", torch.Generator().manual_seed(seed))


def write_checkpoint(path: Path, layout: dict = TINY1, seed: int = 0) -> Path:
    """A whole checkpoint (UNet + CLIP-L + TAESD, about 290 MB) that CheckpointLoaderSimple loads."""
    save_file({**unet_weights(layout, seed), **vae_weights(seed), **clip_weights(seed)}, path)
    return path


if __name__ == "__main__":
    from comfy.cli_args import args

    args.cpu = True
    write_checkpoint(Path(sys.argv[1]))
