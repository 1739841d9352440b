"""Formats whose keys are numbered placeholder words: mkshing and SeongMon, promptplusplus, Mix-of-Show's ED-LoRA."""

import re
from collections.abc import Mapping

import torch

from .embedding import XTI, checked_rows, encoders_for
from .layers import named_table

_NUMBERED = re.compile(r"(.+)-(\d+)")
_NUMBERED_VECTORS = re.compile(r"<(.+)-(\d+)-(\d+)>")

# mkshing/prompt-plus-pytorch moves to the next token once per U-net block instead of once per layer, so its seven first
# tokens serve the sixteen layers like this and the other nine are never used.
MKSHING_ROWS = (0, 0, 1, 1, 2, 2, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6)


def is_numbered(data: dict) -> bool:
    """mkshing/prompt-plus-pytorch and SeongMon/prompt-plus: "<tok>-0" ... "<tok>-15", each [768]."""
    return len(data) > 1 and all(_NUMBERED.fullmatch(key) for key in data)


def read_numbered(data: dict, token: str | None) -> XTI:
    """Sixteen numbered vectors, by number and not by their order in the file.

    Both projects write the same keys with different meanings. Tokens 7-15 of a mkshing file get no gradient and only
    the same weight decay, so they stay exactly equal to each other; in a SeongMon file every token is trained and they
    differ.
    """
    words: dict[str, dict[int, torch.Tensor]] = {}
    for key, tensor in data.items():
        match = _NUMBERED.fullmatch(key)
        if match is None:
            raise ValueError(f'The key "{key[:60]}" is not a numbered token.')
        words.setdefault(match[1], {})[int(match[2])] = checked_rows(tensor, f'"{key}"')
    word = choose(words, token)
    vectors = words[word]
    _require_numbers(set(vectors), word)
    unused = [vectors[i] for i in range(7, 16)]
    mkshing = all(torch.equal(unused[0], other) for other in unused[1:])
    rows = [vectors[i] for i in (MKSHING_ROWS if mkshing else range(16))]
    return _xti(rows, "mkshing" if mkshing else "seongmon", (word,))


def is_promptplusplus(data: dict) -> bool:
    """cloneofsimo/promptplusplus: "<tok-LAYER-VECTOR>", each [768], beside the common "<tok>"."""
    return any(_NUMBERED_VECTORS.fullmatch(key) for key in data)


def read_promptplusplus(data: dict, token: str | None, prefix: bool) -> XTI:
    """promptplusplus' vectors by their numbers; the file order is that of the names: 0, 1, 10, 11, ..., 2.

    prefix: put the common token "<tok>" before the vectors of every layer (its option preserve_prefix, which the file
    does not record). Raises ValueError for missing vectors, or a missing common token with prefix.
    """
    words: dict[str, dict[tuple[int, int], torch.Tensor]] = {}
    common: dict[str, torch.Tensor] = {}
    for key, tensor in data.items():
        match = _NUMBERED_VECTORS.fullmatch(key)
        vector = checked_rows(tensor, f'"{key}"')
        if match is None:
            common[key] = vector
        else:
            words.setdefault(f"<{match[1]}>", {})[int(match[2]), int(match[3])] = vector
    stray = [key for key in common if key not in words]
    widths = {rows.shape[1] for rows in (*common.values(), *(row for each in words.values() for row in each.values()))}
    if len(widths) > 1:
        raise ValueError(f"The tokens have different widths ({', '.join(map(str, sorted(widths)[:5]))}).")
    if stray:
        raise ValueError(f'The key "{stray[0]}" does not belong to promptplusplus\' format.')
    word = choose(words, token)
    vectors = words[word]
    _require_numbers({layer for layer, _ in vectors}, word)
    count = max(vector for _, vector in vectors) + 1
    if len(vectors) != 16 * count:
        raise ValueError(f"{word} does not have {count} vectors in every layer.")
    if prefix and word not in common:
        raise ValueError(f"The common token {word} is not in the file, so it cannot be used as prefix.")
    before = [common[word]] if prefix else []
    rows = [torch.cat(before + [vectors[layer, i] for i in range(count)]) for layer in range(16)]
    return _xti(rows, "promptplusplus", (word,))


def is_ed_lora(data: dict) -> bool:
    """TencentARC/Mix-of-Show ED-LoRA: {"params": {"new_concept_embedding": {token: [16, 768]}, ...}}."""
    params = data.get("params")
    return isinstance(params, dict) and isinstance(params.get("new_concept_embedding"), dict)


def read_ed_lora(data: dict, token: str | None) -> XTI:
    """The layer-wise embeddings of an ED-LoRA file; its LoRA weights are left out.

    A concept is usually two tokens used side by side ("<cat1> <cat2>"): words that differ only in their last number
    become consecutive vectors in the order of the numbers. Other words have no safe order: choose one with `token`.
    """
    words = {}
    for word, rows in data["params"]["new_concept_embedding"].items():
        words[word] = checked_rows(rows, word)
        if words[word].shape[0] != 16:
            raise ValueError(f"{word} has {words[word].shape[0]} layers instead of 16.")
    if not words:
        raise ValueError("The ED-LoRA file holds no concept embedding.")
    order = _numbered_order(list(words)) if token is None else None
    chosen = order or [choose(words, token)]
    if len({words[word].shape[1] for word in chosen}) > 1:
        raise ValueError(f"The tokens {', '.join(chosen)} have different widths.")
    rows = [torch.stack([words[word][layer] for word in chosen]) for layer in range(16)]
    return _xti(rows, "ed-lora", tuple(chosen))


def choose(words: Mapping[str, object], token: str | None) -> str:
    """The placeholder word to read. Raises ValueError, with the choice, if `token` is not in the file or none was given
    for several.
    """
    if token is not None and token not in words:
        raise ValueError(f"The file holds no token {token}; it has {_some(words)}.")
    if token is None and len(words) > 1:
        raise ValueError(f"The file holds several tokens, {_some(words)}: choose one.")
    return token if token is not None else next(iter(words))


def _some(words) -> str:
    shown = ", ".join(word[:60] for word in list(words)[:12])
    return shown if len(words) <= 12 else f"{shown} and {len(words) - 12} more"


def _numbered_order(words: list[str]) -> list[str] | None:
    found = [re.fullmatch(r"(<?.*?)(\d+)(>?)", word) for word in words]
    matches = [match for match in found if match is not None]
    if (
        len(matches) < len(words)
        or len({(match[1], match[3]) for match in matches}) > 1
        or len({int(match[2]) for match in matches}) < len(words)
    ):
        return None
    numbers = {word: int(match[2]) for word, match in zip(words, matches)}
    return sorted(words, key=numbers.__getitem__)


def _require_numbers(numbers: set[int], word: str) -> None:
    missing = sorted(set(range(16)) - numbers)
    extra = sorted(numbers - set(range(16)))
    if missing:
        raise ValueError(f"{word} lacks the layers {', '.join(map(str, missing))} of 0-15.")
    if extra:
        raise ValueError(f"{word} has a layer {extra[0]}, but SD1 and SD2 have the layers 0-15.")


def _xti(rows: list[torch.Tensor], source: str, tokens: tuple[str, ...]) -> XTI:
    encoders = encoders_for(rows[0].shape[1])
    table = named_table("sd2" if "clip_h" in encoders else "sd1")
    return XTI(table, dict(zip(table.names, rows, strict=True)), source, encoders, tokens)
