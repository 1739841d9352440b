"""The Shapes models as ComfyUI's own classes: AutoencoderKL, CLIPTextModel, and a UNetModel in the SD1.5 layout.

Small numbers, real structure: 16 cross-attention layers numbered as in SD1.5, eps-prediction on SD1.5's noise schedule,
an f8 VAE with 4 latent channels (16×16 latents), a causal text transformer with a start and an end token.
"""

from functools import cache
from pathlib import Path

import comfy.clip_model
import comfy.latent_formats
import comfy.model_base
import comfy.ops
import comfy.supported_models
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer, SDClipModel, SDTokenizer
from transformers import PreTrainedTokenizerFast

from .words import MAX_TOKENS, vocabulary
from .world import SIZE

FOLDER = Path(__file__).resolve().parent
WIDTH = 128  # of the text encoder, and so of every cross-attention context
LATENT = SIZE // 8  # cells, both sides
GROUPS = 8  # of every group normalization

VAE_CONFIG = {
    "embed_dim": 4,
    "ddconfig": {
        "double_z": True,
        "z_channels": 4,
        "resolution": SIZE,
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
    """The untrained VAE (1.0 M parameters): pictures [B, 3, 128, 128] in [-1, 1] ↔ latents [B, 4, 16, 16]."""
    return fewer_groups(AutoencoderKL(**VAE_CONFIG))


@cache
def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the Shapes vocabulary; any other word is `<unk>`."""
    return PreTrainedTokenizerFast.from_pretrained(str(FOLDER / "tokenizer"))


class _Layer(comfy.clip_model.CLIPLayer):
    """ComfyUI adds the residuals in place, which autograd cannot go back through; same numbers, out of place."""

    def forward(self, x, mask=None, optimized_attention=None):
        x = x + self.self_attn(self.layer_norm1(x), mask, optimized_attention)
        return x + self.mlp(self.layer_norm2(x))


class TextTransformer(comfy.clip_model.CLIPTextModel):
    """ComfyUI's CLIP text model with our small vocabulary (the host class fixes 49,408 rows)."""

    def __init__(self, config, dtype, device, operations):
        super().__init__(config, dtype, device, operations)
        width = config["hidden_size"]
        self.text_model.embeddings.token_embedding = operations.Embedding(
            config["vocab_size"], width, dtype=dtype, device=device
        )
        self.text_model.encoder.layers = torch.nn.ModuleList(
            _Layer(
                width,
                config["num_attention_heads"],
                config["intermediate_size"],
                config["hidden_act"],
                dtype,
                device,
                operations,
            )
            for _ in range(config["num_hidden_layers"])
        )


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


class _ClipModel(SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options=None):
        config = text_config()
        end = config["eos_token_id"]
        super().__init__(
            device=device,
            dtype=dtype,
            model_options=model_options or {},
            max_length=MAX_TOKENS,
            textmodel_json_config=config,
            model_class=TextTransformer,
            special_tokens={"start": vocabulary()["<start>"], "end": end, "pad": end},
        )


class ShapesClipModel(SD1ClipModel):
    """What `comfy.sd.CLIP` holds for Shapes: one tower, named clip_l as in SD1.5 so that `embedding:` files need no new
    key.
    """

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(device=device, dtype=dtype, model_options=model_options or {}, clip_model=_ClipModel)


class _WordTokenizer(SDTokenizer):
    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(
            tokenizer_path=str(FOLDER / "tokenizer"),
            tokenizer_class=PreTrainedTokenizerFast,
            max_length=MAX_TOKENS,
            embedding_directory=embedding_directory,
            embedding_size=WIDTH,
            tokenizer_data=tokenizer_data or {},
        )


class ShapesTokenizer(SD1Tokenizer):
    """What `comfy.sd.CLIP` tokenizes with: weights, `embedding:` and long prompts behave as everywhere in ComfyUI."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        super().__init__(
            embedding_directory=embedding_directory, tokenizer_data=tokenizer_data or {}, tokenizer=_WordTokenizer
        )


class ShapesLatent(comfy.latent_formats.SD15):
    """SD1.5's latent scale, which the VAE is exported to have; the linear preview that fits this VAE best (least
    squares, R² 0.92–0.95; `experiments/train/export.py` prints it).
    """

    def __init__(self, scale_factor=0.18215):
        super().__init__(scale_factor)
        self.latent_rgb_factors = [
            [0.1264, -0.1101, -0.0533], [-0.2464, -0.2089, -0.2119], [-0.0073, 0.1178, 0.2958], [-0.3687, -0.2042,
            -0.0592],
        ]  # fmt: skip
        self.latent_rgb_factors_bias = [0.2029, 0.1837, 0.1681]
        self.taesd_decoder_name = None  # SD1.5's would show noise


class ShapesConfig(comfy.supported_models.SD15):
    """SD1.5's layout and schedule at a width of our choosing."""

    latent_format = ShapesLatent
    unet_extra_config = {"num_heads": -1, "num_head_channels": 16}

    def get_model(self, *args, **kwargs) -> comfy.model_base.BaseModel:
        base = super().get_model(*args, **kwargs)
        fewer_groups(base.diffusion_model)
        return base


def unet_config(width: int, mult: tuple[int, ...]) -> dict:
    """ComfyUI UNet configuration: 2 residual blocks a level, cross-attention on the first three levels and in the
    middle (16 in all).
    """
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


def diffusion_model(config: dict, dtype: torch.dtype = torch.float32) -> comfy.model_base.BaseModel:
    """The untrained diffusion model (UNet + SD1.5 schedule) as ComfyUI's BaseModel."""
    host_config = ShapesConfig(config | {"dtype": dtype})
    host_config.custom_operations = comfy.ops.disable_weight_init
    return host_config.get_model({}, device="cpu")
