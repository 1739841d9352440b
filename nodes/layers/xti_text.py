"""Texts that call XTIs, and which layers read the same vectors of them."""

import re

import torch

from ...xti import XTI
from ...xti.layers import CROSS_ATTENTION_TRANSFORMERS, JOINT_TRANSFORMERS, LayerTable
from .encode_texts import encoder_widths, tokenize_with, word_scale

_MARK = "guidance-lab-xti-"
_NAME = r"[^\s,()\[\]<>:]+"


def mark(text: str, connected: dict[str, XTI], words: dict[str, str] | None = None) -> tuple[str, dict[str, XTI]]:
    """The text with ComfyUI's `embedding:` in place of every call of an XTI, and the XTIs by the name that stands
    there.

    connected: socket → XTI, called `xti:A` by its socket or `xti:name` by its file. words: other words that call one,
    word → socket. All are found in one pass, so nothing is looked for in what another call became. ValueError for
    `xti:` with an unknown name.
    """
    names: dict[str, str] = {}
    for slot, xti in connected.items():
        names.setdefault(xti.metadata.get("name", slot).lower().replace(" ", "_"), slot)
    names |= {slot.lower(): slot for slot in connected}
    used: dict[str, XTI] = {}

    def embedding(slot: str) -> str:
        used[_MARK + slot] = connected[slot]
        # the host looks for it after a space, and takes the rest of the text up to the next one
        return f" embedding:{_MARK}{slot} "

    def call(match: re.Match) -> str:
        name = match["name"]
        if name is None:
            return embedding(words[match[0]])
        while name.lower() not in names and name and name[-1] in ".;!?'\"":
            name = name[:-1]
        if name.lower() not in names:
            known = ", ".join(f"xti:{known}" for known in names)
            raise ValueError(f'The text calls "{match[0]}", and the connected XTIs are {known or "none"}.')
        return embedding(names[name.lower()]) + match["name"][len(name) :]

    # Longer words first: of "cat" and "cat-2" the text means the one that is all there.
    others = "|".join(re.escape(word) for word in sorted(words or {}, key=len, reverse=True))
    pattern = rf"(?<!\w)xti:(?P<name>{_NAME})" + (rf"|(?<!\w)(?:{others})(?!\w)" if others else "")
    return re.sub(pattern, call, text), used


def fit(xti: XTI, table: LayerTable, clip) -> XTI:
    """The XTI for this model's layers. ValueError where its tokens do not fit the layers or the text encoder."""
    widths = encoder_widths(clip)
    if xti.encoders != {name: widths[name] for name in widths if name in xti.encoders} or not xti.encoders:
        asked = " and ".join(f"{name} ({width})" for name, width in xti.encoders.items())
        has = " and ".join(f"{name} ({width})" for name, width in widths.items()) or "none that takes embeddings"
        raise ValueError(
            f"This XTI has tokens for the text encoder {asked}, and the CLIP has {has}: use the model it was learned "
            f"with."
        )
    return xti.fit(table)


def groups_of(used: dict[str, XTI], table: LayerTable) -> list[tuple[int, ...]]:
    """Groups of layers that read the same rows of every XTI (fitted); first the group of the innermost layer."""
    groups: list[list[int]] = []
    for i in (table.inside_out()[0], *range(len(table))):
        for group in groups:
            if i in group or all(
                torch.equal(_rows(xti, table, i), _rows(xti, table, group[0])) for xti in used.values()
            ):
                group += [] if i in group else [i]
                break
        else:
            groups.append([i])
    return [tuple(group) for group in groups]


def _rows(xti: XTI, table: LayerTable, layer: int) -> torch.Tensor:
    return xti.layers[table.names[layer]]


def _may_miss(clip, encoder: str, table: LayerTable) -> bool:
    """Whether the word may be left out for this text encoder. Not in U-nets, whose encoders make one text, and not
    where a network reads tokens for which no encoder is there (Anima).
    """
    if table.architecture in JOINT_TRANSFORMERS:
        return True
    return table.architecture in CROSS_ATTENTION_TRANSFORMERS and encoder in encoder_widths(clip)


def tokenize_at(clip, marked: str, used: dict[str, XTI], layer: str) -> dict:
    """The tokens of a marked text as the layer of this name reads it."""
    if not used:
        return clip.tokenize(marked)

    def embedding(encoder: str, name: str) -> torch.Tensor | None:
        if name not in used:
            return None
        xti = used[name]
        if encoder not in xti.encoders and _may_miss(clip, encoder, xti.table):
            # One of several text encoders, such as CLIP-L beside T5 in Flux: it reads the text without the word, as
            # ComfyUI does where an embedding file has nothing for it.
            return torch.empty(0, 1)
        rows = xti.of_encoder(encoder)[layer]
        return rows if encoder.startswith("clip_") else rows * word_scale(clip, encoder)

    return tokenize_with(clip, marked, embedding)
