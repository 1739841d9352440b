"""GLIDE's U-Net as a model of ComfyUI's sampling. Imported when a model is loaded, and not before."""

import hashlib
from dataclasses import replace

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.ldm.modules.attention import optimized_attention

from ...glide.checkpoint import read, text_tensors, unet_tensors
from ...glide.config import Config
from ...glide.model import surroundings
from ...glide.unet import UNet
from ...shapes.shipped import GLIDE_GROUP_CHANNELS, glide_weights
from .limits import attach_limits
from .run_state import IMAGE, LOW_RES, MASK, SHIPPED, STATE, TEXT

# ComfyUI's beta schedules that equal GLIDE's to 3e-16; its "linear" is another one, the square of a line.
SAMPLING = {
    "squaredcos_cap_v2": {"beta_schedule": "cosine"},
    "linear": {"beta_schedule": "sqrt_linear", "linear_start": 1e-4, "linear_end": 0.02},
}
UNUSABLE = {"control": "a ControlNet", "gligen": "GLIGEN boxes", "reference_latents": "reference pictures"}


def host_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """ComfyUI's attention for q, k, v [B, heads, L, 64]."""
    heads = q.shape[1]
    return optimized_attention(q, k, v, heads, skip_reshape=True).unflatten(-1, (heads, -1)).transpose(1, 2)


class Network(UNet):
    """The U-Net with the arguments of ComfyUI's diffusion models. It gives the noise alone; the variance goes to
    whoever asks for it.
    """

    def __init__(self, config: Config, dtype=None, device=None, operations=None):
        super().__init__(config, dtype, device, operations, host_attention)
        self.dtype = dtype

    def forward(self, x, timesteps, context=None, y=None, control=None, transformer_options=None, **kwargs):
        noise, variance = super().forward(x, timesteps, y, context).chunk(2, dim=1)
        options = transformer_options or {}
        if options.get(STATE) is not None:
            options[STATE].keep(options["uuids"], variance)
        return noise


class Glide(comfy.model_base.BaseModel):
    """A GLIDE network in ComfyUI's sampling. `config`: its sizes; `fingerprint`: of its own text transformer."""

    def __init__(self, model_config, config: Config, fingerprint: str, device=None):
        super().__init__(model_config, comfy.model_base.ModelType.EPS, device=device, unet_model=Network)
        self.config, self.fingerprint = config, fingerprint

    def extra_conds(self, **kwargs) -> dict:
        check_text(kwargs.get(TEXT), self.fingerprint, self.config.variant)
        for key, what in UNUSABLE.items():
            if kwargs.get(key) is not None:
                raise ValueError(
                    f"The conditioning holds {what}, and GLIDE has no place for that; take the node that adds it out."
                )
        noise, text, device = kwargs["noise"], kwargs["cross_attn"], kwargs["device"]
        # Not CONDCrossAttn, which repeats texts to a common length: that would weigh them anew against the picture.
        out = {"c_crossattn": comfy.conds.CONDRegular(text), "y": comfy.conds.CONDRegular(kwargs["pooled_output"])}
        parts = [kwargs.get(key) for key in (LOW_RES, IMAGE, MASK)]
        parts = [None if part is None else comfy.utils.repeat_to_batch_size(part, len(noise)) for part in parts]
        stride = self.config.stride
        if noise.shape[-2] % stride or noise.shape[-1] % stride:
            raise ValueError(
                f"The latent is {noise.shape[-1]}x{noise.shape[-2]} pixels; this network needs multiples of {stride}."
            )
        try:
            around = surroundings(self.config, noise.to(device), *parts)
        except ValueError as error:
            node = "GLIDE Upsample" if "low-res" in str(error) else "GLIDE Inpaint"
            raise ValueError(f"GLIDE cannot sample: {error} (see {node}; the negative needs it as well).") from error
        if around is not None:
            out["c_concat"] = comfy.conds.CONDNoiseShape(around)
        return out


def check_text(given: str | None, wanted: str, variant: str) -> None:
    """ValueError when a conditioning is not of the text transformer of this very network: others have the same
    shapes.
    """
    if given is None:
        raise ValueError(
            "This conditioning is not GLIDE's: encode the text by CLIP Text Encode with the CLIP of the same "
            "GLIDE Loader as the model."
        )
    if given != wanted:
        raise ValueError(
            f"This conditioning is of the text transformer of another GLIDE network ({given.partition(':')[0]}), and "
            "each of them has its own: encode the text once more with the CLIP of the GLIDE Loader of this "
            f"{variant} model."
        )


def fingerprint(config: Config, text: dict[str, torch.Tensor]) -> str:
    """ "variant:hash" of a text transformer, the same for the file in float32 and in float16."""
    digest = hashlib.sha256()
    for key in ("padding_embedding", "final_ln.weight", "transformer_proj.weight"):
        digest.update(text[key].half().contiguous().cpu().numpy().tobytes())
    return f"{config.variant}:{digest.hexdigest()[:16]}"


def read_network(path: str) -> tuple[Config, dict[str, torch.Tensor]]:
    """(sizes, tensors) of a file, or of one of `SHIPPED` by its name in the list."""
    if path not in SHIPPED:
        return read(path)
    config, tensors = read(glide_weights(SHIPPED[path]))
    return replace(config, group_channels=GLIDE_GROUP_CHANNELS), tensors


def load_unet(path: str, dtype: torch.dtype, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The MODEL of a file, without any patch. Its arguments stay with it, so that ComfyUI can read it again."""
    config, tensors = read_network(path)
    return make_unet(config, tensors, path, dtype, disable_dynamic)


def make_unet(config: Config, tensors: dict, path: str | None, dtype: torch.dtype, disable_dynamic: bool = False):
    """The MODEL (ModelPatcher) of a network whose tensors are read already; `path` is the file, None if there is
    none.
    """
    device = comfy.model_management.get_torch_device()
    model_config = ModelConfig({"config": config}, SAMPLING[config.noise_schedule])
    manual_cast = comfy.model_management.unet_manual_cast(dtype, device, [dtype, torch.float32])
    model_config.set_inference_dtype(dtype, manual_cast, device=device)
    offload = comfy.model_management.unet_offload_device()
    model = Glide(model_config, config, fingerprint(config, text_tensors(tensors)))
    patchers = comfy.model_patcher  # the class is chosen when ComfyUI starts
    kind = patchers.ModelPatcher if disable_dynamic else patchers.CoreModelPatcher
    patcher = kind(model, load_device=device, offload_device=offload)
    if not comfy.model_management.is_device_cpu(offload):
        model.to(offload)
    dtypes = {key: value.dtype for key, value in model.diffusion_model.state_dict().items()}
    weights = {key: value.to(dtypes[key]) for key, value in unet_tensors(tensors).items()}
    model.load_model_weights(weights, "", assign=patcher.is_dynamic())
    if path is not None:
        patcher.cached_patcher_init = (load_unet, (path, dtype))
    attach_limits(patcher)
    return patcher


class ModelConfig(comfy.supported_models_base.BASE):
    """What ComfyUI's model classes ask of a family: dtypes, noise schedule, latents that are pictures in -1..1."""

    unet_extra_config = {}
    latent_format = comfy.latent_formats.ChromaRadiance
    memory_usage_factor = 1.0

    def __init__(self, unet_config: dict, sampling_settings: dict):
        super().__init__(unet_config)
        self.sampling_settings = dict(sampling_settings)
