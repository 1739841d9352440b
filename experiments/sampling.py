"""Draws Shapes pictures in this process, through ComfyUI's own sampler and VAE."""

from collections.abc import Callable

import comfy.sample
import comfy.samplers
import numpy as np
import torch

BATCH = 50


def encode(clip, captions: list[str]) -> torch.Tensor:
    """The captions' contexts, one row each: [N, tokens, width]."""
    rows = {text: clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0] for text in dict.fromkeys(captions)}
    return torch.cat([rows[text] for text in captions])


def draw(
    model,
    vae,
    contexts: torch.Tensor,
    empty: torch.Tensor,
    seed: int,
    cfg: float = 1.0,
    steps: int = 12,
    sampler: str | Callable = "dpmpp_2m",
    scheduler: str = "karras",
    noise: torch.Tensor | None = None,
    conditioning: Callable[[slice], list] | None = None,
) -> np.ndarray:
    """One picture for every context row: uint8 [N, 64, 64, 3].

    `empty` [1, tokens, width] is the context of the empty prompt. Batch i draws its noise from seed + i, so two models
    that are drawn with one seed start from the same noise; `noise` [N, 4, 8, 8] takes the place of all that.
    `conditioning(rows)` gives the CONDITIONING of these rows in place of their contexts. `sampler` is a name of
    ComfyUI's or a function with k-diffusion's arguments.
    """
    pictures = []
    for i, start in enumerate(range(0, len(contexts), BATCH)):
        context = contexts[start : start + BATCH]
        latent = torch.zeros(len(context), 4, 8, 8)
        start_noise = comfy.sample.prepare_noise(latent, seed + i) if noise is None else noise[start : start + BATCH]
        positive = [[context, {}]] if conditioning is None else conditioning(slice(start, start + BATCH))
        negative = [[empty.expand_as(context), {}]]
        options = {"disable_pbar": True, "seed": seed + i}
        if callable(sampler):
            sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, steps)
            kind = comfy.samplers.KSAMPLER(sampler)
            sampled = comfy.sample.sample_custom(
                model, start_noise, cfg, kind, sigmas, positive, negative, latent, **options
            )
        else:
            sampled = comfy.sample.sample(
                model, start_noise, steps, cfg, sampler, scheduler, positive, negative, latent, **options
            )
        decoded = vae.decode(sampled).clamp(0, 1)
        pictures.append((decoded * 255).round().byte().cpu().numpy())
    return np.concatenate(pictures)
