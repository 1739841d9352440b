"""Per-layer texts as the nodes put them on a CONDITIONING entry."""

import torch

from ..xti.contexts import weighted
from ..xti.layers import LayerTable
from ..xti.prompts import LayerPrompt, schedule
from .host.cross_attention import LayerPrompts, Stretch, Text, carry
from .host.cross_attention_dit import FIXED_LENGTH


def with_lines(entry: list, base: Text, lines: list[LayerPrompt], texts: dict[str, Text], table: LayerTable) -> list:
    """The CONDITIONING entry with what each layer reads, line by line; the entry itself where every line says what the base says.

    base: the entry's own text. lines: `xti.prompts.parse`. texts: for the text of each line, what the text encoder made of it.
    ValueError where the contexts have another width than the base, or a strength has no meaning for the model.
    """
    kept: list[Text] = []
    numbers: dict[tuple[str, float], int | None] = {}
    for line in lines:
        key = (line.text, line.strength)
        if key not in numbers:
            text = _at_strength(base, texts[line.text], line.strength, table)
            numbers[key] = None if _same_text(text, base) else len(kept)
            kept += [] if numbers[key] is None else [text]
    stretches = tuple(
        Stretch(segment.end, tuple(None if line is None else numbers[line.text, line.strength] for line in segment.prompts))
        for segment in schedule(lines, table)
    )
    return carry(entry, LayerPrompts(table, entry[0], tuple(kept), stretches))


def _at_strength(base: Text, text: Text, strength: float, table: LayerTable) -> Text:
    width = base["cross_attn"].shape[-1]
    if text["cross_attn"].shape[-1] != width:
        raise ValueError(
            f"A layer's text is {text['cross_attn'].shape[-1]} channels wide and the base prompt {width}: encode all with the same CLIP."
        )
    if strength not in (0.0, 1.0) and table.architecture in FIXED_LENGTH:
        raise ValueError(
            f"A strength of {strength:g} is not possible for {table.architecture}, whose texts carry masks or positions that cannot be "
            "blended; use strength 1, or change the prompt itself."
        )
    if strength == 0.0:
        return base
    return text if strength == 1.0 else {"cross_attn": weighted(base["cross_attn"], text["cross_attn"], strength)}


def _same_text(a: Text, b: Text) -> bool:
    return a.keys() == b.keys() and all(a[key].shape == b[key].shape and torch.equal(a[key], b[key]) for key in a)
