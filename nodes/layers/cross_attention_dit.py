"""A prompt per layer in diffusion transformers with true cross-attention: how each family makes its blocks' text from a
context.

Where a UNet layer takes the text encoder's output as it is, these networks first project it (and add tokens, masks, a
second text). So each family has one function that does to a layer's text what its network does to the base prompt, and
puts the result at its blocks by ComfyUI's hooks. All of them are checked class by class: a subclass may walk its blocks
differently.
"""

import inspect

import torch

from . import joint_rows, joint_streams
from .network_class import class_name

# What some text encoders give besides the context, under the names of the conditioning's options.
COMPANIONS = ("attention_mask", "conditioning_mt5xl", "attention_mask_mt5xl", "t5xxl_ids", "t5xxl_weights")
# Architectures whose text has positions, masks or a set length: a context repeated along its tokens is another text
# there.
FIXED_LENGTH = ("ltxv", "hydit", "hydit1", "kandinsky5", "anima")
# Joint streams, in which a token that occurs twice draws twice the attention: blends only at one length.
EQUAL_LENGTH = ("flux", "chroma", "sd3", "qwen_image", "mage_flow", "lumina2")


def refuse_unknown(network: torch.nn.Module) -> None:
    """ValueError for a network whose blocks cannot be given a text each."""
    if class_name(network) not in _FAMILIES and class_name(network) not in joint_rows.FAMILIES:
        raise ValueError(
            f"A prompt per layer is not possible for this model: the blocks of {type(network).__name__} take more than "
            "the one text that its base model takes, or ComfyUI has no place to change it."
        )
    if class_name(network) in joint_streams.FAMILIES:
        joint_streams.refuse_positions(network)
    if class_name(network) == "audio.dit.AudioDiffusionTransformer" and any(
        layer.to_local_embed is not None for layer in network.transformer.layers
    ):
        raise ValueError(
            "A prompt per layer is not possible for this audio model: ComfyUI's block hook would drop its local "
            "conditioning, which only Stable Audio 1 does without."
        )
    if _FAMILIES.get(class_name(network)) is _cosmos and not _has_attention_hook(network):
        raise ValueError(
            "A prompt per layer on Cosmos-Predict2 and Anima needs ComfyUI 0.30.0 or newer, whose attention lets its "
            "text be changed there: update ComfyUI."
        )


def _has_attention_hook(network: torch.nn.Module) -> bool:
    """Whether ComfyUI calls attn2 patches in the attention of Cosmos-Predict2, as 0.27 does not."""
    compute = network.blocks[0].cross_attn.compute_qkv
    return "transformer_options" in inspect.signature(compute).parameters


def with_layer_texts(reader, network: torch.nn.Module, options: dict, context: torch.Tensor) -> dict:
    """A copy of `transformer_options` that gives each block its own text.

    reader: `cross_attention.LayerReader`. context: the base prompt [rows, T, D] as the network gets it.
    """
    return _FAMILIES[class_name(network)](reader, network, options, context)


def _replace_blocks(reader, count: int, options: dict, change, original=None) -> dict:
    """`change(args, picks)` → the arguments of a block that reads these texts, at every block that has a text of its
    own.

    original: `(number, arguments)` → the block's output, in place of the host's own way to call it.
    """
    table = options.get("patches_replace", {})
    blocks = dict(table.get("dit", {}))

    def replacement(number, picks, inner):
        def run(args, extra):
            changed = {**args, **change(args, picks)}
            if inner is not None:
                return inner(changed, extra)
            return extra["original_block"](changed) if original is None else original(number, changed)

        return run

    for i in range(count):
        place = ("double_block", i)
        picks = reader.picks(place)
        if any(picks):
            blocks[place] = replacement(i, picks, blocks.get(place))
    return {**options, "patches_replace": {**table, "dit": blocks}}


def _wan(reader, network, options, context):
    """Tokens of an image prompt come first and are the same for all layers."""

    def change(args, picks):
        def make(text, base, rows):
            own = network.text_embedding(reader.tensor(text, "cross_attn", base.shape[0]))
            return torch.cat((base[:, : base.shape[1] - context.shape[1]], own), dim=1)

        return {"txt": reader.rows(picks, args["txt"], make)}

    return _replace_blocks(reader, len(network.blocks), options, change)


