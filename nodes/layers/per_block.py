"""P+: a prompt per cross-attention layer, from text or from CONDITIONINGs."""

from ...xti.prompts import LayerPrompt, parse, schedule
from .._api import io
from .cross_attention import KEY, layer_table, read_layer_prompts
from .encode_texts import encode_texts, text_of
from .layer_inputs import with_lines
from .route import tell_canvas
from .xti_socket import XTIType
from .xti_text import fit, groups_of, mark, tokenize_at

CATEGORY = "Guidance Lab/Per-Block Prompts"
EDITOR = "GUIDANCELAB_LAYER_TABLE"  # the widget of web/js/layer_editor.js
BASE, INNERMOST, MATCHING = "base prompt", "innermost layer", "matching layers"
SLOTS = [chr(ord("A") + i) for i in range(16)]
XTI_SLOTS = SLOTS[:8]
LINES = (
    "One line per group of layers: LAYERS [@START-END] [xSTRENGTH]: {what}. LAYERS is middle, outer, down, up, all, "
    "innermost 3, double or single (Flux), numbers (0-5,10-15) or names (IN08, MID). START-END is a part of the "
    "sampling from 0 to 1; STRENGTH blends from the base (0) to the line (1). Layers without a line keep the base "
    "prompt."
)
SINGLE_BLOCKS = io.Boolean.Input(
    "single_blocks",
    default=False,
    optional=True,
    advanced=True,
    tooltip="Address each transformer block of a UNet by itself (IN04.0, IN04.1): SDXL then has 70 layers instead of "
    "11. "
    "Off for SD1.x.",
)
MODEL_OUTPUT = io.Model.Output(
    tooltip="The model that reads the layers' prompts. Without such a CONDITIONING it draws exactly as before."
)


class PerBlockPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_PerBlockPrompt",
            display_name="Per-Block Prompt Conditioning",
            category=CATEGORY,
            description=(
                "Gives every cross-attention layer its own prompt (P+): the object in the inner layers and its colour "
                "in the outer ones. "
                "Costs no extra model evaluation with cross-attention; per further prompt, on Flux and Chroma the part "
                "of text among all tokens (6 to 33 %), on the others a whole evaluation. "
                "Works with areas, masks, ControlNet and any sampler."
            ),
            search_aliases=[
                "P+",
                "per-block prompt",
                "layer prompt",
                "prompt injection",
                "prompt plus",
                "extended textual conditioning",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="SD1.x, SD2.x, SDXL, a transformer with cross-attention (Wan, LTXV, HunyuanDiT, ...), or "
                    "Flux, Chroma, SD3, Qwen-Image, Mage-Flow, Lumina 2 / Z-Image.",
                ),
                io.Clip.Input("clip", tooltip="The text encoder of the model. All prompts are encoded in one batch."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="a red cube",
                    tooltip="The base prompt, for all layers without a line of their own; weights and embeddings as in "
                    "CLIP Text Encode.",
                ),
                io.String.Input(
                    "layers",
                    multiline=True,
                    default="middle: a green lizard",
                    tooltip=LINES.format(what="PROMPT"),
                    extra_dict={"widgetType": EDITOR},
                ),
                io.Combo.Input(
                    "controlnet",
                    options=[BASE, INNERMOST, MATCHING],
                    default=BASE,
                    optional=True,
                    advanced=True,
                    tooltip="Which prompt a ControlNet reads: one for all its layers, or (U-nets) in each of them what "
                    "the layer of the same place reads.",
                ),
                io.Combo.Input(
                    "pooled",
                    options=[BASE, INNERMOST],
                    default=BASE,
                    optional=True,
                    advanced=True,
                    tooltip="Which prompt the pooled vector is made from; SDXL reads it beside the layers, SD1.x does "
                    "not.",
                ),
                SINGLE_BLOCKS,
                io.Autogrow.Input(
                    "xtis",
                    template=io.Autogrow.TemplateNames(
                        XTIType.Input("xti", tooltip="An XTI that the base prompt or a line calls by its letter."),
                        names=XTI_SLOTS,
                        min=0,
                    ),
                    optional=True,
                    tooltip="Learned tokens: xti:A, or xti:name of its file, in the base prompt or in any line stands "
                    "for the vectors of the layer that reads it.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                MODEL_OUTPUT,
                io.Conditioning.Output(
                    tooltip="The prompt with what each layer reads. Goes wherever a CONDITIONING goes."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model, clip, text, layers, controlnet=BASE, pooled=BASE, single_blocks=False,
        xtis: io.Autogrow.Type | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        if clip is None:
            raise ValueError(
                "Per-Block Prompt Conditioning needs the CLIP of the model; the checkpoint gave none, load it "
                "separately."
            )
        table = layer_table(model, single_blocks)
        tell_canvas(table, cls.hidden.unique_id)
        if controlnet == MATCHING and table.layers[0].direction == "flat":
            raise ValueError(
                f"{MATCHING} is for the ControlNets of U-nets, which have their layers; for {table.architecture} "
                f"choose {BASE} or {INNERMOST}."
            )
        lines = parse(layers, table)
        connected = {slot: xti for slot, xti in (xtis or {}).items() if xti is not None}
        written = _Written(clip, table, connected, text, lines)
        inner = _text_of_innermost(lines, table, text)
        conditioning = []
        for i, (entry, texts) in enumerate(encode_texts(clip, written.tokens)):
            if inner != text and INNERMOST in (controlnet, pooled):
                chosen = clip.encode_from_tokens_scheduled(written.at_innermost(inner))[i]
                entry = _with_one_text(entry, chosen, controlnet == INNERMOST, pooled == INNERMOST)

            def text_at(line, layer, texts=texts):
                return texts[written.numbers[text if line is None else line.text, layer]]

            conditioning.append(with_lines(entry, texts[0], lines, text_at, table, controlnet == MATCHING))
        return io.NodeOutput(_reading(model, conditioning), conditioning)


class _Written:
    """The texts of the base prompt and the lines, tokenized once for every group of layers that reads the same.

    tokens: first the base prompt as the innermost layer reads it. numbers: (text, layer) → its place in tokens.
    """

    def __init__(self, clip, table, connected: dict, text: str, lines: list[LayerPrompt]):
        self.clip, self.table, self.connected = clip, table, connected
        self.tokens: list[dict] = []
        self.numbers: dict[tuple[str, int], int] = {}
        wanted = {text: set(range(len(table)))}
        for line in lines:
            if line.strength != 0.0:
                wanted.setdefault(line.text, set()).update(line.layers)
        for prompt, readers in wanted.items():
            marked, used = self._marked(prompt)
            for group in groups_of(used, table):
                if readers.intersection(group):
                    self.numbers |= {(prompt, layer): len(self.tokens) for layer in group}
                    self.tokens.append(tokenize_at(clip, marked, used, table.names[group[0]]))

    def _marked(self, prompt: str) -> tuple[str, dict]:
        marked, used = mark(prompt, self.connected)
        return marked, {name: fit(xti, self.table, self.clip) for name, xti in used.items()}

    def at_innermost(self, prompt: str) -> dict:
        """The tokens of a text as the innermost layer reads it."""
        marked, used = self._marked(prompt)
        return tokenize_at(self.clip, marked, used, self.table.names[self.table.inside_out()[0]])


def _text_of_innermost(lines: list[LayerPrompt], table, base: str) -> str:
    """What the innermost layer reads when the sampling starts."""
    line = schedule(lines, table)[0].prompts[table.inside_out()[0]]
    return base if line is None or line.strength == 0.0 else line.text


def _with_one_text(entry: list, chosen: list, controlnet: bool, pooled: bool) -> list:
    """The entry whose ControlNets, or whose pooled vector, are told another text (the options of core's
    CLIPTextEncodeControlnet).
    """
    options = dict(entry[1])
    if controlnet:
        options.update(cross_attn_controlnet=chosen[0], pooled_output_controlnet=chosen[1].get("pooled_output"))
    if pooled:
        options.update(pooled_output=chosen[1].get("pooled_output"))
    return [entry[0], options]


def _reading(model, conditioning: list):
    """The MODEL, made to read layer prompts if any entry carries them."""
    return read_layer_prompts(model) if any(KEY in entry[1].get("model_conds", {}) for entry in conditioning) else model


class PerBlockConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        slots = io.Autogrow.TemplateNames(
            io.Conditioning.Input(
                "conditioning", tooltip="A conditioning that lines of the table call by the letter of its socket."
            ),
            names=SLOTS,
            min=1,
        )
        return io.Schema(
            node_id="GuidanceLab_PerBlockConditioning",
            display_name="Per-Block Conditioning",
            category=CATEGORY,
            description=(
                "Gives every cross-attention layer its own CONDITIONING (P+): for prompts from other encoders, "
                "blended, concatenated or timed ones. Costs no extra model evaluation with cross-attention; see the "
                "help page for Flux, SD3 and their kind."
            ),
            search_aliases=[
                "P+",
                "per-block conditioning",
                "layer conditioning",
                "prompt injection",
                "different conditioning per block",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="SD1.x, SD2.x, SDXL, a transformer with cross-attention (Wan, LTXV, HunyuanDiT, ...), or "
                    "Flux, Chroma, SD3, Qwen-Image, Mage-Flow, Lumina 2 / Z-Image.",
                ),
                io.Conditioning.Input(
                    "base",
                    tooltip="For all layers that have no line of their own; its areas, masks, pooled vector and "
                    "ControlNets stay.",
                ),
                io.String.Input(
                    "layers",
                    multiline=True,
                    default="middle: A",
                    tooltip=LINES.format(what="LETTER of a socket"),
                    extra_dict={"widgetType": EDITOR},
                ),
                io.Autogrow.Input(
                    "conditionings",
                    template=slots,
                    tooltip="Conditionings for single layers, A to P; each with one entry.",
                ),
                SINGLE_BLOCKS,
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                MODEL_OUTPUT,
                io.Conditioning.Output(
                    tooltip="The base with what each layer reads. Goes wherever a CONDITIONING goes."
                ),
            ],
        )

    @classmethod
    def execute(cls, model, base, layers, conditionings: io.Autogrow.Type, single_blocks=False) -> io.NodeOutput:
        table = layer_table(model, single_blocks)
        tell_canvas(table, cls.hidden.unique_id)
        lines = parse(layers, table)
        texts = {line.text: _slot(line, conditionings) for line in lines}
        conditioning = []
        for entry in base:
            if KEY in entry[1].get("model_conds", {}):
                raise ValueError(
                    "The base of Per-Block Conditioning has layer prompts already; put all of them into one node."
                )
            own = text_of(entry)

            def text_at(line, layer, own=own):
                return own if line is None else texts[line.text]

            conditioning.append(with_lines(entry, own, lines, text_at, table))
        return io.NodeOutput(_reading(model, conditioning), conditioning)


def _slot(line: LayerPrompt, conditionings: dict) -> dict:
    """The text of the CONDITIONING that a line calls."""
    entries = conditionings.get(line.text.upper())
    if entries is None:
        connected = ", ".join(name for name, value in conditionings.items() if value is not None) or "none"
        raise ValueError(f'Line {line.line} calls the conditioning "{line.text}", and connected are {connected}.')
    if len(entries) != 1 or KEY in entries[0][1].get("model_conds", {}):
        raise ValueError(
            f"The conditioning {line.text.upper()} has {len(entries)} parts or layer prompts of its own; a layer "
            f"reads one plain prompt. "
            "Combine, areas and timestep ranges belong on the base or after this node."
        )
    return text_of(entries[0])


NODES = [PerBlockPrompt, PerBlockConditioning]
