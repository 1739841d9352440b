"""Weights between two models of one architecture, all of them."""

import torch
from comfy.model_patcher import ModelPatcher

from ...guidance import weaker

PREFIX = "diffusion_model."


def weight_blend(model: ModelPatcher, base_model: ModelPatcher, amount: float) -> ModelPatcher:
    """A MODEL with weights (1 − amount)·model + amount·base. Raises ValueError when the two are not the same
    architecture.
    """
    of_model, of_base = weaker.blend_strengths(amount)
    if of_base == 0:
        return model
    base = base_model.get_key_patches(PREFIX)
    own = {key: weight.shape for key, weight in model.model_state_dict(PREFIX).items()}
    theirs = {key: weight.shape for key, weight in base_model.model_state_dict(PREFIX).items()}
    different = sorted(key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key))
    if different:
        raise ValueError(
            f"base_model is not the same architecture as model: {len(different)} weights differ in name or shape, "
            f"first {different[0]}; "
            "connect an earlier or less tuned checkpoint of the same model."
        )
    alone = _not_patched_on_loading(model.model) & own.keys()
    weak = model.clone()
    weak.add_patches({key: patch for key, patch in base.items() if key not in alone}, of_base, of_model)
    for key in sorted(alone):
        weight, other = model.get_model_object(key), base_model.get_model_object(key)
        if not weight.is_floating_point():
            continue
        mixed = of_model * weight.float() + of_base * other.to(weight.device).float()
        mixed = mixed.to(weight.dtype)
        is_parameter = isinstance(weight, torch.nn.Parameter)
        weak.add_object_patch(key, torch.nn.Parameter(mixed, requires_grad=False) if is_parameter else mixed)
    return weak


def _not_patched_on_loading(module: torch.nn.Module) -> set[str]:
    """Names of weights that the host leaves as they are when it loads a model with weight patches: parameters beside
    submodules that have parameters of their own (modulation and shift tables, register and padding tokens), and
    buffers. Replacing the whole object reaches them.
    """
    names = {name for name, _ in module.named_buffers()}
    for prefix, part in module.named_modules():
        own = [name for name, _ in part.named_parameters(recurse=False)]
        if own and any(True for child in part.children() for _ in child.parameters()):
            names.update(f"{prefix}.{name}" if prefix else name for name in own)
    return names
