"""Draws Shapes pictures in this process: with the shipped models through ComfyUI's own sampler and VAE (`draw`), and
latents with networks in training by ComfyUI's DPM-Solver++(2M) (`sample`).
"""

from collections.abc import Callable
from functools import partial

import comfy.sample
import comfy.samplers
import numpy as np
import torch
from comfy.k_diffusion.sampling import get_sigmas_karras, sample_dpmpp_2m

from guidance_lab.experiments.training import autocast
from guidance_lab.shapes.models import LATENT
from guidance_lab.shapes.words import tokens

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
    """One picture for every context row: uint8 [N, 128, 128, 3].

    `empty` [1, tokens, width] is the context of the empty prompt. Batch i draws its noise from seed + i, so two models
    that are drawn with one seed start from the same noise; `noise` [N, 4, 16, 16] takes the place of all that.
    `conditioning(rows)` gives the CONDITIONING of these rows in place of their contexts. `sampler` is a name of
    ComfyUI's or a function with k-diffusion's arguments.
    """
    pictures = []
    for i, start in enumerate(range(0, len(contexts), BATCH)):
        context = contexts[start : start + BATCH]
        latent = torch.zeros(len(context), 4, LATENT, LATENT)
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


@torch.no_grad()
def contexts(text: torch.nn.Module, captions: list[str], device: str) -> torch.Tensor:
    """The captions' contexts: [N, tokens, width]."""
    return torch.cat(
        [text(torch.from_numpy(tokens(captions[i : i + 200])).to(device))[0] for i in range(0, len(captions), 200)]
    )


@torch.no_grad()
def sample(
    base,
    unet: torch.nn.Module,
    context: torch.Tensor,
    empty: torch.Tensor,
    seed: int,
    cfg: float = 1.0,
    steps: int = 12,
) -> torch.Tensor:
    """One normalized latent for every context row: float [N, 4, 16, 16].

    base: the host's model that has the noise schedule; unet: the network, eps-prediction. empty [1, tokens, width]:
    context of the empty prompt. Batch i draws its noise from seed + i.
    """
    schedule = base.model_sampling
    device = context.device.type

    def denoiser(x: torch.Tensor, sigma: torch.Tensor, rows: torch.Tensor, **_) -> torch.Tensor:
        def eps(c: torch.Tensor) -> torch.Tensor:
            with autocast(device):
                return unet(x / (sigma[0] ** 2 + 1).sqrt(), schedule.timestep(sigma).to(x), context=c).float()

        guess = eps(rows)
        if cfg != 1.0:
            unguided = eps(empty.expand_as(rows))
            guess = unguided + cfg * (guess - unguided)
        return x - sigma[0] * guess

    sigmas = get_sigmas_karras(steps, float(schedule.sigma_min), float(schedule.sigma_max), device=device)
    out = []
    for i, start in enumerate(range(0, len(context), BATCH)):
        rows = context[start : start + BATCH]
        noise = torch.randn(len(rows), 4, LATENT, LATENT, generator=torch.Generator().manual_seed(seed + i)).to(device)
        x = noise * sigmas[0]
        out.append(sample_dpmpp_2m(partial(denoiser, rows=rows), x, sigmas, disable=True))
    return torch.cat(out)


def zeroed_below(unet: torch.nn.Module, side: int, latent: int = LATENT):
    """While the returned hook stands, nothing comes out of the levels whose maps have `side` cells and fewer; call
    its `remove()`.

    The upsampling that leaves the level of `side` is replaced by zeros, so the levels outside see their own skips
    alone.
    """
    level = int(np.log2(latent // side))  # 0 is the outermost
    block = unet.output_blocks[
        len(unet.output_blocks) - 3 * level - 1
    ]  # three blocks a level, the last of a level upsamples
    return block[-1].register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))


def without_text(unet: torch.nn.Module, sides: set[int], empty: torch.Tensor) -> list:
    """While the returned hooks stand, the cross-attention layers on maps of these sides read the empty prompt.

    empty [1, tokens, width]: its context. The side of a layer's map is what its queries say: side² of them.
    """

    def forget(module: torch.nn.Module, inputs: tuple, options: dict) -> tuple[tuple, dict]:
        if int(inputs[0].shape[1] ** 0.5) in sides:
            options = options | {"context": empty.expand(len(inputs[0]), -1, -1)}
        return inputs, options

    layers = [module for name, module in unet.named_modules() if name.endswith(".attn2")]
    return [layer.register_forward_pre_hook(forget, with_kwargs=True) for layer in layers]
