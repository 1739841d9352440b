"""What XTI Train is given, checked: captions, pictures, the token to go on with; and the inputs that came later."""

import torch

from ...xti import XTI
from ...xti.captions import OBJECT, STYLE
from ...xti.layers import LayerTable
from ...xti.pictures import Pictures
from ...xti.rates import CONSTANT, SCHEDULES
from .._api import io
from .xti_photos import Photos
from .xti_socket import PhotosType

OWN_LINES = "own lines"
CAPTIONS = {"object": OBJECT, "style": STYLE}


def more_inputs() -> list[io.Input]:
    """The inputs that came after the first release, at the end, so that saved workflows keep their values."""
    return [
        PhotosType.Input(
            "photos", optional=True, tooltip="Photos of any size from XTI Photos, instead of images or latents."
        ),
        PhotosType.Input(
            "validation", optional=True, tooltip="Photos that are kept back: keep_best measures on them. Without them "
            "on the pictures to learn from.",
        ),
        io.Combo.Input(
            "schedule", options=list(SCHEDULES), default=CONSTANT, optional=True,
            tooltip="Learning rate over the steps: constant (the papers), cosine or linear down to 0.",
        ),
        io.Int.Input(
            "warm_up", default=0, min=0, max=100000, optional=True,
            tooltip="Steps in which the learning rate rises from 0; 0 = none, 10 to 50 typical.",
        ),
        io.Int.Input(
            "save_every", default=0, min=0, max=100000, optional=True,
            tooltip="Steps between checkpoints in output/xti, for XTI Loader; 0 = none.",
        ),
        io.Int.Input(
            "keep_best_every", default=0, min=0, max=100000, optional=True,
            tooltip="Steps between losses on noise that is always the same; the token of the lowest is the result. 0 = "
            "the token of the last step; 25 to 100 typical.",
        ),
        io.Boolean.Input(
            "gradient_checkpointing", default=False, optional=True,
            tooltip="Computes the U-net's blocks twice and keeps less: far less memory, about a third slower, the same "
            "result.",
        ),
        io.String.Input(
            "preview_prompt", default="", optional=True,
            tooltip="What previews draw, {} in the place of the token; empty = the first caption.",
        ),
        io.Float.Input(
            "preview_cfg", default=1.0, min=0.0, max=100.0, step=0.1, optional=True,
            tooltip="CFG of the previews: 1 = none, half the time; 5 to 8 as pictures are drawn later.",
        ),
    ]  # fmt: skip


def captioned(model, photos: Photos, common: list[str], known: tuple[str, ...] = ()) -> tuple[Pictures, list[str]]:
    """The photos in the model's scale, out of inference mode, and the captions that they number: `common`, then their
    own. known: own captions of other photos, already behind `common`.
    """
    own = list(dict.fromkeys([*known, *(caption for caption in photos.captions if caption is not None)]))
    numbers = [None if caption is None else len(common) + own.index(caption) for caption in photos.captions]
    checked = [checked_latents(model, latent[None], "the VAE made of the photos") for latent in photos.latents]
    latents = [model.model.process_latent_in(latent).clone()[0] for latent in checked]
    masks = [None if mask is None else mask.clone() for mask in photos.masks]
    return Pictures(latents, masks, numbers), [*common, *own]


def checked_latents(model, found: torch.Tensor, source: str) -> torch.Tensor:
    """The latents [N, C, h, w], if this model can learn from them; else ValueError."""
    channels = model.model.latent_format.latent_channels
    if found.is_nested or found.ndim != 4 or found.shape[1] != channels:
        raise ValueError(
            f"XTI Train needs latents of {channels} channels, as this model has, and got {list(found.shape)}: check "
            f"the VAE."
        )
    if not found.isfinite().all():
        raise ValueError(
            f"XTI Train cannot learn from the latents that {source}: they hold NaN or infinite numbers; a VAE that "
            "overflows in half precision works in float32 (start ComfyUI with --fp32-vae)."
        )
    return found


def shared_captions(captions: dict | None) -> list[str]:
    kind = (captions or {}).get("captions")
    if kind == OWN_LINES:
        lines = [line.strip() for line in captions["lines"].splitlines() if line.strip()]
        if not lines:
            raise ValueError(
                "XTI Train has no caption: write at least one line with {} in the place of the learned token."
            )
        return lines
    if kind not in CAPTIONS:  # ComfyUI drops an option that it does not know, and queues the prompt all the same
        raise ValueError(f"XTI Train does not know these captions: choose one of {', '.join([*CAPTIONS, OWN_LINES])}.")
    return list(CAPTIONS[kind])


def pictures_of(model, images, vae, latents: dict | None, photos: Photos | None) -> torch.Tensor | Photos:
    """Latents [N, C, h, w] as the VAE makes them, or the photos: of the one of the three inputs that is connected."""
    if [images is not None, latents is not None, photos is not None].count(True) != 1:
        raise ValueError("XTI Train needs pictures: connect either images (with vae), latents or photos.")
    if photos is not None:
        return photos
    if images is None:
        return checked_latents(model, latents["samples"], "it got")
    if vae is None:
        raise ValueError("XTI Train needs the VAE of the model to encode the images: connect vae, or give latents.")
    return checked_latents(model, vae.encode(images[..., :3]), "the VAE made of the images")


def resumed(resume: XTI, table: LayerTable, widths: dict[str, int], shared: bool) -> XTI:
    """The XTI to go on with, for the layers of this model. ValueError where it cannot."""
    if resume.encoders != widths:
        theirs, ours = (
            ", ".join(f"{name} ({width})" for name, width in each.items()) for each in (resume.encoders, widths)
        )
        raise ValueError(
            f"The XTI to resume has tokens for {theirs}, and the CLIP has {ours}: use the CLIP that it was learned "
            f"with."
        )
    if shared and not resume.shared:
        raise ValueError(
            "The XTI to resume differs from layer to layer and cannot go on as one shared token: switch shared off."
        )
    return resume.fit(table)
