"""Tiny random transformers of the families that ComfyUI builds beside those of `tiny_networks`: the bare networks, each
with a call that it accepts. Import after ComfyUI is on the path.
"""

import comfy.ldm.audio.dit
import comfy.ldm.genmo.joint_model.asymm_models_joint
import comfy.ldm.hidream_o1.model
import comfy.ldm.hunyuan3d.model
import comfy.ldm.hunyuan3dv2_1.hunyuandit
import comfy.ldm.hydit.models
import comfy.ldm.joyimage.model
import comfy.ldm.kandinsky5.model
import comfy.ldm.lens.model
import comfy.ldm.lightricks.av_model
import comfy.ldm.mage_flow.model
import comfy.ldm.minimax.model
import comfy.ldm.seedvr.model
import comfy.ldm.wan.model
import comfy.ldm.wan.model_animate
import comfy.ldm.wan.model_wandancer
import comfy.ops
import tiny_networks
import torch

ldm = comfy.ldm
WAN = {k: v for k, v in tiny_networks.WAN.items() if k not in ("image_model", "model_type")}
BUILT = dict(dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init)


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _picture(channels, frames=None):
    return _random(2, channels, *([] if frames is None else [frames]), 8, 6, seed=1)


def _text(width=24):
    return _random(2, 5, width, seed=2)


def _wan(cls, x_channels=16, **config):
    network = cls(**{**WAN, **config}, **BUILT)
    return network, dict(x=_picture(x_channels, 2), timestep=torch.full((2,), 600.0), context=_text())


def _vace():
    network, call = _wan(ldm.wan.model.VaceWanModel, vace_layers=2, vace_in_dim=8)
    return network, {**call, "vace_context": _random(2, 1, 8, 2, 8, 6, seed=3), "vace_strength": [1.0]}


def _camera():
    network, call = _wan(ldm.wan.model.CameraWanModel, x_channels=16, in_dim_control_adapter=24)
    return network, call


def _s2v():
    return _wan(ldm.wan.model.WanModel_S2V, audio_dim=16, audio_inject_layers=[0], enable_adain=False)


def _scail():
    return _wan(ldm.wan.model.SCAILWanModel, x_channels=16, in_dim=16)


def _mochi():
    network = ldm.genmo.joint_model.asymm_models_joint.AsymmDiTJoint(
        in_channels=4, hidden_size_x=1536, hidden_size_y=32, depth=4, num_heads=4, use_t5=True, t5_feat_dim=24,
        t5_token_length=5, learn_sigma=False, qk_norm=True, **BUILT,
    )  # fmt: skip
    mask = torch.ones(2, 5, dtype=torch.bool)
    call = dict(x=_picture(4, 2), timestep=torch.full((2,), 0.6), context=_text(), attention_mask=mask, num_tokens=5)
    return network, call


def _kandinsky():
    network = ldm.kandinsky5.model.Kandinsky5(
        in_visual_dim=16, out_visual_dim=16, in_text_dim=24, in_text_dim2=8, time_dim=32, model_dim=64, ff_dim=64,
        visual_embed_dim=64, num_text_blocks=1, num_visual_blocks=4, axes_dims=(4, 6, 6), **BUILT,
    )  # fmt: skip
    return network, dict(x=_picture(16, 2), timestep=torch.full((2,), 600.0), context=_text(), y=_random(2, 8))


def _hunyuan_dit():
    network = ldm.hydit.models.HunYuanDiT(
        hidden_size=64, depth=4, num_heads=4, text_states_dim=24, text_states_dim_t5=32, text_len=5, text_len_t5=5,
        **BUILT,
    )  # fmt: skip
    mask = torch.ones(2, 5)
    t5 = dict(encoder_hidden_states_t5=_text(32), text_embedding_mask_t5=mask)
    return network, dict(x=_picture(4), t=torch.full((2,), 600.0), context=_text(), text_embedding_mask=mask, **t5)


def _hunyuan_3d():
    network = ldm.hunyuan3d.model.Hunyuan3Dv2(
        in_channels=8, context_in_dim=24, hidden_size=64, num_heads=4, depth=3, depth_single_blocks=3, **BUILT
    )
    return network, dict(x=_random(2, 8, 12), timestep=torch.full((2,), 0.6), context=_text())


def _hunyuan_3d_21():
    network = ldm.hunyuan3dv2_1.hunyuandit.HunYuanDiTPlain(
        in_channels=8, hidden_size=64, context_dim=24, depth=5, num_heads=4, num_moe_layers=1, num_experts=2,
        guidance_cond_proj_dim=64, **BUILT,
    )  # fmt: skip
    return network, dict(x=_random(2, 8, 12), t=torch.full((2,), 0.6), context=_text())


def _mage_flow():
    network = ldm.mage_flow.model.MageFlowTransformer2DModel(
        in_channels=16, out_channels=16, num_layers=4, attention_head_dim=16, num_attention_heads=4,
        joint_attention_dim=24, axes_dims_rope=(4, 6, 6), **BUILT,
    )  # fmt: skip
    return network, dict(x=_picture(16), timestep=torch.full((2,), 0.6), context=_text())


def _joy():
    network = ldm.joyimage.model.JoyImageTransformer3DModel(
        in_channels=16, hidden_size=64, num_attention_heads=4, text_dim=24, num_layers=4, rope_dim_list=[4, 6, 6],
        mlp_width_ratio=2.0, **BUILT,
    )  # fmt: skip
    return network, dict(hidden_states=_picture(16, 1), timestep=torch.full((2,), 600.0), context=_text())


