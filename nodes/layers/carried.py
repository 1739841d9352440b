"""What a CONDITIONING carries for single layers, how it is kept from being lost, and how it follows its rows.

Layer prompts sit in the `model_conds` of a conditioning, so they go wherever the host takes it. There they are a
`LayerCond`, which no model can evaluate by itself: the wrappers of `cross_attention` turn it into `LayerRows` in each
evaluation, and a MODEL without them is refused instead of drawing the base prompt. The context itself is a
`LayeredContext`, which refuses to be mixed with another one, because the mixture would lose its layers unnoticed.
"""

import math
from dataclasses import dataclass, replace

import comfy.conds
import comfy.model_base
import torch

from ...xti.layers import LayerTable
from .cross_attention_dit import EQUAL_LENGTH, FIXED_LENGTH

KEY = "guidance_lab_layers"
PLAIN = 1  # the number of rows that read their own context; layer prompts are numbered from 2, and 0 is no number
MOST_REPEATS = 4  # ComfyUI does not batch prompts either when one would have to be repeated more often
Text = dict[str, torch.Tensor]

UNREAD = (
    "A conditioning with a prompt per layer reached a MODEL that does not read it: sample with the MODEL output of the "
    "node that made the conditioning (Per-Block Prompt Conditioning, Per-Block Conditioning or XTI Prompt)."
)
CHANGED = (
    "A conditioning was changed after it got its layer prompts (by ConditioningAverage, ConditioningConcat or the "
    "like), which changes or drops them; use such nodes before Per-Block Conditioning, or the strength of a layer."
)
_MIXING = {
    "add", "sub", "rsub", "mul", "div", "true_divide", "lerp", "addcmul", "cat", "concat", "concatenate", "stack",
    "__add__", "__radd__", "__iadd__", "__sub__", "__rsub__", "__isub__", "__mul__", "__rmul__", "__imul__",
    "__truediv__", "__rtruediv__", "add_", "sub_", "mul_", "div_", "lerp_", "where",
}  # fmt: skip


class LayeredContext(torch.Tensor):
    """The base context of a conditioning with layer prompts. It may be looked at, cut and moved; mixing it with another
    context raises ValueError, at the node that does it.
    """

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in _MIXING:
            raise ValueError(CHANGED)
        return super().__torch_function__(func, types, args, kwargs or {})


def plain(context: torch.Tensor) -> torch.Tensor:
    """The context as an ordinary tensor."""
    return context.as_subclass(torch.Tensor) if isinstance(context, LayeredContext) else context


