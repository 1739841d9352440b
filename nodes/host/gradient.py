"""Gradients through ComfyUI's networks: what its samplers switch off or would get wrong, put right for the length of one gradient.

Nodes run in inference mode, so the weights that loaders make are inference tensors, which autograd must not save. The cure here copies
nothing: the same storage under a normal tensor, in the module's place for the parameter, taken out again afterwards.
"""

from collections.abc import Iterable
from contextlib import contextmanager

import torch
from comfy.model_patcher import ModelPatcher


@contextmanager
def differentiable_weights(models: Iterable[ModelPatcher]):
    """Lets autograd pass through the networks of `models` (not into their weights) inside this block."""
    swapped = []
    try:
        with torch.inference_mode(False):
            for network in {id(m.model): m.model for m in models}.values():
                for module in network.modules():
                    for table in (module._parameters, module._buffers):
                        for name, tensor in table.items():
                            if tensor is not None and (tensor.is_inference() or tensor.requires_grad):
                                swapped.append((table, name, tensor, _alias(tensor)))
                                table[name] = swapped[-1][3]
        yield
    finally:
        for table, name, tensor, alias in swapped:
            if table[name] is alias:  # else somebody has replaced the weight in the meantime, and theirs is the newer one
                table[name] = tensor


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    """A normal tensor without a gradient on the same storage."""
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
