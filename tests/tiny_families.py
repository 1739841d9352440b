"""The model families of docs/compatibility.md: for each a tiny random MODEL, a latent and a text that it takes. Import
after ComfyUI is on the path.
"""

import comfy.supported_models
import tiny_cross_attention
import tiny_joint
import tiny_networks
import tiny_newer_families as newer

WAN = tiny_networks.WAN
FLUX2 = {
    **tiny_networks.FLUX, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1,
    "vec_in_dim": None, "axes_dim": [4, 4, 4, 4], "qkv_bias": False, "global_modulation": True, "mlp_silu_act": True,
    "ops_bias": False,
}  # fmt: skip
HUNYUAN_IMAGE = {
    **tiny_networks.HUNYUAN, "in_channels": 64, "out_channels": 64, "patch_size": [1, 1], "vec_in_dim": None,
    "axes_dim": [8, 8],
}  # fmt: skip
LENS = dict(
    image_model="lens", in_channels=128, out_channels=32, num_layers=4, attention_head_dim=16, num_attention_heads=4,
    enc_hidden_dim=24, axes_dims_rope=(4, 6, 6), multi_layer_encoder_feature=False,
)  # fmt: skip
# ComfyUI's name of the family → the page's, and a configuration where `tiny_networks` has none.
_ALL = {
    "SD15": ("SD1.x, SD2.x", None), "SDXL": ("SDXL", None), "SD3": ("SD3", None), "Flux": ("Flux", None),
    "Flux2": ("Flux 2", FLUX2), "Chroma": ("Chroma", None), "AuraFlow": ("AuraFlow", None),
    "QwenImage": ("Qwen-Image", None), "MageFlow": ("Mage-Flow", tiny_joint.MAGE_FLOW), "Lens": ("Lens", LENS),
    "Lumina2": ("Lumina 2", None), "ZImage": ("Z-Image", None),
    "PixArtAlpha": ("PixArt", None), "HunyuanDiT": ("HunyuanDiT", None),
    "HunyuanImage21": ("HunyuanImage", HUNYUAN_IMAGE),
    "HunyuanVideo": ("HunyuanVideo", None), "Kandinsky5": ("Kandinsky 5", None),
    "CosmosT2IPredict2": ("Cosmos-Predict2", None), "Anima": ("Anima", None), "LTXV": ("LTXV", None),
    "WAN21_T2V": ("Wan", None),
    "WAN21_I2V": ("Wan, image to video", {**WAN, "model_type": "i2v", "in_dim": 36}),
    "WAN22_T2V": ("Wan 2.2, 5B", {**WAN, "in_dim": 48, "out_dim": 48}),
    "WAN21_Vace": ("Wan VACE", {**WAN, "model_type": "vace", "vace_layers": 2, "vace_in_dim": 96}),
    "WAN21_FunControl2V": ("Wan Fun Control", {**WAN, "model_type": "i2v", "in_dim": 48}),
    "WAN21_Camera": ("Wan Camera", {**WAN, "model_type": "camera", "in_dim": 32}),
    "WAN22_S2V": ("Wan S2V", {
        **WAN, "model_type": "s2v", "audio_dim": 16, "audio_inject_layers": [0], "enable_adain": False}),
    "WAN21_HuMo": ("Wan HuMo", {**WAN, "model_type": "humo"}),
    "WAN22_Animate": ("Wan Animate", {**WAN, "model_type": "animate", "in_dim": 36, "num_layers": 5}),
}  # fmt: skip
_NEWER = {
    "ChromaRadiance": ("Chroma Radiance", newer.RADIANCE), "LongCatImage": ("LongCat-Image", newer.LONGCAT),
    "ZImagePixelSpace": ("Z-Image, pixel space", newer.ZIMAGE_PIXEL), "HiDream": ("HiDream-I1", newer.HIDREAM),
    "HiDreamO1": ("HiDream-O1", newer.HIDREAM_O1), "JoyImage": ("JoyImage", newer.JOY),
    "Omnigen2": ("OmniGen 2", newer.OMNIGEN2), "Boogu": ("Boogu", newer.BOOGU),
    "Ideogram4": ("Ideogram 4", newer.IDEOGRAM), "Krea2": ("Krea 2", newer.KREA2),
    "ErnieImage": ("ERNIE-Image", newer.ERNIE), "PixelDiTT2I": ("PixelDiT", newer.PIXELDIT),
    "CosmosT2V": ("Cosmos 1", newer.COSMOS1), "CogVideoX_T2V": ("CogVideoX", newer.COGVIDEO),
    "HunyuanVideo15": ("HunyuanVideo 1.5", newer.HUNYUAN15), "WAN21_SCAIL": ("Wan SCAIL", newer.SCAIL),
    "WAN22_WanDancer": ("WanDancer", newer.DANCER),
}  # fmt: skip
_ALL |= _NEWER
_ALL = {name: entry for name, entry in _ALL.items() if hasattr(comfy.supported_models, name)}
FAMILIES = {name: title for name, (title, _) in _ALL.items()}
_CROSS_ATTENTION = {
    "HunyuanDiT": "HunyuanDiT",
    "Kandinsky5": "Kandinsky5",
    "CosmosT2IPredict2": "Cosmos",
    "Anima": "Anima",
    "LTXV": "LTXV",
}


def build(name: str, seed: int = 0):
    if name in _CROSS_ATTENTION:
        return tiny_cross_attention.build(_CROSS_ATTENTION[name], seed)
    if name in _NEWER:
        return newer.build(name, seed, _ALL[name][1])
    return tiny_networks.build(name, seed, _ALL[name][1])


def text(name: str, seed: int = 1):
    """CONDITIONING as the family's text encoder gives it, of random numbers."""
    if name in _CROSS_ATTENTION:
        return [tiny_cross_attention.prompt(_CROSS_ATTENTION[name], seed)]
    return newer.text(name, seed) if name in _NEWER else tiny_networks.positive(seed, name)


def with_vector_of(model, base, prompt, evaluate):
    """`evaluate(prompt)`, where a vector that HunyuanDiT makes of its second text, for all layers, is that of `base`,
    as the other families' pooled text is.
    """
    pooler = getattr(model.model.diffusion_model, "pooler", None)
    if pooler is None:
        return evaluate(prompt)
    seen = []
    handle = pooler.register_forward_hook(lambda module, given, out: seen.append(out.clone()))
    evaluate(base)
    handle.remove()
    handle = pooler.register_forward_hook(lambda module, given, out: seen[0])
    try:
        return evaluate(prompt)
    finally:
        handle.remove()


def noisy(name: str, model, sigma: float, side: int = 8):
    """A latent of `side` pixels at this noise level; PixArt's position code divides by zero on small ones, and the
    patches of HiDream-O1 are 32 pixels.
    """
    side *= {"PixArtAlpha": 5, "HiDreamO1": 8}.get(name, 1)
    return sigma * tiny_networks.noisy(model, 1, side, side)


def sigma_at(model, percent: float) -> float:
    return float(model.get_model_object("model_sampling").percent_to_sigma(percent))
