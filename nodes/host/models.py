"""Extra models beside the main one: which weights a MODEL has, and a module of its own where two MODELs would share one.

A ModelPatcher is a set of patches over a module, and a module carries one set of weight patches at a time. Two MODELs from one loader
share the module; when their weights differ (a LoRA on one side), loading both leaves the last one's weights for both.
"""

import copy
from dataclasses import dataclass

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

# Options that act on the guider's combination of predictions, not on a prediction.
_NOT_OF_THE_PREDICTION = {
    "sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function", "disable_cfg1_optimization", "denoise_mask_function",
}  # fmt: skip
_PREDICTION_WRAPPERS = (WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)


@dataclass(frozen=True, eq=False)
class ExtraModel:
    """A model that a guidance evaluates, on its own conditioning, or (None) on the conditionings that the guider has."""

    patcher: ModelPatcher
    conditioning: list | None = None


def _same(a, b) -> bool:
    """Equal containers of identical things; tensors and functions are compared by identity, plain values by value."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return a is b or (isinstance(a, bool | int | float | str) and type(a) is type(b) and a == b)


def same_weights(a: ModelPatcher, b: ModelPatcher) -> bool:
    """Whether both are one module with the same patches, so that loading one is loading the other."""
    return a.model is b.model and _same_patches(a, b)


def _same_patches(a: ModelPatcher, b: ModelPatcher) -> bool:
    return (
        _same(a.patches, b.patches)
        and _same(a.object_patches, b.object_patches)
        and _same(a.weight_wrapper_patches, b.weight_wrapper_patches)
        and _same(a.injections, b.injections)
        and a.force_cast_weights == b.force_cast_weights
    )


def same_prediction(a: ModelPatcher, b: ModelPatcher) -> bool:
    """Whether both predict the same for the same input: one module or one file, and the same patches, options, wrappers and callbacks."""

    def options(patcher):
        return {k: v for k, v in patcher.model_options.items() if k not in _NOT_OF_THE_PREDICTION}

    def wrappers(patcher):
        return {kind: patcher.wrappers[kind] for kind in _PREDICTION_WRAPPERS if patcher.wrappers.get(kind)}

    # Core loaders keep what they were called with; two of them on one file make two modules with the same weights.
    one_file = a.cached_patcher_init is not None and _same(a.cached_patcher_init, b.cached_patcher_init)
    return (
        (a.model is b.model or one_file)
        and _same_patches(a, b)
        and _same(options(a), options(b))
        and _same(wrappers(a), wrappers(b))
        and _same(a.callbacks, b.callbacks)
    )


def own_module(patcher: ModelPatcher) -> ModelPatcher:
    """A clone of the patcher on a second copy of the unpatched module: the same prediction, exactly, for the memory of one more model.

    A model from a core loader is read again from its file, any other is copied in memory. ValueError where neither can be exact.
    """
    if patcher.injections:
        raise ValueError(
            "Both models come from one loader, and the guide has a LoRA in bypass mode, which cannot be moved to a second copy of the "
            "weights. Use the plain LoRA loader for the guide, or load its checkpoint with a second loader node."
        )
    if patcher.cached_patcher_init is not None:
        clone = patcher.clone(force_deepcopy=True)
    elif patcher.is_dynamic():
        raise ValueError(
            "Both models come from one loader that cannot load a second copy of the weights, and their weights differ. "
            "Load the guide's checkpoint with a second loader node."
        )
    else:
        comfy.model_management.unload_model_and_clones(patcher, unload_additional_models=False)
        with torch.inference_mode(False):
            config = patcher.model.model_config  # read only, and it refuses to be copied
            module = copy.deepcopy(patcher.model, {id(config): config})
        clone = patcher.clone(model_override=(module, ({}, {}, {}, set())))
    clone.hook_backup = {}  # clone() shares this dict, which belongs to the first module
    clone.is_injected = False
    clone.parent = None  # else memory management would take the first module for this one once the clone is gone
    return clone


def place_beside(main: ModelPatcher, key: str, patcher: ModelPatcher, alone: bool = False) -> ModelPatcher:
    """Makes `patcher` one of the models that ComfyUI loads together with `main`, and returns the patcher to evaluate.

    When a model that is loaded anyway has the same module with the same weights, nothing is registered: the patcher runs on that load.
    With other weights on the same module, or with `alone`, it gets a module of its own.
    """
    main.remove_additional_models(key)
    beside = [main, *main.get_nested_additional_models()]
    holder = next((other for other in beside if other.model is patcher.model), None)
    if holder is not None and same_weights(holder, patcher) and not alone:
        return patcher
    if holder is not None:
        patcher = own_module(patcher)
    main.set_additional_models(key, [patcher])
    return patcher
