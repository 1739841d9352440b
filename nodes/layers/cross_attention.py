"""A prompt per cross-attention layer, carried with each conditioning through ComfyUI's own sampling.

    table = layer_table(model)  # xti.layers.LayerTable of this model; ValueError where there is none
    model = read_layer_prompts(model)                     # a clone whose evaluations obey what conditionings carry
    entry = carry([context, options], LayerPrompts(...))  # a CONDITIONING entry that carries it

What an entry carries sits in its `model_conds`, so it goes wherever the host takes this conditioning: into areas,
masks, timestep ranges, hooks, split batches, and never into another conditioning of the batch. What evaluates it are
three wrappers on the MODEL: around OUTER_SAMPLE, which prepares a sampling; around CALC_COND_BATCH, which numbers the
rows of each conditioning, so that its prompts follow them through tiles and split batches; and around APPLY_MODEL,
which gives each layer the rows of its own text. Another model that evaluates the same conditionings in this sampling,
such as the guide of a pair, gets the last two by `read_in_run`. Training, which has contexts with gradients and no
conditioning, uses `at_unet_layers` alone.
"""

from collections.abc import Callable

import comfy.model_base
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ...xti.layers import LayerTable, table_for
from ..host.blocks import is_unet, list_blocks
from . import cross_attention_dit as dit
from . import joint_rows
from .carried import KEY, LayerPrompts, LayerRows, Stretch, Text, carry, prepare, with_rows
from .control_layers import with_matching_controls
from .network_class import class_name
from .reader import LayerReader, chunks_of

__all__ = [
    "KEY", "LayerPrompts", "LayerRows", "Stretch", "Text",
    "at_unet_layers", "carry", "layer_table", "read_in_run", "read_layer_prompts",
]  # fmt: skip


def layer_table(model: ModelPatcher, per_block: bool = False) -> LayerTable:
    """The cross-attention layers of a MODEL. per_block: each transformer block of a UNet by itself.

    ValueError, with the reason, where this model cannot be given a prompt per layer.
    """
    return _table_of(model.model, model.get_model_object("diffusion_model"), per_block)


def _table_of(model: comfy.model_base.BaseModel, network: torch.nn.Module, per_block: bool) -> LayerTable:
    table = table_for(model.model_config.unet_config, per_block)
    if not is_unet(network):
        dit.refuse_unknown(network)
    elif list(dict.fromkeys(layer.block for layer in table.layers)) != list_blocks(network):
        raise ValueError(
            "A prompt per layer is not possible for this U-net: its attention also runs over time, as in video models."
        )
    return table


def read_layer_prompts(model: ModelPatcher) -> ModelPatcher:
    """A clone of the MODEL that obeys layer prompts; without any in the conditionings it samples exactly as before."""
    patched = model.clone()
    if not patched.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        # First, so that other wrappers (and the models that they bring) see checked conditionings.
        others = patched.wrappers.get(WrappersMP.OUTER_SAMPLE, {})
        patched.wrappers[WrappersMP.OUTER_SAMPLE] = {KEY: [_prepare], **others}
        for kind, wrapper in _READING.items():
            patched.add_wrapper_with_key(kind, KEY, wrapper)
    return patched


def read_in_run(options: dict, conds: dict[str, list[dict]]) -> None:
    """Makes another model of a sampling read layer prompts too, where any of its conditionings carry some.

    options: the model options under which it is evaluated in this run; they are changed. conds: its converted
    conditionings {"positive": [...]}.
    """
    wrappers = options.setdefault("transformer_options", {}).get("wrappers", {})
    if any(KEY in cond["model_conds"] for entries in conds.values() for cond in entries):
        for kind, wrapper in _READING.items():
            if KEY not in wrappers.get(kind, {}):
                add_wrapper_with_key(kind, KEY, wrapper, options, is_model_options=True)


def at_unet_layers(options: dict, context_of: Callable[[tuple[str, int], int, torch.Tensor], torch.Tensor]) -> dict:
    """A copy of `transformer_options` in which each cross-attention of a UNet reads `context_of(block, depth, its
    context)`.

    First of all attn2 patches, so that what other patches add to the context is added to the layer's own.
    """

    def patch(n, context, value, extra):
        own = context_of(extra["block"], extra.get("block_index", 0), context)
        return (n, context, value) if own is context else (n, own, own)

    patches = options.get("patches", {})
    return {**options, "patches": {**patches, "attn2_patch": [patch, *patches.get("attn2_patch", [])]}}


def _unet_options(reader: LayerReader, options: dict) -> dict:
    def context_of(block, depth, context):
        return reader.rows(
            reader.picks(block, depth),
            context,
            lambda text, base, rows: reader.tensor(text, "cross_attn", base.shape[0]),
        )

    return at_unet_layers(options, context_of)


def _prepare(executor, *args, **kwargs):
    """Around a whole sampling: its conditionings are checked, and their layer prompts moved to the device once."""
    guider = executor.class_obj
    for entries in guider.conds.values():
        prepare(entries, guider.model_patcher.load_device, guider.model_patcher.model.get_dtype_inference())
    return executor(*args, **kwargs)


def _number_rows(executor, model, conds, x, timestep, model_options):
    """Around the prediction of several conditionings: numbers their rows by the layer prompts that they read."""
    conds, prompts = with_rows(conds)
    if prompts:
        for each in prompts:
            _refuse_other_layers(each.table, model)
        conds = with_matching_controls(conds, prompts, model)
        options = {**model_options.get("transformer_options", {}), KEY: prompts}
        model_options = {**model_options, "transformer_options": options}
    return executor(model, conds, x, timestep, model_options)


def _refuse_other_layers(table: LayerTable, model: comfy.model_base.BaseModel) -> None:
    per_block = any(layer.depth is not None for layer in table.layers)
    own = _table_of(model, model.diffusion_model, per_block)
    if own.names != table.names:
        raise ValueError(
            f"A conditioning has prompts for {len(table)} layers of {table.architecture}, and a model that reads it "
            f"has {len(own)} layers of {own.architecture}: give a guide of other layers its own guide_positive."
        )


def _apply_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
    """Around each forward of the network: takes the row numbers out of its arguments and puts the texts at its
    layers.
    """
    options = transformer_options or {}
    numbers, prompts = kwargs.pop(KEY, None), options.get(KEY)
    if prompts:
        chunks = chunks_of(numbers, prompts, x.shape[0])
        options = {key: value for key, value in options.items() if key != KEY}
        if any(each is not None for each, _ in chunks):
            model = executor.class_obj
            reader = LayerReader(chunks, model, x, t)
            if is_unet(model.diffusion_model):
                options = _unet_options(reader, options)
            elif class_name(model.diffusion_model) in joint_rows.FAMILIES:
                given = x, t, c_concat, c_crossattn, control, options, kwargs
                return joint_rows.evaluate(executor, reader, model.diffusion_model, *given)
            else:
                options = dit.with_layer_texts(reader, model.diffusion_model, options, c_crossattn)
    return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)


_READING = {WrappersMP.CALC_COND_BATCH: _number_rows, WrappersMP.APPLY_MODEL: _apply_model}
