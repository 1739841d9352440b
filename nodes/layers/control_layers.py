"""ControlNets whose layers read what the U-net's layers of the same place read.

A ControlNet of a U-net is a copy of its input and middle blocks, cross-attentions included, to which the host gives one
context. Here PyTorch hooks, for the length of one evaluation, give each of its spatial transformers the rows of its own
layer.
"""

from contextlib import ExitStack

import torch
from comfy.cldm.cldm import ControlNet
from comfy.ldm.modules.attention import SpatialTransformer

from .carried import KEY, LayerPrompts
from .reader import LayerReader, chunks_of


class _Matching:
    """A ControlNet (with those before it) in one evaluation, in place of the host's object."""

    def __init__(self, control, model):
        self.control, self.model = control, model

    def __getattr__(self, name):
        return getattr(self.control, name)

    def get_instance_for_device(self, device):
        return _Matching(self.control.get_instance_for_device(device), self.model)

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        chunks = [
            (prompts if prompts is not None and prompts.matching_control else None, rows)
            for prompts, rows in chunks_of(cond.get(KEY), transformer_options[KEY], len(x_noisy))
        ]
        reader, control = LayerReader(chunks, self.model, x_noisy, t), self.control
        with ExitStack() as hooks:
            while control is not None:
                network = getattr(control, "control_model", None)
                if isinstance(network, ControlNet):
                    _hook(network, reader, hooks)
                control = control.previous_controlnet
            return self.control.get_control(x_noisy, t, cond, batched_number, transformer_options)


def _hook(network: ControlNet, reader: LayerReader, hooks: ExitStack) -> None:
    places = [
        *((("input", i), stage) for i, stage in enumerate(network.input_blocks)),
        (("middle", 0), network.middle_block),
    ]
    for block, stage in places:
        for module in stage:
            if isinstance(module, SpatialTransformer):
                handle = module.register_forward_pre_hook(_reading(reader, block))
                hooks.callback(handle.remove)


def _reading(reader: LayerReader, block: tuple[str, int]):
    def make(text, base: torch.Tensor, rows) -> torch.Tensor:
        return reader.tensor(text, "cross_attn", base.shape[0]).to(base)

    def hook(module, given):
        x, context, *rest = given
        depths = range(len(module.transformer_blocks))
        return (x, [reader.rows(reader.picks(block, depth), context, make) for depth in depths], *rest)

    return hook


def with_matching_controls(conds: list, prompts: tuple[LayerPrompts, ...], model) -> list:
    """The conditionings of one evaluation, with their ControlNets made to read layers where layer prompts ask for it.

    A ControlNet that several conditionings share stays one object, so that they still share a batch.
    """
    if not any(each.matching_control for each in prompts):
        return conds
    made: dict[int, _Matching] = {}

    def changed(cond: dict) -> dict:
        control = cond.get("control")
        return cond if control is None else {**cond, "control": made.setdefault(id(control), _Matching(control, model))}

    return [None if entries is None else [changed(cond) for cond in entries] for entries in conds]
