"""Configurations of families that ComfyUI builds beside those of the other tiny files, for docs/compatibility.md: a few
blocks of a few channels each. The text width is 24 where the network does not fix it.
"""

import comfy.supported_models
import tiny_networks
import torch

TMS_TOKEN_ID = 151673  # the token of HiDream-O1 that stands for the noise level
RADIANCE = {
    **tiny_networks.CHROMA, "image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3, "patch_size": 4,
    "nerf_hidden_size": 16, "nerf_mlp_ratio": 2, "nerf_depth": 2, "nerf_max_freqs": 4, "nerf_tile_size": 64,
    "nerf_final_head_type": "conv", "nerf_embedder_dtype": torch.float32, "use_x0": False,
    "use_sequential_txt_ids": False,
}  # fmt: skip
COSMOS1 = dict(
    image_model="cosmos", max_img_h=32, max_img_w=32, max_frames=8, in_channels=16, out_channels=16, patch_spatial=2,
    patch_temporal=1, model_channels=96, num_blocks=4, num_heads=4, crossattn_emb_channels=24, pos_emb_cls="rope3d",
    extra_per_block_abs_pos_emb=True, extra_per_block_abs_pos_emb_type="learnable", affline_emb_norm=True,
    use_adaln_lora=True, adaln_lora_dim=16, block_x_format="THWBD",
)  # fmt: skip
JOY = dict(
    image_model="joyimage", in_channels=16, hidden_size=64, num_attention_heads=4, text_dim=24, num_layers=4,
    rope_dim_list=[4, 6, 6], mlp_width_ratio=2.0,
)  # fmt: skip
HIDREAM = dict(
    image_model="hidream", patch_size=2, in_channels=16, out_channels=16, num_layers=2, num_single_layers=2,
    attention_head_dim=16, num_attention_heads=4, caption_channels=[24, 16], text_emb_dim=8, num_routed_experts=2,
    num_activated_experts=1, axes_dims_rope=(4, 6, 6), max_resolution=(32, 32), llama_layers=[0, 1, 2, 3],
)  # fmt: skip
OMNIGEN2 = dict(
    image_model="omnigen2", patch_size=2, in_channels=16, out_channels=16, hidden_size=64, num_layers=4,
    num_refiner_layers=1, num_attention_heads=4, num_kv_heads=2, multiple_of=16, axes_dim_rope=(4, 6, 6),
    axes_lens=(64, 64, 64), text_feat_dim=24,
)  # fmt: skip
BOOGU = dict(
    image_model="boogu", patch_size=2, in_channels=16, out_channels=16, hidden_size=64, num_layers=4,
    num_double_stream_layers=2, num_refiner_layers=1, num_attention_heads=4, num_kv_heads=2, multiple_of=16,
    axes_dim_rope=(4, 6, 6), axes_lens=(64, 64, 64), instruction_feat_dim=24,
)  # fmt: skip
IDEOGRAM = dict(
    image_model="ideogram4", in_channels=128, num_layers=4, num_attention_heads=4, attention_head_dim=16,
    intermediate_size=64, adaln_dim=32, llm_features_dim=24, mrope_section=(4, 2, 2),
)  # fmt: skip
KREA2 = dict(
    image_model="krea2", features=64, tdim=32, txtdim=24, heads=4, kvheads=2, multiplier=2, layers=4, patch=2,
    channels=16, txtlayers=2, txtheads=2, txtkvheads=2,
)  # fmt: skip
ERNIE = dict(
    image_model="ernie", hidden_size=64, num_attention_heads=4, num_layers=4, ffn_hidden_size=96, in_channels=128,
    out_channels=128, patch_size=1, text_in_dim=24, rope_axes_dim=(4, 6, 6),
)  # fmt: skip
COGVIDEO = dict(
    image_model="cogvideox", num_attention_heads=4, attention_head_dim=16, in_channels=16, out_channels=16,
    time_embed_dim=32, text_embed_dim=24, num_layers=4, sample_width=8, sample_height=8, sample_frames=1,
    max_text_seq_length=5, use_rotary_positional_embeddings=True,
)  # fmt: skip
HUNYUAN15 = {
    **tiny_networks.HUNYUAN, "in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1], "vec_in_dim": None,
}  # fmt: skip
LONGCAT = {**tiny_networks.FLUX, "vec_in_dim": None, "guidance_embed": False, "txt_ids_dims": [1, 2]}
ZIMAGE_PIXEL = {
    **tiny_networks.ZIMAGE, "image_model": "zimage_pixel", "in_channels": 3, "patch_size": 4, "decoder_hidden_size": 32,
    "decoder_num_res_blocks": 2, "decoder_max_freqs": 4, "decoder_in_channels": 48,
}  # fmt: skip
PIXELDIT = dict(
    image_model="pixeldit_t2i", in_channels=3, num_groups=4, hidden_size=64, pixel_hidden_size=8,
    pixel_attn_hidden_size=64, pixel_num_groups=4, patch_depth=4, pixel_depth=2, patch_size=4, txt_embed_dim=24,
    txt_max_length=5,
)  # fmt: skip
SCAIL = {**tiny_networks.WAN, "model_type": "scail", "in_dim": 20}
DANCER = {**tiny_networks.WAN, "model_type": "wandancer", "in_dim": 36, "audio_inject_layers": [0]}
HIDREAM_O1 = dict(
    image_model="hidream_o1",
    text_config_overrides=dict(
        vocab_size=151680, hidden_size=64, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, rope_dims=[4, 2, 2],
    ),
    vision_config_overrides=dict(
        hidden_size=32, num_heads=2, depth=1, deepstack_visual_indexes=(), num_position_embeddings=16
    ),
)  # fmt: skip


def build(name: str, seed: int, config: dict):
    """A MODEL of the family with exactly this configuration, also where ComfyUI fixes a part of it."""
    kind = getattr(comfy.supported_models, name)
    fixed = {key: config.get(key, value) for key, value in kind.unet_extra_config.items()}
    small = type(kind.__name__, (kind,), {"unet_extra_config": fixed})
    return tiny_networks.fill(small({**config, "dtype": torch.float32}).get_model({}, ""), seed)


def text(name: str, seed: int):
    """CONDITIONING as the family's text encoder gives it."""
    ((context, options),) = tiny_networks.positive(seed, name)
    generator = torch.Generator().manual_seed(seed + 100)
    if name in ("Omnigen2", "Boogu"):
        options = {**options, "attention_mask": torch.ones(1, 5, dtype=torch.bool)}
    if name == "HiDream":
        options = {**options, "conditioning_llama3": torch.randn(1, 4, 5, 16, generator=generator)}
    if name == "Krea2":
        context = torch.randn(1, 5, 48, generator=generator)
    if name == "HiDreamO1":  # its network embeds the tokens itself; the last one stands for the noise level
        words = torch.randint(0, 1000, (1, 7), generator=generator)
        options = {**options, "text_input_ids": torch.cat([words, torch.tensor([[TMS_TOKEN_ID]])], dim=1)}
    return [[context, options]]
