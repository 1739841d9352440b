"""What the tests of per-layer prompts share: conditionings that carry them, and a pass of the network written without
the pack.
"""

from contextlib import contextmanager

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock, CrossAttention

from guidance_lab.nodes.layers import cross_attention


def prompts(table, base, contexts, choice):
    """`LayerPrompts` in which layer i reads contexts[choice[i]], or the base where that is None."""
    texts = tuple({"cross_attn": context} for context in contexts)
    return cross_attention.LayerPrompts(table, base, texts, (cross_attention.Stretch(1.0, tuple(choice)),))


def conditioning(table, base, contexts, choice, **options):
    """CONDITIONING of one entry with one context per layer."""
    return [cross_attention.carry([base, options], prompts(table, base, contexts, choice))]


def attentions(network):
    """Every cross-attention of a UNet as (name, module), in the order in which the network lists its modules: input,
    middle, output.
    """
    return [
        (f"{name}.attn2", block.attn2)
        for name, block in network.named_modules()
        if isinstance(block, BasicTransformerBlock)
    ]


@contextmanager
def contexts_by_hook(modules: list[CrossAttention], contexts: list[torch.Tensor | None]):
    """An independent per-layer pass: PyTorch hooks put each attention's own context before its key and value
    projections.
    """

    def hook(context):
        return lambda module, args: (context.to(args[0]).expand(args[0].shape[0], -1, -1),)

    handles = [
        projection.register_forward_pre_hook(hook(context))
        for module, context in zip(modules, contexts, strict=True)
        if context is not None
        for projection in (module.to_k, module.to_v)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def told_apart(model, marked):
    """A clone of a stock MODEL in which each conditioning with one of these base contexts reads its layers' contexts by
    PyTorch hooks.

    marked: [(base context, context per layer)]. Every conditioning of a batch is evaluated alone, so nothing can reach
    another one.
    """
    modules = [module for _, module in attentions(model.model.diffusion_model)]

    def evaluate(apply_model, args):
        chunks, rows = len(args["cond_or_uncond"]), args["input"].shape[0] // len(args["cond_or_uncond"])
        out = []
        for i in range(chunks):
            c = _part(args["c"], slice(i * rows, (i + 1) * rows), args["input"].shape[0])
            options = c["transformer_options"]
            c["transformer_options"] = {
                **options,
                "cond_or_uncond": [args["cond_or_uncond"][i]],
                "uuids": [options["uuids"][i]],
            }
            own = [contexts for base, contexts in marked if torch.equal(base, c["c_crossattn"][:1, : base.shape[1]])]
            with contexts_by_hook(modules, own[0] if own else [None] * len(modules)):
                x, t = (args[key][i * rows : (i + 1) * rows] for key in ("input", "timestep"))
                out.append(apply_model(x, t, **c))
        return torch.cat(out)

    reference = model.clone()
    reference.set_model_unet_function_wrapper(evaluate)
    return reference


def _part(value, rows, total):
    """These rows of every tensor of the batch, in dicts and lists too."""
    if isinstance(value, dict):
        return {
            key: inner if key == "transformer_options" else _part(inner, rows, total) for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_part(inner, rows, total) for inner in value]
    return value[rows] if isinstance(value, torch.Tensor) and value.shape[:1] == (total,) else value