def _ltxv(reader, network, options, context):
    """The padding of each text is masked by its own mask."""

    def change(args, picks):
        def make(text, base, rows):
            own = reader.tensor(text, "cross_attn", base.shape[0])
            return network._prepare_context(own, base.shape[0], args["img"])[0]

        def make_mask(text, base, rows):
            mask = reader.tensor(text, "attention_mask", base.shape[0])
            return torch.zeros_like(base) if mask is None else network._prepare_attention_mask(mask, args["img"].dtype)

        changed = {"txt": reader.rows(picks, args["txt"], make)}
        if args["attention_mask"] is not None:
            changed["attention_mask"] = reader.rows(picks, args["attention_mask"], make_mask, "mask")
        return changed

    return _replace_blocks(reader, len(network.transformer_blocks), options, change)


def _hunyuan_dit(reader, network, options, context):
    """Two texts, CLIP's and T5's, whose padding is replaced by learned tokens, one after the other."""

    def change(args, picks):
        def make(text, base, rows):
            clip, mask, t5, t5_mask = (
                reader.tensor(text, key, base.shape[0])
                for key in ("cross_attn", "attention_mask", "conditioning_mt5xl", "attention_mask_mt5xl")
            )
            padding = network.text_embedding_padding.to(clip)
            t5 = network.mlp_t5(t5.flatten(0, 1)).unflatten(0, t5.shape[:2])
            clip = _padded(clip, mask, padding[: network.text_len])
            return torch.cat((clip, _padded(t5, t5_mask, padding[network.text_len :])), dim=1)

        return {"txt": reader.rows(picks, args["txt"], make)}

    return _replace_blocks(reader, len(network.blocks), options, change)


def _padded(context: torch.Tensor, mask: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    """[B, T, D] with the last tokens replaced by `padding` [P, D] where `mask` [B, T] is 0."""
    count = padding.shape[0]
    last = torch.where(mask[:, -count:].bool().unsqueeze(2), context[:, -count:], padding)
    return torch.cat((context[:, :-count], last), dim=1)


def _stable_audio(reader, network, options, context):
    """The last two tokens are the start and the length of the sound, the same for all layers."""

    def change(args, picks):
        def make(text, base, rows):
            return torch.cat(
                (network.to_cond_embed(reader.tensor(text, "cross_attn", base.shape[0])), base[:, -2:]), dim=1
            )

        return {"txt": reader.rows(picks, args["txt"], make)}

    return _replace_blocks(reader, len(network.transformer.layers), options, change)


def _kandinsky(reader, network, options, context):
    """Each text runs through the text blocks before the picture's blocks read it."""

    def change(args, picks):
        def make(text, base, rows):
            own = network.text_embeddings(reader.tensor(text, "cross_attn", base.shape[0]))
            freqs = network.rope_encode_1d(
                own.shape[1], device=own.device, dtype=own.dtype, transformer_options=options
            )
            for block in network.text_transformer_blocks:
                own = block(own, args["time_embed"][rows], freqs, transformer_options=options)
            return own

        return {"context": reader.rows(picks, args["context"], make)}

    blocks = network.visual_transformer_blocks

    def original(number, args):  # ComfyUI 0.30's own wrapper calls the block by argument names that it does not have
        inputs = args["x"], args["context"], args["time_embed"], args["freqs"]
        return {"x": blocks[number](*inputs, transformer_options=args["transformer_options"])}

    return _replace_blocks(reader, len(blocks), options, change, original)


def _cosmos(reader, network, options, context):
    """Keys and values of the cross-attention come from the layer's context; the hook is the attention's, not the
    block's.
    """

    def make(text, base, rows):
        own = reader.tensor(text, "cross_attn", base.shape[0])
        if class_name(network) == "anima.model.Anima" and "t5xxl_ids" in text:
            ids = reader.tensor({"ids": text["t5xxl_ids"].unsqueeze(0)}, "ids", base.shape[0])
            weights = text.get("t5xxl_weights")
            weights = None if weights is None else weights.unsqueeze(0).unsqueeze(-1).to(own)
            own = network.preprocess_text_embeds(own, ids, t5xxl_weights=weights)
        return own

    def patch(q, k, v, pe=None, attn_mask=None, extra_options=None):
        picks = reader.picks(("double_block", extra_options["block_index"]))
        own = reader.rows(picks, k, make)
        return {} if own is k else {"k": own, "v": own}

    patches = options.get("patches", {})
    return {**options, "patches": {**patches, "attn2_patch": [patch, *patches.get("attn2_patch", [])]}}


_FAMILIES = {
    "wan.model.WanModel": _wan,
    "lightricks.model.LTXVModel": _ltxv,
    "hydit.models.HunYuanDiT": _hunyuan_dit,
    "audio.dit.AudioDiffusionTransformer": _stable_audio,
    "kandinsky5.model.Kandinsky5": _kandinsky,
    "cosmos.predict2.MiniTrainDIT": _cosmos,
    "anima.model.Anima": _cosmos,
    **joint_streams.FAMILIES,
}
