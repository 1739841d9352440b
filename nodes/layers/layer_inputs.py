"""Per-layer texts as the nodes put them on a CONDITIONING entry."""

from collections.abc import Callable

import torch

from ...xti.contexts import weighted
from ...xti.layers import LayerTable
from ...xti.prompts import LayerPrompt, schedule
from .carried import LayerPrompts, Stretch, Text, carry
from .cross_attention_dit import EQUAL_LENGTH, FIXED_LENGTH


def with_lines(
    entry: list,
    base: Text,
    lines: list[LayerPrompt],
    text_at: Callable[[LayerPrompt | None, int], Text],
    table: LayerTable,
    matching_control: bool = False,
) -> list:
    """The CONDITIONING entry with what each layer reads, line by line; the entry itself where every layer reads what
    the base says.

    base: the entry's own text. lines: `xti.prompts.parse`. text_at: what the text encoder made of a line's text, or
    (None) of the base prompt, for this layer. matching_control: as in `LayerPrompts`. ValueError where the contexts
    have another width than the base, or a strength has no meaning for the model.
    """
    kept: list[Text] = []
    numbers: dict[tuple[int, int, float], int | None] = {}

    def number(line: LayerPrompt | None, layer: int) -> int | None:
        plain = text_at(None, layer)
        strength = 0.0 if line is None else line.strength
        text = plain if strength == 0.0 else text_at(line, layer)
        key = (id(plain), id(text), strength)
        if key not in numbers:
            own = _at_strength(plain, text, strength, table)
            numbers[key] = None if _same_text(own, base) else len(kept)
            kept.extend([] if numbers[key] is None else [own])
        return numbers[key]

    stretches = tuple(
        Stretch(segment.end, tuple(number(line, layer) for layer, line in enumerate(segment.prompts)))
        for segment in schedule(lines, table)
    )
    return carry(entry, LayerPrompts(table, entry[0], tuple(kept), stretches, matching_control))


def _at_strength(base: Text, text: Text, strength: float, table: LayerTable) -> Text:
    width = base["cross_attn"].shape[-1]
    if text["cross_attn"].shape[-1] != width:
        raise ValueError(
            f"A layer's text is {text['cross_attn'].shape[-1]} channels wide and the base prompt {width}: encode all "
            f"with the same CLIP."
        )
    if strength not in (0.0, 1.0) and table.architecture in FIXED_LENGTH:
        raise ValueError(
            f"A strength of {strength:g} is not possible for {table.architecture}, whose texts carry masks or "
            "positions that cannot be blended; use strength 1, or change the prompt itself."
        )
    if strength == 0.0:
        return base
    lengths = base["cross_attn"].shape[1], text["cross_attn"].shape[1]
    if strength != 1.0 and table.architecture in EQUAL_LENGTH and lengths[0] != lengths[1]:
        raise ValueError(
            f"A strength of {strength:g} blends texts of one length for {table.architecture}, and the base prompt has "
            f"{lengths[0]} tokens and a line {lengths[1]}; use strength 1, or make them equally long."
        )
    return text if strength == 1.0 else {"cross_attn": weighted(base["cross_attn"], text["cross_attn"], strength)}


def _same_text(a: Text, b: Text) -> bool:
    return a.keys() == b.keys() and all(a[key].shape == b[key].shape and torch.equal(a[key], b[key]) for key in a)
