"""Tiny random networks of many architectures, built from ComfyUI's own model classes. Import after ComfyUI is on the
path.

A few blocks of a few channels each, fp32: an evaluation takes milliseconds, so a test can try every block and every
method. The text width is 24 everywhere and the pooled text width 8 (1280 in SDXL).
"""

import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models
import torch

SD15 = dict(
    image_size=32, in_channels=4, out_channels=4, model_channels=32, channel_mult=[1, 2], num_res_blocks=[2, 2],
    context_dim=24,
    num_heads=4, transformer_depth=[1, 1, 1, 1], transformer_depth_output=[1] * 6, transformer_depth_middle=1,
    use_spatial_transformer=True,
    use_linear_in_transformer=False, legacy=False, adm_in_channels=None, use_temporal_attention=False,
)  # fmt: skip
SDXL = dict(
    image_size=32, in_channels=4, out_channels=4, model_channels=32, channel_mult=[1, 2], num_res_blocks=[2, 2],
    context_dim=24,
    num_heads=-1, num_head_channels=16, transformer_depth=[0, 0, 2, 2], transformer_depth_output=[0, 0, 0, 2, 2, 2],
    transformer_depth_middle=2, use_spatial_transformer=True, use_linear_in_transformer=True, legacy=False,
    num_classes="sequential",
    adm_in_channels=2816, use_temporal_attention=False,
)  # fmt: skip
PIXART = dict(
    image_model="pixart_alpha", input_size=32, patch_size=2, in_channels=4, hidden_size=96, depth=2, num_heads=4,
    caption_channels=24,
    pe_interpolation=1,
)  # fmt: skip
FLUX = dict(
    image_model="flux", in_channels=16, out_channels=16, patch_size=2, vec_in_dim=8, context_in_dim=24, hidden_size=64,
    mlp_ratio=2.0,
    num_heads=4, depth=4, depth_single_blocks=4, axes_dim=[4, 6, 6], theta=10000, qkv_bias=True, guidance_embed=True,
    txt_ids_dims=[],
)  # fmt: skip
CHROMA = dict(
    image_model="chroma", in_channels=64, out_channels=64, patch_size=2, context_in_dim=24, hidden_size=64,
    mlp_ratio=2.0,
    num_heads=4, depth=3, depth_single_blocks=3, axes_dim=[4, 6, 6], theta=10000, qkv_bias=True, in_dim=64, out_dim=64,
    hidden_dim=32, n_layers=2, txt_ids_dims=[], vec_in_dim=None,
)  # fmt: skip
SD3 = dict(
    in_channels=16, patch_size=2, depth=2, num_blocks=4, input_size=None, adm_in_channels=8, num_patches=64,
    pos_embed_max_size=8,
    pos_embed_scaling_factor=None, qkv_bias=True,
    context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 24, "out_features": 128}},
)  # fmt: skip
AURA = dict(in_channels=4, patch_size=2, cond_seq_dim=24, dim=64, n_heads=4, n_layers=6, n_double_layers=4, max_seq=64)
QWEN = dict(
    image_model="qwen_image", patch_size=2, in_channels=64, out_channels=16, num_layers=4, attention_head_dim=16,
    num_attention_heads=4,
    joint_attention_dim=24, pooled_projection_dim=8, axes_dims_rope=(4, 6, 6),
)  # fmt: skip
WAN = dict(
    image_model="wan2.1", model_type="t2v", patch_size=(1, 2, 2), text_len=8, in_dim=16, dim=96, ffn_dim=64,
    freq_dim=32, text_dim=24,
    out_dim=16, num_heads=4, num_layers=4, window_size=(-1, -1), qk_norm=True, cross_attn_norm=True, eps=1e-6,
)  # fmt: skip
HUNYUAN = dict(
    image_model="hunyuan_video", in_channels=16, out_channels=16, patch_size=[1, 2, 2], vec_in_dim=8,
    context_in_dim=24, hidden_size=64,
    mlp_ratio=2.0, num_heads=4, depth=4, depth_single_blocks=4, axes_dim=[4, 6, 6], theta=256, qkv_bias=True,
    guidance_embed=False,
    byt5=False, meanflow=False, use_cond_type_embedding=False, vision_in_dim=None, meanflow_sum=False,
)  # fmt: skip
LTXV = dict(
    image_model="ltxv", in_channels=128, cross_attention_dim=64, attention_head_dim=16, num_attention_heads=4,
    caption_channels=24,
    num_layers=4,
)  # fmt: skip
LUMINA = dict(
    image_model="lumina2", patch_size=2, in_channels=16, dim=64, n_layers=4, n_refiner_layers=1, n_heads=4,
    n_kv_heads=4, qk_norm=True, cap_feat_dim=24, axes_dims=[4, 6, 6], axes_lens=[300, 64, 64], multiple_of=32,
    ffn_dim_multiplier=2.0,
)  # fmt: skip
ZIMAGE = {
    **LUMINA,
    "dim": 256,
    "n_heads": 16,
    "n_kv_heads": 16,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 16,
}
CONFIGS = {
    "SD15": SD15, "SDXL": SDXL, "PixArtAlpha": PIXART, "Flux": FLUX, "Chroma": CHROMA, "SD3": SD3, "AuraFlow": AURA,
    "QwenImage": QWEN,
    "WAN21_T2V": WAN, "HunyuanVideo": HUNYUAN, "LTXV": LTXV, "Lumina2": LUMINA, "ZImage": ZIMAGE,
}  # fmt: skip


