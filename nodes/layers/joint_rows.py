"""A prompt per block where text and image tokens attend to each other, with one row of the batch per prompt.

The same definition as `joint_streams` for networks whose attention cannot be patched: every distinct prompt is a row of
its own through the whole network, and after each block the image tokens of all rows of a picture are made those of the
row whose prompt this block has. SD3, Qwen-Image and Mage-Flow have a hook around each block, Lumina 2 and Z-Image one
after it. S distinct prompts cost S evaluations.
"""

from collections.abc import Callable

import torch

from .network_class import class_name


class _Rows:
    """Row r of the evaluation becomes the rows s * rows + r, one for each stream s of the texts that it reads."""

    def __init__(self, reader, count: int, blocks: int):
        self.count, places = count, [("double_block", i) for i in range(blocks)]
        self.texts, self.reads = [], []  # for each chunk: its texts (None: the base), and which of them a block reads
        for choice in reader.choices:
            texts = list({id(choice.get(place)): choice.get(place) for place in places}.values())
            order = {id(text): s for s, text in enumerate(texts)}
            self.texts.append(texts)
            self.reads.append([order[id(choice.get(place))] for place in places])
        self.streams = max(map(len, self.texts))
        self.chunks = [rows for _, rows in reader.chunks]

    def repeated(self, value):
        """Tensors that have a row per row of the evaluation, in lists and dicts too, once for each stream."""
        if isinstance(value, torch.Tensor):
            same = value.ndim > 0 and value.shape[0] == self.count
            return value.repeat(self.streams, *[1] * (value.ndim - 1)) if same else value
        if isinstance(value, list | tuple):
            return type(value)(self.repeated(each) for each in value)
        return {key: self.repeated(each) for key, each in value.items()} if isinstance(value, dict) else value

    def texts_of(self, base: torch.Tensor, make: Callable) -> torch.Tensor:
        """[streams * rows, ...]: `make(text, its rows)` for each stream of each chunk, `base` where it has none."""
        parts = []
        for s in range(self.streams):
            for texts, rows in zip(self.texts, self.chunks, strict=True):
                text = texts[s] if s < len(texts) else None
                parts.append(base[rows] if text is None else make(text, rows.stop - rows.start))
        if len({part.shape[1] for part in parts}) > 1:
            raise ValueError(
                "A prompt per block needs prompts of one length for this model, whose tokens have positions, and they "
                f"have {', '.join(map(str, sorted({part.shape[1] for part in parts})))} tokens: make them equally long."
            )
        return torch.cat(parts)

    def level(self, image: torch.Tensor, block: int) -> torch.Tensor:
        """The image tokens [streams * rows, N, D] after a block: for all streams those of the one that it reads."""
        by_stream = image.unflatten(0, (self.streams, self.count))
        parts = [by_stream[reads[block], rows] for reads, rows in zip(self.reads, self.chunks, strict=True)]
        return torch.cat(parts).repeat(self.streams, *[1] * (image.ndim - 1))


def _around(rows: _Rows, options: dict, count: int) -> dict:
    """Levels the image in a replacement of each block."""
    table = options.get("patches_replace", {})
    blocks = dict(table.get("dit", {}))

    def replacement(number, inner):
        def run(args, extra):
            out = extra["original_block"](args) if inner is None else inner(args, extra)
            return {**out, "img": rows.level(out["img"], number)}

        return run

    for i in range(count):
        blocks["double_block", i] = replacement(i, blocks.get(("double_block", i)))
    return {**options, "patches_replace": {**table, "dit": blocks}}


def _after(rows: _Rows, options: dict, count: int) -> dict:
    """Levels the image in a patch that runs after each block, behind those of other nodes."""
    patches = options.get("patches", {})

    def patch(args):
        return {"img": rows.level(args["img"], args["block_index"])}

    return {**options, "patches": {**patches, "double_block": [*patches.get("double_block", []), patch]}}


# Networks of Qwen-Image's blocks, which take a mask of the text.
QWEN_IMAGE = ("qwen_image.model.QwenImageTransformer2DModel", "mage_flow.model.MageFlowTransformer2DModel")
FAMILIES = {
    "modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper": ("joint_blocks", _around),
    **dict.fromkeys(QWEN_IMAGE, ("transformer_blocks", _around)),
    "lumina.model.NextDiT": ("layers", _after),
}


def evaluate(executor, reader, network, x, t, c_concat, c_crossattn, control, options: dict, kwargs: dict):
    """The model's prediction [rows, ...] for x and t, each block of the network reading its own prompt.

    executor: the host's `apply_model`, called once with as many rows as there are streams. ValueError for prompts that
    cannot be rows of one batch.
    """
    blocks, hook = FAMILIES[class_name(network)]
    count = len(getattr(network, blocks))
    rows = _Rows(reader, x.shape[0], count)
    kwargs = {key: rows.repeated(value) for key, value in kwargs.items()}
    context, mask = _padded(rows, reader, network, c_crossattn, kwargs.get("attention_mask"))
    if mask is not None:
        kwargs["attention_mask"] = mask
    options = hook(rows, options, count)
    for key in ("cond_or_uncond", "uuids"):  # patches of other nodes find their rows by these
        if key in options:
            options[key] = [*options[key]] * rows.streams
    repeated = [rows.repeated(value) for value in (x, t, c_concat)]
    out = executor(*repeated, context, rows.repeated(control), options, **kwargs)
    return out[: x.shape[0]]


def _padded(rows: _Rows, reader, network, context: torch.Tensor, mask: torch.Tensor | None):
    """The contexts of all streams, and Qwen-Image's masks; there, texts are padded to one length and masked."""

    def make(text, count):
        return reader.tensor(text, "cross_attn", count)

    given = [text["attention_mask"] for texts in rows.texts for text in texts if text and "attention_mask" in text]
    masked = mask is not None or not all(each.bool().all() for each in given)
    if class_name(network) not in QWEN_IMAGE:
        if masked:
            raise ValueError("A prompt per block is not possible for this model together with an attention mask.")
        return rows.texts_of(context, make), None
    lengths = [text["cross_attn"].shape[1] for texts in rows.texts for text in texts if text]
    longest = max([context.shape[1], *lengths])
    if not masked and set(lengths) <= {context.shape[1]}:
        return rows.texts_of(context, make), None
    base_mask = context.new_ones(context.shape[:2]) if mask is None else mask[: rows.count]

    def make_mask(text, count):
        given = reader.tensor(text, "attention_mask", count) if "attention_mask" in text else None
        return _to_length(context.new_ones(make(text, count).shape[:2]) if given is None else given, longest)

    contexts = rows.texts_of(_to_length(context, longest), lambda text, count: _to_length(make(text, count), longest))
    return contexts, rows.texts_of(_to_length(base_mask, longest), make_mask).long()


def _to_length(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """[rows, T, ...] with zeros behind, up to `length` tokens."""
    missing = tensor.new_zeros(tensor.shape[0], length - tensor.shape[1], *tensor.shape[2:])
    return torch.cat((tensor, missing), dim=1) if missing.shape[1] else tensor
