"""Reading and writing XTI files of every known format. Nothing is ever unpickled."""

import re
from pathlib import Path

import torch

from ..weight_files import read_tree, save_tensors
from . import formats_layers, formats_ti, formats_tokens
from .embedding import XTI

EXTENSIONS = (".safetensors", ".pt", ".bin", ".pth", ".ckpt")
MAX_BYTES = 2 * 2**30  # the LoRA weights in an ED-LoRA file are the largest part of any
MAX_ENTRIES = 4096  # SDXL's 70 layers with two encoders have 140

# Parts of keys by which files of another kind are recognized.
_OTHER_KINDS = (
    (
        (
            ".lora_up.",
            ".lora_down.",
            ".lora_a.",
            ".lora_b.",
            "lora.up.",
            "lora.down.",
            ".hada_w1",
            ".lokr_w1",
            "lora_unet_",
        ),
        "a LoRA",
    ),
    (("diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.embedders"), "a checkpoint"),
    (("transformer_blocks.", "double_blocks.", "single_blocks.", "down_blocks.", "joint_blocks."), "a diffusion model"),
    (("text_model.", "encoder.layers.", "token_embedding."), "a text encoder"),
)


def load(path: str | Path, token: str | None = None, prefix: bool = False) -> XTI:
    """Read an XTI file of any known format.

    Formats: kohya, mkshing, SeongMon, promptplusplus, Mix-of-Show ED-LoRA, our own, and ordinary textual inversion
    (equal rows); `XTI.source` says which. token: the placeholder word, where the file holds several. prefix:
    promptplusplus only, see there. Raises ValueError with one sentence, beginning with the file's name, for every file
    that is not one of these.
    """
    path = Path(path)
    if path.suffix.lower() not in EXTENSIONS and path.is_file():
        raise ValueError(f"{path.name}: XTI files end in {', '.join(EXTENSIONS)}.")
    content, metadata = read_tree(path, MAX_BYTES)
    try:
        _check(content, metadata)
        return _interpret(content, metadata, token, prefix)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def save(xti: XTI, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write an XTI as .safetensors: kohya's keys for SD1 and SD2, our own for the rest (formats_layers.write).

    dtype: float32, float16 or bfloat16. Raises ValueError for another ending or dtype.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"{path.name}: XTI files are written as .safetensors.")
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"{path.name}: an XTI is saved in float32, float16 or bfloat16, not {dtype}.")
    tensors, metadata = formats_layers.write(xti, dtype)
    save_tensors(tensors, path, metadata)


def _check(content: object, metadata: dict[str, str]) -> None:
    """ValueError unless these are named things, no more and no longer than a file of tokens has."""
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError("the tensors have no names, so their layers cannot be told apart.")
    if not content:
        raise ValueError("the file holds no tensors.")
    if metadata.get("format") != formats_layers.OWN_FORMAT:
        _refuse_other_kinds(content)
    if len(content) > MAX_ENTRIES:
        raise ValueError(f"the file holds {len(content):,} things; an XTI has at most {MAX_ENTRIES:,}.")
    steps = metadata.get("steps", "0")
    if not re.fullmatch(r"[0-9]{1,9}", steps):
        raise ValueError(f"the metadata says that it was trained for {steps[:40]!r} steps, which is no whole number.")


def _interpret(data: dict, metadata: dict[str, str], token: str | None, prefix: bool) -> XTI:
    if formats_layers.is_own(data, metadata):
        return formats_layers.read_own(data, metadata)
    if formats_layers.is_kohya(data):
        return formats_layers.read_kohya(data, metadata)
    if formats_tokens.is_ed_lora(data):
        return formats_tokens.read_ed_lora(data, token)
    _refuse_other_kinds(data)
    if formats_tokens.is_promptplusplus(data):
        return formats_tokens.read_promptplusplus(data, token, prefix)
    if formats_tokens.is_numbered(data):
        return formats_tokens.read_numbered(data, token)
    if formats_ti.is_textual_inversion(data):
        return formats_ti.read_textual_inversion(data, metadata)
    raise ValueError(f'no known XTI or textual inversion has the keys "{", ".join(list(data)[:3])}", ....')


def _refuse_other_kinds(keys) -> None:
    names = [key.lower() for key in keys]
    if "state_dict" in names and "encoder" in names:
        raise ValueError("this is a NeTI mapper, a network over time and layer and not a table of tokens.")
    if "state_dict" in names:
        raise ValueError("this is a checkpoint, not an XTI.")
    for marks, kind in _OTHER_KINDS:
        if any(mark in name for name in names for mark in marks):
            raise ValueError(f"this is {kind}, not an XTI.")
