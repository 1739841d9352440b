"""Gradients through ComfyUI's networks: what its samplers switch off or would get wrong, put right for the length of
one gradient.

Nodes run in inference mode, so the weights that loaders make are inference tensors, which autograd must not save. The
cure here copies nothing: the same storage under a normal tensor, in the module's place for the parameter, taken out
again afterwards.
"""

import math
from collections.abc import Iterable
from contextlib import contextmanager

import comfy.model_management
import torch
from comfy.ldm.modules.attention import attention_pytorch
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
                                swapped.append((table, name, tensor, alias(tensor)))
                                table[name] = swapped[-1][3]
        yield
    finally:
        for table, name, tensor, ours in swapped:
            if (
                table[name] is ours
            ):  # else somebody has replaced the weight in the meantime, and theirs is the newer one
                table[name] = tensor


def alias(tensor: torch.Tensor) -> torch.Tensor:
    """A normal tensor without a gradient on the same storage."""
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return empty.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


@contextmanager
def differentiable_evaluation(models: Iterable[ModelPatcher]):
    """Lets autograd pass through an evaluation of the diffusion models among `models`, with every network in it.

    `in_training` is how ComfyUI asks its transformers for operations that have a backward; it is put back in every
    case.
    """
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        with differentiable_weights(models):
            yield
    finally:
        comfy.model_management.in_training = before


def gradient_memory(model: ModelPatcher, noise_shape: tuple[int, ...]) -> float:
    """Bytes of activations that a gradient through `model` keeps at cfg > 1, for a latent of this shape.

    SD1.5 at 512 pixels keeps 1.5 GiB and SDXL at 1024 10 GiB: 9 and 19 times the host's figure for a forward pass.
    """
    cells = 2 * noise_shape[0] * math.prod(noise_shape[2:])
    size = comfy.model_management.dtype_size(model.model.get_dtype_inference())
    return 20 * cells * size * 0.01 * model.model.memory_usage_factor * 2**20


def options_for_gradient(options: dict) -> dict:
    """The same model options with PyTorch's attention, as others lose the gradient or have none, and in one thread,
    this one.
    """
    options = {key: value for key, value in options.items() if key != "multigpu_clones"}
    own = {**options.get("transformer_options", {}), "optimized_attention_override": _pytorch_attention}
    return {**options, "transformer_options": own}


def _pytorch_attention(function, *args, **kwargs):
    return attention_pytorch(*args, **kwargs)


def resident(patcher: ModelPatcher, what: str) -> ModelPatcher:
    """A patcher whose weights stay on the device while autograd needs them, for one that dynamic VRAM may page out at
    any time.

    ValueError when its loader cannot load it a second time.
    """
    if not patcher.is_dynamic():
        return patcher
    if patcher.cached_patcher_init is None:
        raise ValueError(
            f"The loader of this {what} cannot load it for gradients under dynamic VRAM; use ComfyUI's own loader "
            "node, or start ComfyUI with --disable-dynamic-vram."
        )
    return patcher.get_non_dynamic_delegate()


def refuse_without_residence(models: Iterable[ModelPatcher], instead: str) -> None:
    """ValueError when weights of `models`, which are loaded, can leave the device between the forward and the backward
    pass.
    """
    for patcher in models:
        name = type(patcher.model).__name__
        if patcher.is_dynamic():
            raise ValueError(
                f"No gradient through {name}: dynamic VRAM may page its weights out in the middle of it. {instead}"
            )
        if patcher.model.model_lowvram:
            raise ValueError(f"No gradient through {name}: it does not fit into VRAM as a whole. {instead}")


def refuse_through(run, instead: str) -> None:
    """ValueError, with the reason, where a gradient through the models of `run` could not be right."""
    refuse_without_residence(run.models, instead)
    for patcher in run.models:
        name = type(patcher.model).__name__
        if patcher.hook_patches:
            raise ValueError(
                f"No gradient through {name}: hooks on the conditioning change its weights between the prompts. "
                f"{instead}"
            )
        # A quantised weight is a tensor of a class of its own, whose products need not have a backward.
        if any(type(weight) not in (torch.Tensor, torch.nn.Parameter) for weight in patcher.model.parameters()):
            raise ValueError(f"No gradient through {name}: its weights are quantised. {instead}")
