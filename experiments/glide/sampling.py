"""Draws with a GLIDE network in training, and asks the readers what it drew."""

from dataclasses import replace

import numpy as np
import torch

from guidance_lab.experiments.training import autocast
from guidance_lab.glide.diffusion import FAST27, Schedule, ddim_sample, guide, p_sample
from guidance_lab.glide.model import GlideModel

from .data import around, pictures
from .first_world.read import judge, read
from .first_world.world import COLOURS, OBJECTS, SIZE, Scene, parse, random_scene
from .network import words

STEPS = "25"


def prompts(count: int, seed: int = 61) -> list[Scene]:
    """Scenes to ask for, of one, two and three things; places and sizes as the words leave them."""
    rng = np.random.default_rng(seed)
    return [parse(random_scene(rng).caption) for _ in range(count)]


def edits(count: int, seed: int = 62) -> tuple[list[Scene], torch.Tensor, torch.Tensor]:
    """(scenes to ask for, pictures of what was there before, masks with 1 where they are known): in each, one thing
    shall become another object of another colour in the same place, and a square around it is to be filled.
    """
    rng = np.random.default_rng(seed)
    before = [random_scene(rng) for _ in range(count)]
    wanted, masks = [], torch.ones(count, 1, SIZE, SIZE)
    for old, mask in zip(before, masks, strict=True):
        place = int(rng.integers(len(old.things)))
        thing = old.things[place]
        name = str(rng.choice([other for other in OBJECTS if other != thing.name]))
        colour = str(rng.choice([other for other in COLOURS if other != thing.colour]))
        things = [*old.things]
        things[place] = replace(thing, name=name, colour=colour)
        wanted.append(replace(old, things=tuple(things)))
        mask[0][around(thing, 2)] = 0
    return wanted, pictures(before), masks


@torch.no_grad()
def draw(
    model: GlideModel, captions: list[str], size: int, cfg: float, seed: int = 7, bf16: bool = False, **given
) -> torch.Tensor:
    """[B, 3, size, size] in -1..1, with classifier-free guidance; the known part of `given`, if any, is put back at
    every step. Ancestral steps, and DDIM for an upsampler: from all but pure noise, 999, DDIM keeps for good what a
    network that is still learning gets wrong there.
    """
    ddim = model.config.upsamples
    schedule = Schedule(model.config.noise_schedule, FAST27 if ddim else STEPS)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(captions), 3, size, size, generator=generator)
    cond, free = (model.text(*words(texts)) for texts in (captions, [""] * len(captions)))

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out = model.denoise(x, t, *cond, **given)
        return out if cfg == 1 else guide(out, model.denoise(x, t, *free, **given), cfg)

    def put_back(x0: torch.Tensor) -> torch.Tensor:
        mask = given.get("inpaint_mask")
        return x0 if mask is None else x0 * (1 - mask) + given["inpaint_image"] * mask

    with autocast("cpu", bf16):
        for i in reversed(range(len(schedule))):
            noise = torch.randn(x.shape, generator=generator)
            step = (network, x, i, schedule, noise)
            x = (ddim_sample if ddim else p_sample)(*step, denoised_fn=put_back)["sample"]
    return x.clamp(-1, 1)


def to_bytes(x: torch.Tensor) -> np.ndarray:
    """uint8 [B, H, W, 3] of pictures in -1..1."""
    return ((x + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def verdict(scenes: list[Scene], x: torch.Tensor) -> dict[str, float]:
    """Mean judgements of pictures [B, 3, h, w] in -1..1; other sizes than the readers' are resized."""
    if x.shape[-1] != SIZE:
        x = torch.nn.functional.interpolate(x, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(-1, 1)
    rows = [judge(wanted, read(picture)) for wanted, picture in zip(scenes, to_bytes(x), strict=True)]
    keys = ("object", "colour", "texture", "background", "count", "all")
    return {key: round(float(np.mean([row[key] for row in rows])), 3) for key in keys}
