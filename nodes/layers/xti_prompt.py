"""Prompts with XTI tokens: a word whose embedding differs from layer to layer."""

import logging

from ...xti import XTI
from ...xti.layers import LayerTable
from .._api import io
from ..host.node_text import show_on_node
from .cross_attention import layer_table, read_layer_prompts
from .encode_texts import encode_texts
from .layer_inputs import with_lines
from .xti_socket import XTIType
from .xti_text import fit, groups_of, mark, tokenize_at

SLOTS = [chr(ord("A") + i) for i in range(8)]


class XTIPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        slots = io.Autogrow.TemplateNames(
            XTIType.Input(
                "xti", tooltip="An XTI; the text calls it xti:A (its socket) or xti:name (its file, spaces as _)."
            ),
            names=SLOTS,
            min=1,
        )
        return io.Schema(
            node_id="GuidanceLab_XTIPrompt",
            display_name="XTI Prompt",
            category="Guidance Lab/XTI",
            description=(
                "Encodes a prompt with XTI tokens: words that were learned per cross-attention layer. One batched run "
                "of the text encoder, no extra model evaluation."
            ),
            search_aliases=[
                "XTI",
                "extended textual inversion",
                "P+",
                "textual inversion per layer",
                "embedding per block",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model whose layers the tokens were learned for."),
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder that the tokens were learned with: CLIP-L for SD1.x, CLIP-L and CLIP-G "
                    "for SDXL.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="a photo of xti:A",
                    tooltip="The prompt. xti:A stands for the XTI on socket A, any number of times; weights as in "
                    "(xti:A:1.2), embedding:name and long prompts as in CLIP Text Encode.",
                ),
                io.Autogrow.Input("xtis", template=slots, tooltip="The XTIs that the text calls, A to H."),
                io.String.Input(
                    "tokens",
                    default="",
                    optional=True,
                    tooltip="Words of the text that stand for the XTIs, in the order of their sockets and separated by "
                    "commas, such as <cat>, <style>. Empty: xti:A and xti:name do, and where neither occurs, the words "
                    "that the XTI files themselves name.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The model that reads the layers' tokens. Without such a CONDITIONING it draws exactly as "
                    "before."
                ),
                io.Conditioning.Output(
                    tooltip="The prompt with what each layer reads. ControlNets and the pooled vector get the "
                    "innermost layer's text."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, clip, text, xtis: io.Autogrow.Type, tokens="") -> io.NodeOutput:
        if clip is None:
            raise ValueError("XTI Prompt needs the CLIP of the model; the checkpoint gave none, load it separately.")
        connected = {slot: xti for slot, xti in xtis.items() if xti is not None}
        marked, used = _mark(text, connected, [word.strip() for word in tokens.split(",") if word.strip()])
        if not used:
            _say_unused(connected, cls.hidden.unique_id)
            return io.NodeOutput(model, clip.encode_from_tokens_scheduled(clip.tokenize(text)))
        table = _common_table(model, used)
        used = {name: fit(xti, table, clip) for name, xti in used.items()}
        groups = groups_of(used, table)
        encoded = encode_texts(clip, [tokenize_at(clip, marked, used, table.names[group[0]]) for group in groups])
        number = {layer: i for i, group in enumerate(groups) for layer in group}
        conditioning = [
            with_lines(entry, texts[0], [], lambda _, layer, texts=texts: texts[number[layer]], table)
            for entry, texts in encoded
        ]
        return io.NodeOutput(model if len(groups) == 1 else read_layer_prompts(model), conditioning)


def _mark(text: str, connected: dict[str, XTI], words: list[str]) -> tuple[str, dict[str, XTI]]:
    """`xti_text.mark` with the given words; where the text then calls none, with the words that the files name."""
    if len(words) > len(connected):
        raise ValueError(
            f"XTI Prompt has {len(words)} tokens for {len(connected)} XTIs; connect the others or take words away."
        )
    marked, used = mark(text, connected, dict(zip(words, connected)))
    if used:
        return marked, used
    own: dict[str, str] = {}
    for slot, xti in connected.items():
        for word in xti.tokens:
            own.setdefault(word, slot)
    return mark(text, connected, own)


def _say_unused(connected: dict[str, XTI], node_id: str | None) -> None:
    if connected:
        calls = ", ".join(f"xti:{slot}" for slot in connected)
        message = f"The text calls none of the connected XTIs ({calls}), so it is the plain prompt."
        logging.warning("Guidance Lab: %s", message)
        show_on_node(message, node_id)


def _common_table(model, used: dict[str, XTI]) -> LayerTable:
    """The model's layers, split into single blocks where an XTI has them."""
    blocks = layer_table(model, per_block=True)
    return blocks if any(xti.table.names == blocks.names for xti in used.values()) else layer_table(model)


NODES = [XTIPrompt]
