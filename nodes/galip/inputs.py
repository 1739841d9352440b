"""What the drawing nodes read from sockets: sentence embeddings out of a CONDITIONING, noise out of a LATENT."""

import torch

from ...galip import Dims

# What a picture in one pass has no place for; silently ignoring it would look like a bug of the picture.
UNUSABLE = {
    "unclip_conditioning": "image embeddings, which only give white pictures",
    "area": "an area",
    "mask": "a mask",
    "control": "a ControlNet",
    "gligen": "GLIGEN boxes",
    "start_percent": "a timestep range",
    "end_percent": "a timestep range",
    "hooks": "hooks",
    "reference_latents": "reference pictures",
}


def sentences(conditioning: list, dims: Dims) -> torch.Tensor:
    """The pooled output of a CONDITIONING: sentence embeddings [n, cond_dim], one per text in its batch.

    ValueError for a CONDITIONING that GALIP cannot draw from.
    """
    if len(conditioning) != 1:
        raise ValueError(
            f"GALIP draws one text in one pass, but the conditioning has {len(conditioning)} parts; connect one CLIP "
            "Text Encode, or use GALIP Interpolate to mix texts."
        )
    options = conditioning[0][1]
    for key, what in UNUSABLE.items():
        if options.get(key) is not None:
            raise ValueError(
                f"The conditioning carries {what}, but GALIP draws the whole picture in one pass from text alone; "
                f"remove it."
            )
    pooled = options.get("pooled_output")
    if pooled is None:
        raise ValueError(
            "The conditioning has no pooled output, which GALIP draws from; encode the text with the CLIP of GALIP "
            "CLIP."
        )
    if pooled.ndim != 2 or pooled.shape[1] != dims.cond_dim:
        raise ValueError(
            f"The pooled output of the conditioning has shape {list(pooled.shape)}, but this GALIP takes [texts, "
            f"{dims.cond_dim}]; "
            "it comes from another CLIP, so encode the text with the CLIP of GALIP CLIP."
        )
    return pooled.float()


def noise_vectors(latent: dict, dims: Dims) -> torch.Tensor:
    """The noise vectors [n, nz] in a LATENT of shape [n, nz, 1, 1]; ValueError for any other LATENT."""
    samples = latent["samples"]
    if samples.shape[1:] != (dims.nz, 1, 1):
        raise ValueError(
            f"The noise has shape {list(samples.shape)}, but this GALIP takes [pictures, {dims.nz}, 1, 1]; "
            "connect the noise output of a GALIP Sampler with the same checkpoint, not the latent of a picture."
        )
    return samples.flatten(1).float()


def as_latent(noise: torch.Tensor) -> dict:
    """Noise vectors [n, nz] as a LATENT, so that ComfyUI's nodes can batch, slice, mix and save them."""
    return {"samples": noise[:, :, None, None]}
