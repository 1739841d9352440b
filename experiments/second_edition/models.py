"""The networks of Shapes, second edition: ComfyUI's VAE, UNet and CLIP classes at a small size, in the layout of SD1.5.

All 16 cross-attention layers are where SD1.5 has them and numbered as in SD1.5, eps-prediction on SD1.5's noise
schedule, an f8 VAE with 4 latent channels (16×16 latents), a causal text transformer with a start and an end token.
"""

import comfy.model_base
import comfy.ops
import comfy.supported_models
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL

from guidance_lab.shapes.models import TextTransformer

from .words import MAX_TOKENS, vocabulary

WIDTH = 128  # of the text encoder, and so of every cross-attention context
LATENT = 16  # cells, both sides
GROUPS = 8  # of every group normalization

VAE_CONFIG = {
    "embed_dim": 4,
    "ddconfig": {
        "double_z": True,
        "z_channels": 4,
        "resolution": 128,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 1, 2, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
}


def fewer_groups(module: torch.nn.Module) -> torch.nn.Module:
    """Sets every group normalization to `GROUPS` groups and returns the module.

    ComfyUI's classes fix 32: at 32 channels that normalizes each channel by itself, which wipes out its mean (and so
    flat colours), and leaves spots where a network smuggles it past (Karras et al., StyleGAN2, 1912.04958, section 2).
    """
    for part in module.modules():
        if isinstance(part, torch.nn.GroupNorm):
            part.num_groups = GROUPS
    return module


def autoencoder() -> AutoencoderKL:
    """The untrained VAE: pictures [B, 3, 128, 128] in [-1, 1] ↔ latents [B, 4, 16, 16]."""
    return fewer_groups(AutoencoderKL(**VAE_CONFIG))


def text_config() -> dict:
    """The text encoder's configuration in the form of ComfyUI's CLIP config files."""
    return {
        "vocab_size": len(vocabulary()),
        "eos_token_id": vocabulary()["<end>"],
        "hidden_size": WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "hidden_act": "quick_gelu",
        "max_position_embeddings": MAX_TOKENS,
    }


def text_encoder() -> TextTransformer:
    """The untrained text transformer in float32."""
    return TextTransformer(text_config(), torch.float32, "cpu", comfy.ops.disable_weight_init)


class ShapesConfig(comfy.supported_models.SD15):
    """SD1.5's layout and schedule at a width of our choosing."""

    unet_extra_config = {"num_heads": -1, "num_head_channels": 16}


def unet_config(width: int, mult: tuple[int, ...]) -> dict:
    """ComfyUI UNet configuration: 2 residual blocks a level, cross-attention on the first three levels and in the
    middle (16 in all)."""
    return {
        "image_size": LATENT,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": width,
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": list(mult),
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1,
        "context_dim": WIDTH,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
        "legacy": False,
        "dtype": torch.float32,
    }


def diffusion_model(config: dict) -> comfy.model_base.BaseModel:
    """The untrained diffusion model (UNet + SD1.5 schedule) as ComfyUI's BaseModel, in float32."""
    host_config = ShapesConfig(config)
    host_config.custom_operations = comfy.ops.disable_weight_init
    base = host_config.get_model({}, device="cpu")
    fewer_groups(base.diffusion_model)
    return base
