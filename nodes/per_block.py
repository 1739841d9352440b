"""P+: a prompt per cross-attention layer, from text or from CONDITIONINGs."""

from ..xti.prompts import LayerPrompt, parse, schedule
from ._api import io
from .host.cross_attention import KEY, layer_table, read_layer_prompts
from .host.encode_texts import encode_texts, text_of
from .layer_inputs import with_lines

CATEGORY = "Guidance Lab/Per-Block Prompts"
BASE, INNERMOST = "base prompt", "innermost layer"
SLOTS = [chr(ord("A") + i) for i in range(16)]
LINES = (
    "One line per group of layers: LAYERS [@START-END] [xSTRENGTH]: {what}. LAYERS is middle, outer, down, up, all, innermost 3, numbers "
    "(0-5,10-15) or names (IN08, MID). START-END is a part of the sampling from 0 to 1; STRENGTH blends from the base (0) to the line (1). "
    "Layers without a line keep the base prompt."
)
SINGLE_BLOCKS = io.Boolean.Input(
    "single_blocks",
    default=False,
    optional=True,
    advanced=True,
    tooltip="Address each transformer block of a UNet by itself (IN04.0, IN04.1): SDXL then has 70 layers instead of 11. Off for SD1.x.",
)
MODEL_OUTPUT = io.Model.Output(tooltip="The model that reads the layers' prompts. Without such a CONDITIONING it draws exactly as before.")


class PerBlockPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_PerBlockPrompt",
            display_name="Per-Block Prompt Conditioning",
            category=CATEGORY,
            description=(
                "Gives every cross-attention layer its own prompt (P+): the object in the inner layers and its colour in the outer ones. "
                "Costs no extra model evaluation; works with areas, masks, ControlNet and any sampler."
            ),
            search_aliases=["P+", "per-block prompt", "layer prompt", "prompt injection", "prompt plus", "extended textual conditioning"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="SD1.x, SD2.x, SDXL, or a transformer with true cross-attention (Wan, LTXV, HunyuanDiT, ...)."
                ),
                io.Clip.Input("clip", tooltip="The text encoder of the model. All prompts are encoded in one batch."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="a red cube",
                    tooltip="The base prompt, for all layers without a line of their own; weights and embeddings as in CLIP Text Encode.",
                ),
                io.String.Input(
                    "layers",
                    multiline=True,
                    default="middle: a green lizard",
                    tooltip=LINES.format(what="PROMPT"),
                    extra_dict={"widgetType": "GUIDANCELAB_LAYER_TABLE"},
                ),
                io.Combo.Input(
                    "controlnet",
                    options=[BASE, INNERMOST],
                    default=BASE,
                    optional=True,
                    advanced=True,
                    tooltip="Which prompt a ControlNet reads; it has one text for all its layers.",
                ),
                io.Combo.Input(
                    "pooled",
                    options=[BASE, INNERMOST],
                    default=BASE,
                    optional=True,
                    advanced=True,
                    tooltip="Which prompt the pooled vector is made from; SDXL reads it beside the layers, SD1.x does not.",
                ),
                SINGLE_BLOCKS,
            ],
            outputs=[
                MODEL_OUTPUT,
                io.Conditioning.Output(tooltip="The prompt with what each layer reads. Goes wherever a CONDITIONING goes."),
            ],
        )

    @classmethod
    def execute(cls, model, clip, text, layers, controlnet=BASE, pooled=BASE, single_blocks=False) -> io.NodeOutput:
        if clip is None:
            raise ValueError("Per-Block Prompt Conditioning needs the CLIP of the model; the checkpoint gave none, load it separately.")
        table = layer_table(model, single_blocks)
        lines = parse(layers, table)
        own = list(dict.fromkeys(line.text for line in lines if line.text != text and line.strength != 0.0))
        encoded = encode_texts(clip, [clip.tokenize(prompt) for prompt in (text, *own)])
        inner = _text_of_innermost(lines, table, text)
        conditioning = []
        for i, (entry, (base, *texts)) in enumerate(encoded):
            if inner != text and INNERMOST in (controlnet, pooled):
                chosen = clip.encode_from_tokens_scheduled(clip.tokenize(inner))[i]
                entry = _with_one_text(entry, chosen, controlnet == INNERMOST, pooled == INNERMOST)
            by_text = {line.text: base for line in lines} | dict(zip(own, texts, strict=True))
            conditioning.append(with_lines(entry, base, lines, by_text, table))
        return io.NodeOutput(_reading(model, conditioning), conditioning)


