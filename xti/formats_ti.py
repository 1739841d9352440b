"""Ordinary textual inversion (Gal et al. 2022), read as an XTI whose layers all have the same rows."""

import torch

from .embedding import XTI, checked_rows, encoders_for
from .layers import named_table

# A prompt has 75 places; a longer "embedding" is some other tensor.
MAX_VECTORS = 75


def is_textual_inversion(data: dict) -> bool:
    """A1111 ("string_to_param"), kohya ("emb_params"), SDXL ("clip_l", "clip_g"), or diffusers' single placeholder
    word.
    """
    if "string_to_param" in data or "emb_params" in data or {"clip_l", "clip_g"} & set(data):
        return True
    return len(data) == 1 and not next(iter(data)).endswith((".weight", ".bias"))


def read_textual_inversion(data: dict, metadata: dict[str, str]) -> XTI:
    """The token's vectors, [width] or [n, width], repeated for every layer. Raises ValueError for anything else."""
    if {"clip_l", "clip_g"} & set(data):
        return _read_sdxl(data, metadata)
    word, rows = _single_token(data)
    rows = _checked_token(rows, word)
    encoders = encoders_for(rows.shape[1])
    if "clip_g" in encoders:
        raise ValueError("The embedding is for CLIP-G alone; SDXL needs clip_l and clip_g in one file.")
    table = named_table("sd2" if "clip_h" in encoders else "sd1")
    tokens = () if word in ("*", "emb_params") else (word,)
    return XTI(table, dict.fromkeys(table.names, rows), "textual inversion", encoders, tokens, metadata)


def _single_token(data: dict) -> tuple[str, object]:
    if "string_to_param" in data:
        words = data["string_to_param"]
        if not isinstance(words, dict) or len(words) != 1:
            raise ValueError('"string_to_param" does not hold exactly one token.')
        return next(iter(words.items()))
    if "emb_params" in data:
        return "emb_params", data["emb_params"]
    return next(iter(data.items()))


def _read_sdxl(data: dict, metadata: dict[str, str]) -> XTI:
    if set(data) != {"clip_l", "clip_g"}:
        raise ValueError(f"An SDXL embedding has the keys clip_l and clip_g, this file has {', '.join(sorted(data))}.")
    parts = {encoder: _checked_token(data[encoder], encoder) for encoder in ("clip_l", "clip_g")}
    if parts["clip_l"].shape[0] != parts["clip_g"].shape[0]:
        raise ValueError(f"clip_l has {parts['clip_l'].shape[0]} vectors and clip_g {parts['clip_g'].shape[0]}.")
    table = named_table("sdxl")
    encoders = {encoder: rows.shape[1] for encoder, rows in parts.items()}
    rows = torch.cat(list(parts.values()), dim=1)
    return XTI(table, dict.fromkeys(table.names, rows), "textual inversion", encoders, (), metadata)


def _checked_token(rows: object, word: str) -> torch.Tensor:
    checked = checked_rows(rows, f'"{word}"')
    if checked.shape[0] > MAX_VECTORS:
        raise ValueError(
            f'"{word}" has {checked.shape[0]} vectors; a prompt has room for {MAX_VECTORS}, so this is no textual '
            "inversion."
        )
    return checked
