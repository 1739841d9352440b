"""GLIDE in ComfyUI, for tests: files of the recorded networks, conditionings, and a whole sampling with given noise."""

from functools import cache

import comfy.samplers
import torch
from glide_tools import facts, state_dict
from safetensors.torch import save_file

from guidance_lab.nodes.glide import loader, sampling, scheduler


@cache
def _folder():
    import tempfile

    return tempfile.TemporaryDirectory(prefix="guidance-lab-glide-")


@cache
def file_of(variant: str) -> str:
    """A .safetensors of a recorded network."""
    path = f"{_folder().name}/{variant}.safetensors"
    save_file(state_dict(variant), path)
    return path


@cache
def _loaded(variant: str) -> tuple:
    with torch.inference_mode():
        return loader.load(file_of(variant), torch.float32)


def load(variant: str) -> tuple:
    """(MODEL, CLIP, VAE) of a recorded network; a fresh MODEL each time."""
    model, clip, vae = _loaded(variant)
    return model.clone(), clip, vae


def encode(clip, text: str) -> list:
    """What CLIP Text Encode gives."""
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def prompts(variant: str, run: dict) -> tuple[list, list]:
    """(positive, negative) of a recorded run."""
    clip = load(variant)[1]
    return encode(clip, facts()["prompts"][run["prompt"]]), encode(clip, "")


class Kept(dict):
    """What a callback of the sampler saw: step → (denoised, x in the VP frame)."""


def sample(model, positive, negative, latent, noise, spec="5", cfg=1.0, method="ancestral", eta=0.0, noises=None,
           sampler=None, sigmas=None, seed=0, mask=None, guider=None):  # fmt: skip
    """(samples, Kept) of the host's own sampling with a CFGGuider; `noises` [steps, 3, H, W] replace the sampler's."""
    draw = None if noises is None else lambda step: noises[step : step + 1]
    sampler = sampler or sampling.glide_sampler(method, eta, draw)
    sigmas = scheduler.noise_levels(model, spec, 1.0) if sigmas is None else sigmas
    kept = Kept()

    def callback(step, x0, x, total):
        kept[step] = (x0.clone(), x / (1 + sigmas[step] ** 2).sqrt())

    with torch.inference_mode():
        if guider is None:
            guider = comfy.samplers.CFGGuider(model)
            guider.set_conds(positive, negative)
            guider.set_cfg(cfg)
        out = guider.sample(
            noise,
            latent["samples"],
            sampler,
            sigmas,
            denoise_mask=mask,
            callback=callback,
            disable_pbar=True,
            seed=seed,
        )
    return out, kept
