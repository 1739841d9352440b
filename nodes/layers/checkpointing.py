"""Gradient checkpointing of a U-net: its blocks forget what they computed, and compute it again in the backward pass.

Activations of one block at a time instead of all (Chen et al. 2016, sublinear memory cost); a third more arithmetic per
step of training.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, TimestepBlock
from torch.utils.checkpoint import checkpoint


class _Forgetful(TimestepBlock):
    """A block in the place of one. The U-net tells residual blocks from others by `TimestepBlock`."""

    def __init__(self, block: torch.nn.Module):
        super().__init__()
        self.block = block

    def forward(self, *args, transformer_options: dict | None = None, **kwargs):
        if transformer_options is not None:
            # The U-net writes into it which block it is at, and by the second time it is at its end.
            kwargs["transformer_options"] = transformer_options.copy()
        return checkpoint(self.block, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


@contextmanager
def checkpointed(network: torch.nn.Module) -> Iterator[None]:
    """Residual and transformer blocks of a loaded U-net, for as long as this lasts."""
    found = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, (ResBlock, BasicTransformerBlock))
    ]
    try:
        for parent, name, child in found:
            parent._modules[name] = _Forgetful(child)
        yield
    finally:
        for parent, name, child in found:
            parent._modules[name] = child
