"""The shipped Shapes weights as ComfyUI objects: MODEL (the main model and its two guides), CLIP and VAE."""

import json
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch

from ..weight_files.clip import open_clip_text_names
from .captioner import captioner
from .clip import clip_model
from .models import VAE_CONFIG, ShapesClipModel, ShapesConfig, ShapesTokenizer, fewer_groups, unet_config

WEIGHTS = Path(__file__).resolve().parent / "weights"
MODELS = ("main", "early", "small")
# Network: its file.
GLIDE = {"base": "glide_inpaint", "inpaint": "glide_inpaint", "upsample": "glide_upsample"}
# Noise-aware CLIP: its file. The first reads the pictures of Shapes, 128 pixels, and comes with the pack once it is
# trained; the second those of Shapes GLIDE, 64 pixels.
NOISED_CLIPS = {"shapes": "noised_clip", "glide": "glide_noised_clip"}
GLIDE_INPUT = "input_blocks.0.0.weight"
GPT2_TOKENS = 50257
GLIDE_GROUP_CHANNELS = 4  # of `glide.config.Config`: 32 channels are too few for 32 groups


def weights_file(name: str) -> Path:
    """Where these weights lie. Raises FileNotFoundError when the pack is incomplete."""
    path = WEIGHTS / f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"Shapes weights {path.name} are missing from {path.parent}; reinstall the pack, it is incomplete."
        )
    return path


def _file(name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    sd, metadata = comfy.utils.load_torch_file(str(weights_file(name)), safe_load=True, return_metadata=True)
    return _from_8_bits(sd), metadata


def _from_8_bits(sd: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Undoes `in_8_bits` of `experiments/train/export.py`: int8 rows times their scale; everything else as it is."""
    scales = {key: sd.pop(key) for key in [key for key in sd if key.endswith(".scale")]}
    for key, scale in scales.items():
        rows = sd[key.removesuffix(".scale")]
        sd[key.removesuffix(".scale")] = rows.to(torch.float16) * scale.view(-1, *[1] * (rows.ndim - 1))
    return sd


def load_model(name: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """One of `MODELS` as a MODEL. `disable_dynamic` is what ComfyUI passes when it reloads a model into a module of its
    own.
    """
    if name not in MODELS:
        raise ValueError(f"Shapes has no model {name!r}; there is {', '.join(MODELS)}.")
    sd, metadata = _file(name)
    config = ShapesConfig(unet_config(**json.loads(metadata["unet"])))
    device = comfy.model_management.get_torch_device()
    dtype = comfy.model_management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(sd), supported_dtypes=config.supported_inference_dtypes
    )
    config.set_inference_dtype(
        dtype, comfy.model_management.unet_manual_cast(dtype, device, config.supported_inference_dtypes)
    )
    model = config.get_model(sd, "")
    patcher = comfy.model_patcher.ModelPatcher(
        model, load_device=device, offload_device=comfy.model_management.unet_offload_device()
    )
    model.load_model_weights(dict(sd), "")
    patcher.cached_patcher_init = (load_model, (name,))
    return patcher


class _Target:
    params: dict = {}
    clip = ShapesClipModel
    tokenizer = ShapesTokenizer


def load_clip(embedding_directory: list[str] | None = None) -> comfy.sd.CLIP:
    """The text encoder as a CLIP; `embedding:name` looks into `embedding_directory`."""
    sd, _ = _file("text")
    # The pooled output is the sentence in the space of the Shapes CLIP, as CLIPTextEncode's is for a whole CLIP.
    sd["text_projection.weight"] = _file("clip")[0]["text_projection"].T.contiguous()
    return comfy.sd.CLIP(
        _Target,
        embedding_directory=embedding_directory,
        parameters=comfy.utils.calculate_parameters(sd),
        state_dict=[sd],
    )


def load_clip_module() -> torch.nn.Module:
    """Both towers as an `open_clip.model.CLIP` in float32; `shapes.clip.tokens` tokenizes for it."""
    sd, _ = _file("clip")
    text, _ = _file("text")
    with torch.inference_mode(False):
        module = clip_model()
        module.load_state_dict(open_clip_text_names(text) | sd, strict=True)
    return module.requires_grad_(False).eval()


def has_noised_clip(name: str) -> bool:
    """Whether the noise-aware CLIP `name`, one of `NOISED_CLIPS`, comes with this version of the pack."""
    return (WEIGHTS / f"{NOISED_CLIPS[name]}.safetensors").is_file()


def noised_clip_files(name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The (image, text) state dicts of the noise-aware CLIP `name`, one of `NOISED_CLIPS`, under the names of GLIDE's
    files; `shapes.clip.tokens` tokenizes for both.
    """
    sd, _ = _file(NOISED_CLIPS[name])
    return tuple({k.removeprefix(p): v for k, v in sd.items() if k.startswith(p)} for p in ("image.", "text."))


def glide_weights(name: str) -> dict[str, torch.Tensor]:
    """The GLIDE network `name`, one of `GLIDE`, under the released names.

    Base is the inpainting network with nothing known: then the channels for what is known are zero, and so are left
    out of its first convolution. The file has the rows of the token embedding that Shapes uses; all other tokens of
    GPT-2 are zeros: a word that Shapes does not have is a word without meaning.
    """
    sd, _ = _file(GLIDE[name])
    if name == "base":
        sd[GLIDE_INPUT] = sd[GLIDE_INPUT][:, :3]
    tokens, rows = sd.pop("token_embedding.tokens"), sd["token_embedding.weight"]
    sd["token_embedding.weight"] = rows.new_zeros(GPT2_TOKENS, rows.shape[1])
    sd["token_embedding.weight"][tokens.long()] = rows
    return sd


def galip_weights() -> tuple[dict[str, torch.Tensor], tuple[int, ...]]:
    """State dict of the Shapes GALIP's generator and its block sizes, for `galip.load_generator`. The tower inside is
    the Shapes CLIP's.
    """
    sd, metadata = _file("galip")
    clip, _ = _file("clip")
    outside = (
        "visual.proj",
        "visual.ln_post.weight",
        "visual.ln_post.bias",
    )  # of the embedding, which the generator does not use
    inside = {
        key.replace("visual", "mapping.CLIP_ViT", 1): clip[key]
        for key in clip
        if key.startswith("visual.") and key not in outside
    }
    return sd | inside, tuple(int(size) for size in metadata["sizes"].split(","))


def load_captioner() -> torch.nn.Module:
    """The captioner as a `BlipForConditionalGeneration` in float32; `shapes.captioner.captioner_processor` belongs to
    it.
    """
    sd, _ = _file("captioner")
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        network = captioner()
        network.load_state_dict(sd, strict=True)
    return network.eval()


def load_vae() -> comfy.sd.VAE:
    """The autoencoder as a VAE."""
    sd, _ = _file("vae")
    vae = comfy.sd.VAE(sd=sd, config={"params": VAE_CONFIG})
    fewer_groups(vae.first_stage_model)
    return vae