def _text_of_innermost(lines: list[LayerPrompt], table, base: str) -> str:
    """What the innermost layer reads when the sampling starts."""
    line = schedule(lines, table)[0].prompts[table.inside_out()[0]]
    return base if line is None or line.strength == 0.0 else line.text


def _with_one_text(entry: list, chosen: list, controlnet: bool, pooled: bool) -> list:
    """The entry whose ControlNets, or whose pooled vector, are told another text (the options of core's CLIPTextEncodeControlnet)."""
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
            io.Conditioning.Input("conditioning", tooltip="A conditioning that lines of the table call by the letter of its socket."),
            names=SLOTS,
            min=1,
        )
        return io.Schema(
            node_id="GuidanceLab_PerBlockConditioning",
            display_name="Per-Block Conditioning",
            category=CATEGORY,
            description=(
                "Gives every cross-attention layer its own CONDITIONING (P+): for prompts from other encoders, blended, concatenated or "
                "timed ones. Costs no extra model evaluation."
            ),
            search_aliases=["P+", "per-block conditioning", "layer conditioning", "prompt injection", "different conditioning per block"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="SD1.x, SD2.x, SDXL, or a transformer with true cross-attention (Wan, LTXV, HunyuanDiT, ...)."
                ),
                io.Conditioning.Input(
                    "base", tooltip="For all layers that have no line of their own; its areas, masks, pooled vector and ControlNets stay."
                ),
                io.String.Input("layers", multiline=True, default="middle: A", tooltip=LINES.format(what="LETTER of a socket")),
                io.Autogrow.Input("conditionings", template=slots, tooltip="Conditionings for single layers, A to P; each with one entry."),
                SINGLE_BLOCKS,
            ],
            outputs=[
                MODEL_OUTPUT,
                io.Conditioning.Output(tooltip="The base with what each layer reads. Goes wherever a CONDITIONING goes."),
            ],
        )

    @classmethod
    def execute(cls, model, base, layers, conditionings: io.Autogrow.Type, single_blocks=False) -> io.NodeOutput:
        table = layer_table(model, single_blocks)
        lines = parse(layers, table)
        texts = {line.text: _slot(line, conditionings) for line in lines}
        conditioning = []
        for entry in base:
            if KEY in entry[1].get("model_conds", {}):
                raise ValueError("The base of Per-Block Conditioning has layer prompts already; put all of them into one node.")
            conditioning.append(with_lines(entry, text_of(entry), lines, texts, table))
        return io.NodeOutput(_reading(model, conditioning), conditioning)


def _slot(line: LayerPrompt, conditionings: dict) -> dict:
    """The text of the CONDITIONING that a line calls."""
    entries = conditionings.get(line.text.upper())
    if entries is None:
        connected = ", ".join(name for name, value in conditionings.items() if value is not None) or "none"
        raise ValueError(f'Line {line.line} calls the conditioning "{line.text}", and connected are {connected}.')
    if len(entries) != 1 or KEY in entries[0][1].get("model_conds", {}):
        raise ValueError(
            f"The conditioning {line.text.upper()} has {len(entries)} parts or layer prompts of its own; a layer reads one plain prompt. "
            "Combine, areas and timestep ranges belong on the base or after this node."
        )
    return text_of(entries[0])


NODES = [PerBlockPrompt, PerBlockConditioning]
