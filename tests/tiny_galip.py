"""A tiny GALIP with random weights and the CLIP it belongs to, as files that a user could have."""

from pathlib import Path

import torch
from galip_formula import formula_state_dict
from safetensors.torch import save_file

from guidance_lab.galip import Dims, Generator, ImageEncoder, TextEncoder

DIMS = Dims(nz=12, cond_dim=64, grid=4, code_channels=8, code_hidden=4, bridge_blocks=2, clip_width=64, clip_layers=4,
clip_patch=8,
            prompts=2, channels=((16, 16), (16, 16), (16, 8)), sizes=(8, 16, 32))  # fmt: skip


def generator_weights(seed: str = "netG.") -> dict[str, torch.Tensor]:
    """State dict of a generator of DIMS; another `seed` gives other weights."""
    with torch.device("meta"):
        generator = Generator(DIMS)
    return formula_state_dict(generator, seed)


def clip_weights(
    generator: dict[str, torch.Tensor] | None = None, seed: str = "clip.", embed_dim: int = 64
) -> dict[str, torch.Tensor]:
    """State dict, with OpenAI's names, of a whole CLIP whose image tower is the one inside the generator, or formula
    weights.
    """
    with torch.device("meta"):
        visual = ImageEncoder(DIMS.clip_width, DIMS.clip_layers, DIMS.grid, DIMS.clip_patch, embed_dim)
        text = TextEncoder(64, layers=2, embed_dim=embed_dim)
    weights = formula_state_dict(visual, seed + "visual.")
    if generator is not None:
        inside = "mapping.CLIP_ViT."
        weights.update({key.removeprefix(inside): value for key, value in generator.items() if key.startswith(inside)})
    weights = {f"visual.{key}": value for key, value in weights.items()}
    return {**weights, **formula_state_dict(text, seed), "logit_scale": torch.tensor(4.6)}


def write_generator(path: Path) -> None:
    """A checkpoint as the official training writes it, drawing 32x32 pixels when it is safetensors and 224x224
    otherwise.
    """
    if path.suffix == ".safetensors":
        save_file(generator_weights(), path, {"sizes": ",".join(map(str, DIMS.sizes))})
    else:
        torch.save({"model": {"netG": generator_weights(), "netD": {}, "netC": {}}, "epoch": 1}, path)


def write_clip(path: Path) -> None:
    """The CLIP of `write_generator`."""
    save_file({key: value.contiguous() for key, value in clip_weights(generator_weights()).items()}, path)
