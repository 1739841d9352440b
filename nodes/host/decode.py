"""From the estimate in a model's own latent space to a picture, differentiably: decoders of very different cost.

`make_decoder(choice, model)` gives one; `decoder.models` have to be loaded while it works, and `decoder.decode(latent)`
is a picture [B, 3, H, W] in 0..1 (float32; neither clamped nor rounded, which would cut the gradient). Weights from
ComfyUI's loaders cannot be differentiated through as they are: a gradient needs
`gradient.differentiable_weights(decoder.models)` around it.
"""

import copy

import comfy.latent_formats
import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher

from ...guidance.crops import Box, cut
from ...weight_files import read_tensors
from .gradient import resident

VAE, VAE_CROP, TINY, LINEAR = "vae", "vae_crop", "taesd", "latent_rgb"
WAYS = (VAE, VAE_CROP, TINY, LINEAR)
_VIDEO_TINY = ("taehv", "lighttae", "taeltx")


class Decoder:
    """models: to be loaded while it works. scale: picture pixels along one latent cell. crops: it is made for decoding
    crops only.
    """

    models: tuple[ModelPatcher, ...] = ()
    scale: int = 1
    crops: bool = False

    def memory(self, shape: tuple[int, ...]) -> float:
        """Bytes that a decoding of [B, C, ..., h, w] cells keeps for its gradient."""
        return 0.0

    def decode(self, latent: torch.Tensor, box: Box | None = None) -> torch.Tensor:
        """Picture [B, 3, H, W] of a latent [B, C, (frames,) h, w] in the model's space, or of the square `box` of its
        cells.

        Of several frames the middle one, decoded by itself.
        """
        if latent.ndim == 5:
            latent = latent[:, :, latent.shape[2] // 2]
        return self._picture(latent if box is None else cut(latent, box)).float()

    def _picture(self, latent: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class PixelDecoder(Decoder):
    """A pixel-space model: the estimate is the picture, in -1..1."""

    def _picture(self, latent: torch.Tensor) -> torch.Tensor:
        return (latent + 1) / 2


class LinearDecoder(Decoder):
    """ComfyUI's linear map from latent channels to RGB, one pixel for a cell (Flux.2: 2 x 2)."""

    def __init__(self, latent_format: comfy.latent_formats.LatentFormat):
        bias = latent_format.latent_rgb_factors_bias
        with torch.inference_mode(False):  # autograd must be able to save them
            self.factors = torch.tensor(latent_format.latent_rgb_factors).T
            self.bias = None if bias is None else torch.tensor(bias)
        self.reshape = latent_format.latent_rgb_factors_reshape
        if self.reshape is not None:
            self.scale = self.reshape(torch.zeros(1, latent_format.latent_channels, 1, 1)).shape[-1]

    def _picture(self, latent: torch.Tensor) -> torch.Tensor:
        latent = latent if self.reshape is None else self.reshape(latent)
        bias = None if self.bias is None else self.bias.to(latent)
        rgb = torch.nn.functional.linear(latent.movedim(1, -1), self.factors.to(latent), bias).movedim(-1, 1)
        return (rgb + 1) / 2


class VaeDecoder(Decoder):
    """The network of a VAE. Never `VAE.decode`: it clamps in place, moves to another device, and tiles without a
    gradient.
    """

    def __init__(
        self,
        vae: comfy.sd.VAE,
        patcher: ModelPatcher,
        latent_format: comfy.latent_formats.LatentFormat | None,
        crops: bool,
    ):
        """`latent_format`: of the model, to leave its space; None for a network that takes the model's space itself."""
        self.models = (patcher,)
        self.format = None if latent_format is None else _outside_inference(latent_format)
        self.device, self.dtype = vae.device, vae.vae_dtype
        self.frames = vae.latent_dim == 3
        self.scale = vae.spacial_compression_decode()
        self.crops = crops
        # Most networks give -1..1 and some 0..1; the VAE's own conversion tells which, from what it makes of zero.
        self.middle = float(vae.process_output(torch.zeros(1)))
        self.forward_memory = vae.memory_used_decode

    def memory(self, shape: tuple[int, ...]) -> float:
        # What the KL autoencoder saves for its backward pass at 512 and 1024 pixels: 2.6 times what the host counts for
        # decoding alone.
        frame = (1,) if self.frames else ()
        return 2.6 * self.forward_memory((*shape[:2], *frame, *shape[-2:]), self.dtype)

    def _picture(self, latent: torch.Tensor) -> torch.Tensor:
        if self.format is not None:
            # Formats of video models hold their numbers in five dimensions.
            framed = latent.unsqueeze(2) if self.format.latent_dimensions == 3 else latent
            latent = self.format.process_out(framed)
            latent = latent.squeeze(2) if self.format.latent_dimensions == 3 else latent
        if self.frames:
            latent = latent.unsqueeze(2)
        picture = self.models[0].model.decode(latent.to(self.device, self.dtype)).to(latent.device)
        picture = picture[:, :, 0] if picture.ndim == 5 else picture
        return picture[:, :3].float() * (1 - self.middle) + self.middle


class TinyDecoder(Decoder):
    """TAESD and its kin for other model families, fed as ComfyUI's previews are: in the model's space."""

    def __init__(self, path: str, channels: int):
        from comfy.taesd.taesd import TAESD

        with torch.inference_mode(False):
            network = TAESD(None, path, latent_channels=channels).eval().requires_grad_(False)
        device = comfy.model_management.vae_device()
        self.models = (
            ModelPatcher(network, load_device=device, offload_device=comfy.model_management.vae_offload_device()),
        )
        self.device = device
        self.scale = 16 if channels == 128 else 8

    def memory(self, shape: tuple[int, ...]) -> float:
        return (
            140e3 * shape[0] * shape[-2] * shape[-1]
        )  # what it saves for its backward pass: 550 MiB in float32 at 512 pixels

    def _picture(self, latent: torch.Tensor) -> torch.Tensor:
        return (self.models[0].model.decode(latent.to(self.device, torch.float32)).to(latent.device) + 1) / 2


def make_decoder(choice: dict | None, model: ModelPatcher, gradient: bool = True) -> Decoder:
    """The decoder of a `decoder` widget, {"decoder": "vae", "vae": VAE} and so on, for the latents of `model`.

    A pixel-space model needs none and gets `PixelDecoder` whatever is chosen. `gradient`: it will be differentiated
    through. ValueError, in one sentence, when the VAE is for other latents, the family has no TAESD or no linear map,
    or its file is missing.
    """
    way = (choice or {}).get(
        "decoder"
    )  # ComfyUI drops an option that it does not know, and queues the prompt all the same
    if way not in WAYS:
        raise ValueError(f"There is no decoder '{way}': choose one of {', '.join(WAYS)}.")
    latent_format = model.model.latent_format
    if latent_format.latent_dimensions not in (2, 3) or latent_format.latent_channels < 3:
        raise ValueError(
            f"{type(latent_format).__name__} latents are not pictures, so nothing can look at them; use an image model."
        )
    if latent_format.latent_channels == 3 and latent_format.spacial_downscale_ratio == 1:
        return PixelDecoder()
    if way == LINEAR:
        if latent_format.latent_rgb_factors is None:
            raise ValueError(
                f"ComfyUI knows no linear preview for {type(latent_format).__name__} latents; choose vae, vae_crop or "
                f"taesd."
            )
        return LinearDecoder(latent_format)
    if way == TINY:
        return _tiny(latent_format)
    vae = choice.get("vae")
    if vae is None:
        raise ValueError(
            f"The decoder '{way}' needs a VAE: connect the one that belongs to the model, or choose taesd or "
            f"latent_rgb."
        )
    _refuse_other_latents(vae, latent_format)
    patcher = resident(vae.patcher, "VAE") if gradient else vae.patcher
    return VaeDecoder(vae, patcher, latent_format, crops=way == VAE_CROP)


def _refuse_other_latents(vae: comfy.sd.VAE, latent_format: comfy.latent_formats.LatentFormat) -> None:
    vae.throw_exception_if_invalid()
    given = vae.latent_channels, vae.spacial_compression_decode()
    wanted = latent_format.latent_channels, latent_format.spacial_downscale_ratio
    if given != wanted:
        raise ValueError(
            f"This VAE decodes latents of {given[0]} channels with {given[1]} pixels to a cell, and the model makes "
            f"latents of {wanted[0]} channels with {wanted[1]}; connect the VAE that belongs to the model."
        )


def _tiny(latent_format: comfy.latent_formats.LatentFormat) -> Decoder:
    name = latent_format.taesd_decoder_name
    if name is None:
        raise ValueError(
            f"There is no TAESD for {type(latent_format).__name__} latents; choose vae, vae_crop or latent_rgb."
        )
    file = next((f for f in folder_paths.get_filename_list("vae_approx") if f.startswith(name)), None)
    if file is None:
        raise ValueError(
            f"The decoder 'taesd' needs the file {name}.safetensors (or .pth) in models/vae_approx; put it there, "
            "or choose vae_crop or latent_rgb."
        )
    path = folder_paths.get_full_path_or_raise("vae_approx", file)
    read_tensors(path, whole=True)  # refuses in one sentence what ComfyUI's loader would fail on
    if not name.startswith(_VIDEO_TINY):
        return TinyDecoder(path, latent_format.latent_channels)
    with torch.inference_mode(False):
        vae = comfy.sd.VAE(comfy.utils.load_torch_file(path, safe_load=True))
    vae.first_stage_model.show_progress_bar = False
    # It was built from a file of ours, not by a loader that can read it again, but it is small: a plain patcher keeps
    # it whole.
    patcher = ModelPatcher(vae.first_stage_model, load_device=vae.device, offload_device=vae.patcher.offload_device)
    return VaeDecoder(vae, patcher, None, crops=False)


def _outside_inference(latent_format: comfy.latent_formats.LatentFormat) -> comfy.latent_formats.LatentFormat:
    """A copy whose numbers autograd may save: loaders run in inference mode, and so made inference tensors of them."""
    own = copy.copy(latent_format)
    with torch.inference_mode(False):
        for name, value in vars(latent_format).items():
            if isinstance(value, torch.Tensor):
                setattr(own, name, value.clone())
    return own
