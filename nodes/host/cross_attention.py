"""A prompt per cross-attention layer, carried with each conditioning through ComfyUI's own sampling.

    table = layer_table(model)                            # xti.layers.LayerTable of this model; ValueError where there is none
    model = read_layer_prompts(model)                     # a clone whose evaluations obey what conditionings carry
    entry = carry([context, options], LayerPrompts(...))  # a CONDITIONING entry that carries it

What an entry carries sits in its `model_conds`, so it goes wherever the host takes this conditioning: into areas, masks, timestep
ranges, hooks, split batches, and never into another conditioning of the batch. What evaluates it are three wrappers on the MODEL:
around OUTER_SAMPLE, which prepares a sampling; around CALC_COND_BATCH, so that conditionings without layer prompts still share a batch
with those that have them; and around APPLY_MODEL, which gives each layer the rows of its own text. Training, which has contexts with
gradients and no conditioning, uses `at_unet_layers` alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import comfy.conds
import comfy.model_base
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ...guidance.schedule import float32
from ...xti.contexts import common_length, repeat_to
from ...xti.layers import LayerTable, table_for
from . import cross_attention_dit as dit
from .blocks import is_unet, list_blocks

KEY = "guidance_lab_layers"
MOST_REPEATS = 4  # ComfyUI does not batch prompts either when one would have to be repeated more often
Text = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Stretch:
    """A part of the sampling, up to `end` percent (0-1, inclusive): which text each layer reads, None for the base prompt."""

    end: float
    choice: tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class LayerPrompts:
    """What one conditioning says to each layer.

    table: the layers meant. base: the context [B, T, D] of the conditioning it belongs to. texts: the other contexts, each a dict with
    "cross_attn" [B, T, D] and what its text encoder gave besides (`dit.COMPANIONS`). stretches: in order, the last one ends at 1.
    """

    table: LayerTable
    base: torch.Tensor
    texts: tuple[Text, ...]
    stretches: tuple[Stretch, ...]

    @property
    def is_plain(self) -> bool:
        """Whether every layer reads the base prompt at all times."""
        return all(choice is None for stretch in self.stretches for choice in stretch.choice)


def layer_table(model: ModelPatcher, per_block: bool = False) -> LayerTable:
    """The cross-attention layers of a MODEL. per_block: each transformer block of a UNet by itself.

    ValueError, with the reason, where this model cannot be given a prompt per layer.
    """
    table = table_for(model.model.model_config.unet_config, per_block)
    network = model.get_model_object("diffusion_model")
    if not is_unet(network):
        dit.refuse_unknown(network)
    elif list(dict.fromkeys(layer.block for layer in table.layers)) != list_blocks(network):
        raise ValueError("A prompt per layer is not possible for this U-net: its attention also runs over time, as in video models.")
    return table


def carry(entry: list, prompts: LayerPrompts) -> list:
    """The CONDITIONING entry [context, options] with layer prompts on it; the entry itself where there is nothing to carry."""
    if prompts.is_plain:
        return entry
    model_conds = {**entry[1].get("model_conds", {}), KEY: LayerCond(prompts)}
    return [entry[0], {**entry[1], "model_conds": model_conds}]


def read_layer_prompts(model: ModelPatcher) -> ModelPatcher:
    """A clone of the MODEL that obeys layer prompts; without any in the conditionings it samples exactly as before."""
    patched = model.clone()
    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, _prepare),
        (WrappersMP.CALC_COND_BATCH, _same_keys),
        (WrappersMP.APPLY_MODEL, _apply_model),
    ):
        if not patched.get_wrappers(kind, KEY):
            patched.add_wrapper_with_key(kind, KEY, wrapper)
    return patched


class LayerCond(comfy.conds.CONDRegular):
    """Layer prompts as the host batches them. None stands for a conditioning that has none: its own context goes to all layers."""

    def __init__(self, prompts: LayerPrompts | None, rows: int = 1, base_tokens: int | None = None):
        self.cond, self.rows = prompts, rows
        self.base_tokens = base_tokens if prompts is None else prompts.base.shape[1]

    def process_cond(self, batch_size, **kwargs):
        return LayerCond(self.cond, batch_size, self.base_tokens)

    def can_concat(self, other):
        tokens = [self.base_tokens, other.base_tokens]
        tokens += [text["cross_attn"].shape[1] for cond in (self, other) if cond.cond for text in cond.cond.texts]
        architectures = {cond.cond.table.architecture for cond in (self, other) if cond.cond}
        if any(architecture in dit.FIXED_LENGTH for architecture in architectures):
            return len(set(tokens)) == 1
        return math.lcm(*tokens) <= MOST_REPEATS * min(tokens)

    def concat(self, others):
        return LayerBatch([self, *others])

    def size(self):
        return [1]


class LayerBatch:
    """The layer prompts of one evaluation: one `LayerCond` per chunk of the batch, in its order."""

    def __init__(self, chunks: list[LayerCond]):
        self.chunks = chunks


class LayerReader:
    """Looks up what each layer reads in one evaluation, and keeps what it made for the next layer with the same texts.

    model: the host's BaseModel. x: [rows, ...] and sigma [rows] of the evaluation; tensors are made in the model's dtype, on x's device.
    """

    def __init__(self, batch: LayerBatch, model: comfy.model_base.BaseModel, x: torch.Tensor, sigma: torch.Tensor):
        self.batch, self.device, self.dtype = batch, x.device, model.get_dtype_inference()
        self.choices = [_choice_by_place(chunk.cond, model, sigma) for chunk in batch.chunks]
        self.made: dict = {}

    def picks(self, block: tuple[str, int], depth: int = 0) -> tuple[Text | None, ...]:
        """The text that each chunk of the batch gives this layer, None for its base prompt."""
        return tuple(choice.get((block, depth), choice.get(block)) for choice in self.choices)

    def tensor(self, text: Text, key: str, rows: int) -> torch.Tensor | None:
        """One tensor of a text, for that many rows of the batch."""
        if text.get(key) is None:
            return None
        tensor = comfy.model_base.convert_tensor(text[key], self.dtype, self.device)
        return comfy.utils.repeat_to_batch_size(tensor, rows)

    def rows(self, picks: tuple[Text | None, ...], base: torch.Tensor, make: Callable, what: str = "context") -> torch.Tensor:
        """The layer's input [rows, T, ...]: `base` for chunks without a text, `make(text, part of base, its rows)` for the others."""
        if not any(picks):
            return base
        key = (what, *map(id, picks))
        if key not in self.made:
            parts, start = [], 0
            for text, chunk in zip(picks, self.batch.chunks, strict=True):
                rows = slice(start, start + chunk.rows)
                parts.append(base[rows] if text is None else make(text, base[rows], rows))
                start = rows.stop
            self.made[key] = _join(parts)
        return self.made[key]