@dataclass(frozen=True)
class Stretch:
    """A part of the sampling, up to `end` percent (0-1, inclusive): which text each layer reads, None for the base
    prompt.
    """

    end: float
    choice: tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class LayerPrompts:
    """What one conditioning says to each layer.

    table: the layers meant. base: the context [B, T, D] of the conditioning it belongs to. texts: the other contexts,
    each a dict with "cross_attn" [B, T, D] and what its text encoder gave besides (`dit.COMPANIONS`). stretches: in
    order, the last one ends at 1. matching_control: whether the layers of a ControlNet read what the U-net's read.
    """

    table: LayerTable
    base: torch.Tensor
    texts: tuple[Text, ...]
    stretches: tuple[Stretch, ...]
    matching_control: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether every layer reads the base prompt at all times."""
        return all(choice is None for stretch in self.stretches for choice in stretch.choice)


class LayerCond(comfy.conds.CONDRegular):
    """Layer prompts on a conditioning, as it travels between nodes. ready: checked and moved, once per sampling."""

    def __init__(self, prompts: LayerPrompts, ready: bool = False):
        super().__init__(prompts)
        self.ready = ready

    def process_cond(self, batch_size, **kwargs):
        """The host asks for it in every evaluation that no reader has prepared."""
        raise ValueError(UNREAD)


class LayerRows(comfy.conds.CONDRegular):
    """For the rows of one conditioning in one evaluation: the number of its layer prompts, as an int64 tensor [rows].

    A tensor per row, so that whatever cuts, repeats or tiles a batch takes it along.
    """

    def __init__(self, numbers: torch.Tensor, prompts: LayerPrompts | None, base_tokens: int):
        super().__init__(numbers)
        self.prompts, self.base_tokens = prompts, base_tokens

    def _copy_with(self, cond):
        return LayerRows(cond, self.prompts, self.base_tokens)

    def can_concat(self, other):
        prompts = [cond.prompts for cond in (self, other) if cond.prompts is not None]
        tokens = [self.base_tokens, other.base_tokens]
        tokens += [text["cross_attn"].shape[1] for each in prompts for text in each.texts]
        if any(each.table.architecture in (*FIXED_LENGTH, *EQUAL_LENGTH) for each in prompts):
            return len(set(tokens)) == 1
        return math.lcm(*tokens) <= MOST_REPEATS * min(tokens)

    def size(self):
        return [1]


def carry(entry: list, prompts: LayerPrompts) -> list:
    """The CONDITIONING entry [context, options] with layer prompts on it; the entry itself where there is nothing to
    carry.
    """
    if prompts.is_plain:
        return entry
    model_conds = {**entry[1].get("model_conds", {}), KEY: LayerCond(prompts)}
    return [entry[0].as_subclass(LayeredContext), {**entry[1], "model_conds": model_conds}]


def carried_by(cond: dict) -> LayerPrompts | None:
    """The layer prompts of a converted conditioning, checked: ValueError after nodes that changed its context alone.

    ConditioningZeroOut means the whole prompt, so the layer prompts go too.
    """
    carried: LayerCond | None = cond["model_conds"].get(KEY)
    context = cond.get("cross_attn")
    if carried is None:
        if isinstance(context, LayeredContext):
            raise ValueError(CHANGED)
        return None
    if carried.ready or _same_context(context, carried.cond.base):
        return carried.cond
    if torch.count_nonzero(context) > 0:
        raise ValueError(CHANGED)
    return None


def prepare(entries: list[dict], device: torch.device, dtype: torch.dtype) -> None:
    """Checks the converted conditionings of one sampling, and moves their layer prompts to the device, once.

    entries: copies that live as long as this sampling; they are changed. ValueError as `carried_by`.
    """
    for cond in entries:
        prompts = carried_by(cond)
        model_conds = {key: value for key, value in cond["model_conds"].items() if key != KEY}
        if prompts is not None:
            model_conds[KEY] = LayerCond(_moved(prompts, device, dtype), ready=True)
        cond["model_conds"] = model_conds
        if "cross_attn" in cond:
            cond["cross_attn"] = plain(cond["cross_attn"])


def with_rows(conds: list[list[dict] | None]) -> tuple[list[list[dict] | None], tuple[LayerPrompts, ...]]:
    """The conditionings of one evaluation with `LayerRows` in place of their layer prompts, and the prompts by number.

    Those without layer prompts get rows of the number PLAIN where others have some: the host batches only conditionings
    with the same keys. Without any layer prompts the conditionings are returned as they are.
    """
    found = [None if entries is None else [carried_by(cond) for cond in entries] for entries in conds]
    prompts = tuple({id(each): each for entries in found if entries for each in entries if each is not None}.values())
    if not any(KEY in cond["model_conds"] for entries in conds if entries for cond in entries):
        return conds, ()
    numbers = {id(each): PLAIN + 1 + i for i, each in enumerate(prompts)}
    changed = [
        None
        if entries is None
        else [_with_row(cond, each, numbers.get(id(each), PLAIN)) for cond, each in zip(entries, own, strict=True)]
        for entries, own in zip(conds, found, strict=True)
    ]
    return changed, prompts


def _with_row(cond: dict, prompts: LayerPrompts | None, number: int) -> dict:
    model_conds = {key: value for key, value in cond["model_conds"].items() if key != KEY}
    context = model_conds.get("c_crossattn")
    if context is None:
        return {**cond, "model_conds": model_conds}
    if isinstance(context.cond, LayeredContext):  # of a guider that converts conditionings in mid-sampling
        model_conds["c_crossattn"] = context._copy_with(plain(context.cond))
    base = context.cond if cond.get("cross_attn") is None else cond["cross_attn"]
    model_conds[KEY] = LayerRows(torch.tensor([number]), prompts, base.shape[1])
    return {**cond, "model_conds": model_conds}


def _moved(prompts: LayerPrompts, device: torch.device, dtype: torch.dtype) -> LayerPrompts:
    """The same prompts as the network takes them, so that no step has to wait for a transfer."""
    texts = tuple(
        {key: comfy.model_base.convert_tensor(value, dtype, device) for key, value in text.items()}
        for text in prompts.texts
    )
    return replace(prompts, texts=texts)


def _same_context(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape:
        return False
    return (a.device == b.device and a.data_ptr() == b.data_ptr()) or torch.equal(plain(a), plain(b).to(plain(a)))
