"""What the tests of per-layer prompts share: conditionings that carry them, and a pass of the network written without the pack."""

from contextlib import contextmanager

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock, CrossAttention

from guidance_lab.nodes.host import cross_attention


def prompts(table, base, contexts, choice, end=1.0):
    """`LayerPrompts` in which layer i reads contexts[choice[i]], or the base where that is None."""
    texts = tuple({"cross_attn": context} for context in contexts)
    return cross_attention.LayerPrompts(table, base, texts, (cross_attention.Stretch(end, tuple(choice)),))


def conditioning(table, base, contexts, choice, **options):
    """CONDITIONING of one entry with one context per layer."""
    return [cross_attention.carry([base, options], prompts(table, base, contexts, choice))]


def attentions(network):
    """Every cross-attention of a UNet as (name, module), in the order in which the network lists its modules: input, middle, output."""
    return [(f"{name}.attn2", block.attn2) for name, block in network.named_modules() if isinstance(block, BasicTransformerBlock)]


@contextmanager
def contexts_by_hook(modules: list[CrossAttention], contexts: list[torch.Tensor | None]):
    """An independent per-layer pass: each attention module is told its context from outside by a forward hook of PyTorch."""

    def hook(context):
        def replace(module, args, kwargs):
            own = context.to(args[0]).expand(args[0].shape[0], -1, -1)
            return args, {**kwargs, "context": own, "value": None}

        return replace

    handles = [
        module.register_forward_pre_hook(hook(context), with_kwargs=True)
        for module, context in zip(modules, contexts, strict=True)
        if context is not None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