def build(name: str, seed: int = 0, config: dict | None = None):
    """A MODEL of the ComfyUI architecture `name`, a few blocks small, with random fp32 weights."""
    supported = getattr(comfy.supported_models, name)({**(config or CONFIGS[name]), "dtype": torch.float32})
    return fill(supported.get_model({}, ""), seed)


def fill(model, seed: int = 0):
    """A MODEL around ComfyUI's BaseModel, its network filled with random weights."""
    filled(model.diffusion_model, seed)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


def filled(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The network, its parameters and buffers filled with random numbers."""
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in network.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4.0
        gain = (
            3.0 if "to_q" in key or "to_k" in key else 1.0
        )  # attention maps far from uniform, as in a trained network
        parameter.data = gain * torch.randn(parameter.shape, generator=generator) / fan_in**0.5
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.data = torch.randn(buffer.shape, generator=generator)
    return network


def positive(seed: int = 0, name: str = "SD15", tokens: int = 5):
    """CONDITIONING for a network of this file: `tokens` text tokens of width 24 and a pooled text."""
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(1, 1280 if name == "SDXL" else 8, generator=generator)
    extra = {"attention_mask": torch.ones(1, tokens)} if name == "LTXV" else {}
    return [[torch.randn(1, tokens, 24, generator=generator), {"pooled_output": pooled, **extra}]]


def noisy(model, batch: int = 2, height: int = 8, width: int = 6, seed: int = 0) -> torch.Tensor:
    """A random latent of the shape that the model's latent format asks for: (batch, channels[, 1 frame], height,
    width).
    """
    latent_format = model.model.latent_format
    frame = (1,) if latent_format.latent_dimensions == 3 else ()
    return torch.randn(
        batch, latent_format.latent_channels, *frame, height, width, generator=torch.Generator().manual_seed(seed)
    )


def predict(model, x: torch.Tensor, sigma: float, conditioning) -> torch.Tensor:
    """The MODEL's denoised prediction for exactly this x and sigma, out of the middle of a real sampling run at cfg
    1.
    """
    seen = []

    def one_evaluation(wrapped, noise, sigmas, extra_args, callback, disable):
        seen.append(wrapped(x, sigmas[0] * x.new_ones([x.shape[0]]), **extra_args))
        return seen[0]

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning, conditioning)
    guider.set_cfg(1.0)
    with torch.inference_mode():
        sampler = comfy.samplers.KSAMPLER(one_evaluation)
        guider.sample(
            torch.zeros_like(x), torch.zeros_like(x), sampler, torch.tensor([sigma, sigma / 2]), disable_pbar=True
        )
    return seen[0]