def _lens():
    network = ldm.lens.model.LensTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=4, attention_head_dim=16, num_attention_heads=4, enc_hidden_dim=24,
        axes_dims_rope=(4, 6, 6), multi_layer_encoder_feature=False, **BUILT,
    )  # fmt: skip
    return network, dict(x=_picture(16), timestep=torch.full((2,), 0.6), context=_text())


def _hidream_o1():
    text = dict(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, rope_dims=[4, 2, 2],
    )  # fmt: skip
    vision = dict(hidden_size=32, num_heads=2, depth=1, deepstack_visual_indexes=(), num_position_embeddings=16)
    network = ldm.hidream_o1.model.HiDreamO1Transformer(
        text_config_overrides=text, vision_config_overrides=vision, **BUILT
    )
    network.tms_token_id = 3
    call = dict(
        x=_random(2, 3, 64, 64, seed=1), timesteps=torch.full((2,), 600.0), ar_len=0,
        input_ids=torch.tensor([[1, 2, 3, 4, 5]] * 2), position_ids=torch.arange(9).expand(1, 3, 9).clone(),
    )  # fmt: skip
    return network, call


def _ltx_av():
    network = ldm.lightricks.av_model.LTXAVModel(
        in_channels=16, audio_in_channels=128, cross_attention_dim=64, audio_cross_attention_dim=64,
        attention_head_dim=16, audio_attention_head_dim=16, num_attention_heads=4, audio_num_attention_heads=4,
        caption_channels=24, num_layers=4, **BUILT,
    )  # fmt: skip
    call = dict(x=[_picture(16, 2), _random(2, 8, 4, 16, seed=4)], timestep=torch.full((2,), 0.6), context=_text(48))
    return network, {**call, "attention_mask": None}


def _stable_audio():
    network = ldm.audio.dit.AudioDiffusionTransformer(
        io_channels=64, embed_dim=64, cond_token_dim=24, global_cond_dim=32, depth=4, num_heads=2,
        project_cond_tokens=True, **BUILT,
    )  # fmt: skip
    call = dict(
        x=_random(2, 64, 16), timestep=torch.full((2,), 0.6), context=_text(), global_embed=_random(2, 32, seed=4)
    )
    return network, call


def _minimax():
    network = ldm.minimax.model.MiniMaxH3Model(
        hidden_size=64, num_layers=4, token_refiner_num_layers=1, num_attention_heads=4, attention_head_dim=16,
        ffn_hidden_size=96, latents_dim=24, audio_latents_dim=32, text_dim=24, timestep_input_dim=32,
        time_embed_hidden_size=64, time_embed_dim=32, rope_inv_freq_len=2, **BUILT,
    )  # fmt: skip
    network.requires_grad_(False)  # its position code refuses weights with gradients
    picture, sound = _random(1, 24, 2, 8, 6, seed=1), _random(1, 32, 2, 4, seed=4)
    return network, dict(x=[picture, sound], timestep=torch.full((1,), 600.0), context=_random(1, 5, 24, seed=2))


def _seedvr():
    network = ldm.seedvr.model.NaDiT(
        norm_eps=1e-5, num_layers=4, mlp_type="swiglu", vid_dim=64, txt_in_dim=24, heads=4, head_dim=16, mm_layers=2,
        expand_ratio=2, rope_dim=12, **BUILT,
    )  # fmt: skip
    low = dict(condition=_random(2, 17, 2, 8, 6, seed=5), context=_text())
    return network, dict(x=_picture(16, 2), timestep=torch.full((2,), 600.0), **low)


TRANSFORMERS = {
    "VaceWanModel": _vace, "CameraWanModel": _camera, "WanModel_S2V": _s2v, "SCAILWanModel": _scail,
    "HumoWanModel": lambda: _wan(ldm.wan.model.HumoWanModel),
    "AnimateWanModel": lambda: _wan(ldm.wan.model_animate.AnimateWanModel, num_layers=5),
    "WanDancerModel": lambda: _wan(ldm.wan.model_wandancer.WanDancerModel, audio_inject_layers=[0]),
    "AsymmDiTJoint": _mochi, "Kandinsky5": _kandinsky, "HunYuanDiT": _hunyuan_dit, "Hunyuan3Dv2": _hunyuan_3d,
    "HunYuanDiTPlain": _hunyuan_3d_21, "MageFlowTransformer2DModel": _mage_flow,
    "HiDreamO1Transformer": _hidream_o1, "LTXAVModel": _ltx_av,
    "JoyImageTransformer3DModel": _joy, "LensTransformer2DModel": _lens,
    "AudioDiffusionTransformer": _stable_audio, "MiniMaxH3Model": _minimax, "NaDiT": _seedvr,
}  # fmt: skip


def build(name: str):
    """(network with random weights, a call): `run(network, call, options)` gives its output."""
    with torch.inference_mode(False):
        network, call = TRANSFORMERS[name]()
        return tiny_networks.filled(network, 1), call


def run(network, call, options=None):
    with torch.inference_mode():
        arguments = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in call.items()}
        out = network(**arguments, transformer_options=dict(options or {}))
        return out[0] if isinstance(out, list) else out  # the picture of picture and sound