def _choice_by_place(prompts: LayerPrompts | None, model, sigma: torch.Tensor) -> dict:
    """{block or (block, depth): its text} at this noise level."""
    if prompts is None:
        return {}
    stretch = prompts.stretches[-1]
    if len(prompts.stretches) > 1:
        now = float32(sigma.flatten()[0].item())
        ends = ((stretch, float32(model.model_sampling.percent_to_sigma(stretch.end))) for stretch in prompts.stretches)
        stretch = next((stretch for stretch, lowest in ends if now >= lowest), stretch)
    return {
        layer.block if layer.depth is None else (layer.block, layer.depth): prompts.texts[choice]
        for layer, choice in zip(prompts.table.layers, stretch.choice, strict=True)
        if choice is not None
    }


def _join(parts: list[torch.Tensor]) -> torch.Tensor:
    """Chunks [rows, T_i, D] under each other, each repeated along its tokens to one length."""
    length = common_length([part.shape[1] for part in parts])
    return torch.cat([repeat_to(part, length) for part in parts])


def at_unet_layers(options: dict, context_of: Callable[[tuple[str, int], int, torch.Tensor], torch.Tensor]) -> dict:
    """A copy of `transformer_options` in which each cross-attention of a UNet reads `context_of(block, depth, its context)`.

    First of all attn2 patches, so that what other patches add to the context is added to the layer's own.
    """

    def patch(n, context, value, extra):
        own = context_of(extra["block"], extra.get("block_index", 0), context)
        return (n, context, value) if own is context else (n, own, own)

    patches = options.get("patches", {})
    return {**options, "patches": {**patches, "attn2_patch": [patch, *patches.get("attn2_patch", [])]}}


