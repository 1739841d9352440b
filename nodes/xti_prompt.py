"""Prompts with XTI tokens: a word whose embedding differs from layer to layer."""

import re

import torch

from ..xti import XTI
from ..xti.layers import LayerTable
from ..xti.prompts import LayerPrompt
from ._api import io
from .host.cross_attention import layer_table, read_layer_prompts
from .host.encode_texts import encode_texts, encoder_widths, tokenize_with
from .layer_inputs import with_lines
from .xti_socket import XTIType

SLOTS = [chr(ord("A") + i) for i in range(8)]
_MARK = "guidance-lab-xti-"
_NAME = r"[^\s,()\[\]<>:]+"


class XTIPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        slots = io.Autogrow.TemplateNames(
            XTIType.Input("xti", tooltip="An XTI; the text calls it xti:A (its socket) or xti:name (its file, spaces as _)."),
            names=SLOTS,
            min=1,
        )
        return io.Schema(
            node_id="GuidanceLab_XTIPrompt",
            display_name="XTI Prompt",
            category="Guidance Lab/XTI",
            description=(
                "Encodes a prompt with XTI tokens: words that were learned per cross-attention layer. One batched run of the text encoder, "
                "no extra model evaluation."
            ),
            search_aliases=["XTI", "extended textual inversion", "P+", "textual inversion per layer", "embedding per block"],
            inputs=[
                io.Model.Input("model", tooltip="The model whose layers the tokens were learned for."),
                io.Clip.Input(
                    "clip", tooltip="The text encoder that the tokens were learned with: CLIP-L for SD1.x, CLIP-L and CLIP-G for SDXL."
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="a photo of xti:A",
                    tooltip="The prompt. xti:A stands for the XTI on socket A, any number of times; weights as in (xti:A:1.2), "
                    "embedding:name and long prompts as in CLIP Text Encode.",
                ),
                io.Autogrow.Input("xtis", template=slots, tooltip="The XTIs that the text calls, A to H."),
                io.String.Input(
                    "tokens",
                    default="",
                    optional=True,
                    tooltip="Words of the text that stand for the XTIs, in the order of their sockets and separated by commas, "
                    "such as <cat>, <style>. Empty: only xti:A and xti:name do.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model that reads the layers' tokens. Without such a CONDITIONING it draws exactly as before."),
                io.Conditioning.Output(
                    tooltip="The prompt with what each layer reads. ControlNets and the pooled vector get the innermost layer's text."
                ),
            ],
        )

    @classmethod
    def execute(cls, model, clip, text, xtis: io.Autogrow.Type, tokens="") -> io.NodeOutput:
        if clip is None:
            raise ValueError("XTI Prompt needs the CLIP of the model; the checkpoint gave none, load it separately.")
        connected = {slot: xti for slot, xti in xtis.items() if xti is not None}
        marked, used = _mark(text, connected, [word.strip() for word in tokens.split(",") if word.strip()])
        if not used:
            return io.NodeOutput(model, clip.encode_from_tokens_scheduled(clip.tokenize(text)))
        table = _common_table(model, used)
        used = {mark: _fit(xti, table, clip) for mark, xti in used.items()}
        layers = _layers_by_rows(used, table)
        encoded = encode_texts(clip, [_tokenize(clip, marked, used, table.names[group[0]]) for group in layers])
        lines = [LayerPrompt(group, str(i), 1.0, 0.0, 1.0, 0) for i, group in enumerate(layers)]
        conditioning = []
        for entry, texts in encoded:
            by_text = {str(i): part for i, part in enumerate(texts)}
            conditioning.append(with_lines(entry, texts[0], lines, by_text, table))
        return io.NodeOutput(model if len(layers) == 1 else read_layer_prompts(model), conditioning)


def _mark(text: str, connected: dict[str, XTI], tokens: list[str]) -> tuple[str, dict[str, XTI]]:
    """The text with ComfyUI's `embedding:` in place of every call of an XTI, and the XTIs by the name that stands there."""
    if len(tokens) > len(connected):
        raise ValueError(f"XTI Prompt has {len(tokens)} tokens for {len(connected)} XTIs; connect the others or take words away.")
    names: dict[str, str] = {}
    for slot, xti in connected.items():
        names.setdefault(xti.metadata.get("name", slot).lower().replace(" ", "_"), slot)
    names |= {slot.lower(): slot for slot in connected}
    used: dict[str, XTI] = {}

    def embedding(slot: str) -> str:
        used[_MARK + slot] = connected[slot]
        return f" embedding:{_MARK}{slot} "  # the host looks for it after a space, and takes the rest of the text up to the next one

    def by_name(match: re.Match) -> str:
        name = match[1]
        while name.lower() not in names and name and name[-1] in ".;!?'\"":
            name = name[:-1]
        if name.lower() not in names:
            known = ", ".join(f"xti:{known}" for known in names)
            raise ValueError(f'The text calls "{match[0]}", and the connected XTIs are {known or "none"}.')
        return embedding(names[name.lower()]) + match[1][len(name) :]

    text = re.sub(rf"(?<!\w)xti:({_NAME})", by_name, text)
    for word, slot in zip(tokens, connected):
        text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", lambda _, slot=slot: embedding(slot), text)
    return text, used


def _common_table(model, used: dict[str, XTI]) -> LayerTable:
    """The model's layers, split into single blocks where an XTI has them."""
    blocks = layer_table(model, per_block=True)
    return blocks if any(xti.table.names == blocks.names for xti in used.values()) else layer_table(model)


def _fit(xti: XTI, table: LayerTable, clip) -> XTI:
    """The XTI for this model's layers. ValueError where its tokens do not fit the layers or the text encoder."""
    widths = encoder_widths(clip)
    if xti.encoders != {name: widths[name] for name in widths if name in xti.encoders} or not xti.encoders:
        asked = " and ".join(f"{name} ({width})" for name, width in xti.encoders.items())
        has = " and ".join(f"{name} ({width})" for name, width in widths.items()) or "none that takes embeddings"
        raise ValueError(f"This XTI has tokens for the text encoder {asked}, and the CLIP has {has}: use the model it was learned with.")
    return xti.fit(table)


def _layers_by_rows(used: dict[str, XTI], table: LayerTable) -> list[tuple[int, ...]]:
    """Groups of layers that read the same rows of every XTI; first the group of the innermost layer."""
    groups: list[list[int]] = []
    for i in (table.inside_out()[0], *range(len(table))):
        for group in groups:
            if i in group or all(torch.equal(_rows(xti, table, i), _rows(xti, table, group[0])) for xti in used.values()):
                group += [] if i in group else [i]
                break
        else:
            groups.append([i])
    return [tuple(group) for group in groups]


def _rows(xti: XTI, table: LayerTable, layer: int) -> torch.Tensor:
    return xti.layers[table.names[layer]]


def _tokenize(clip, marked: str, used: dict[str, XTI], layer: str) -> dict:
    def embedding(encoder: str, name: str) -> torch.Tensor | None:
        return used[name].of_encoder(encoder)[layer] if name in used else None

    return tokenize_with(clip, marked, embedding)


NODES = [XTIPrompt]