def _unet_options(reader: LayerReader, options: dict) -> dict:
    def context_of(block, depth, context):
        return reader.rows(reader.picks(block, depth), context, lambda text, base, rows: reader.tensor(text, "cross_attn", base.shape[0]))

    return at_unet_layers(options, context_of)


def _apply_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
    """Around each forward of the network: takes the layer prompts out of its arguments and puts them at its layers."""
    batch: LayerBatch | None = kwargs.pop(KEY, None)
    options = transformer_options or {}
    if batch is not None and any(chunk.cond for chunk in batch.chunks):
        model = executor.class_obj
        reader = LayerReader(batch, model, x, t)
        if is_unet(model.diffusion_model):
            options = _unet_options(reader, options)
        else:
            options = dit.with_layer_texts(reader, model.diffusion_model, options, c_crossattn)
    return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)


def _same_keys(executor, model, conds, x, timestep, model_options):
    """Around the prediction of several conditionings: those without layer prompts get empty ones where others have some.

    The host batches only conditionings with the same keys; without this, positive and negative would run one after another.
    """
    if any(KEY in cond["model_conds"] for entries in conds if entries for cond in entries):
        conds = [None if entries is None else [_with_key(cond) for cond in entries] for entries in conds]
    return executor(model, conds, x, timestep, model_options)


def _with_key(cond: dict) -> dict:
    model_conds = cond["model_conds"]
    if KEY in model_conds or "c_crossattn" not in model_conds:
        return cond
    context = cond.get("cross_attn", model_conds["c_crossattn"].cond)
    return {**cond, "model_conds": {**model_conds, KEY: LayerCond(None, base_tokens=context.shape[1])}}


def _prepare(executor, *args, **kwargs):
    """Before a sampling: layer prompts that no longer belong to their conditioning, and all others moved to the device once.

    ConditioningZeroOut means the whole prompt, so the layer prompts go too. ValueError after nodes that change the base prompt alone.
    """
    guider = executor.class_obj
    device, dtype = guider.model_patcher.load_device, guider.model_patcher.model.get_dtype_inference()
    for entries in guider.conds.values():
        for cond in entries:
            carried = cond["model_conds"].get(KEY)
            if carried is None or carried.cond is None:
                continue
            model_conds = {key: value for key, value in cond["model_conds"].items() if key != KEY}
            if _same_context(cond["cross_attn"], carried.cond.base):
                model_conds[KEY] = LayerCond(_moved(carried.cond, device, dtype))
            elif torch.count_nonzero(cond["cross_attn"]) > 0:
                raise ValueError(
                    "A conditioning was changed after it got its layer prompts (by ConditioningAverage, ConditioningConcat or the like), "
                    "which changes its base prompt alone; use such nodes before Per-Block Conditioning, or the strength of a layer."
                )
            cond["model_conds"] = model_conds  # of a copy that lives as long as this sampling
    return executor(*args, **kwargs)


def _moved(prompts: LayerPrompts, device: torch.device, dtype: torch.dtype) -> LayerPrompts:
    """The same prompts as the network takes them, so that no step has to wait for a transfer."""
    texts = tuple({key: comfy.model_base.convert_tensor(value, dtype, device) for key, value in text.items()} for text in prompts.texts)
    return replace(prompts, texts=texts)


def _same_context(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a is b or (a.shape == b.shape and torch.equal(a, b.to(a)))
