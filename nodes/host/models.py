"""Extra models beside the main one: which weights a MODEL has, and a module of its own where two MODELs would share
one.

A ModelPatcher is a set of patches over a module, and a module carries one set of weight patches at a time. Two MODELs
from one loader share the module; when their weights differ (a LoRA on one side), loading both leaves the last one's
weights for both.
"""

import copy
import weakref
from dataclasses import dataclass

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

# Options that act on the guider's combination of predictions, not on a prediction.
_NOT_OF_THE_PREDICTION = {
    "sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function", "disable_cfg1_optimization",
    "denoise_mask_function", "multigpu_options",
}  # fmt: skip
KEY = "guidance_lab"  # what the pack's things on a MODEL are called
_PREDICTION_WRAPPERS = (WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)


@dataclass(frozen=True, eq=False)
class ExtraModel:
    """A model that a guidance evaluates, on its own conditioning, or (None) on the conditionings that the guider
    has.
    """

    patcher: ModelPatcher
    conditioning: list | None = None


def _same(a, b) -> bool:
    """Equal containers of identical things; tensors and functions are compared by identity, plain values by value."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return a is b or (isinstance(a, bool | int | float | str) and type(a) is type(b) and a == b)


def _same_sampling(a, b) -> bool:
    """Whether two model samplings, each made anew by a ModelSampling node, are of one kind with equal numbers."""

    def equal(x, y) -> bool:
        if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
            return x is y or torch.equal(x, y)
        if isinstance(x, dict) and isinstance(y, dict):
            return x.keys() == y.keys() and all(equal(x[k], y[k]) for k in x)
        return _same(x, y) or (isinstance(x, set) and x == y)

    return type(a).__mro__[1:] == type(b).__mro__[1:] and equal(vars(a), vars(b))


def same_weights(a: ModelPatcher, b: ModelPatcher) -> bool:
    """Whether both are one module with the same patches, so that loading one is loading the other."""
    return a.model is b.model and _same_patches(a, b)


def _same_patches(a: ModelPatcher, b: ModelPatcher) -> bool:
    def effective(patches):
        # (strength, what, strength of the weight itself, ...): a LoRA of strength 0 leaves the weight as it is.
        kept = {key: [p for p in entries if p[0] != 0 or p[2] != 1] for key, entries in patches.items()}
        return {key: entries for key, entries in kept.items() if entries}

    return (
        _same(effective(a.patches), effective(b.patches))
        and a.object_patches.keys() == b.object_patches.keys()
        and all(
            _same(patch, b.object_patches[key])
            or (key == "model_sampling" and _same_sampling(patch, b.object_patches[key]))
            for key, patch in a.object_patches.items()
        )
        and _same(a.weight_wrapper_patches, b.weight_wrapper_patches)
        and _same(a.injections, b.injections)
        and a.force_cast_weights == b.force_cast_weights
    )


def one_network(a: ModelPatcher, b: ModelPatcher) -> bool:
    """Whether both have the same unpatched weights: one module, or two modules of one file."""
    # Core loaders keep what they were called with; two of them on one file make two modules with the same weights.
    one_file = a.cached_patcher_init is not None and _same(a.cached_patcher_init, b.cached_patcher_init)
    return a.model is b.model or one_file


def same_prediction(a: ModelPatcher, b: ModelPatcher) -> bool:
    """Whether both predict the same for the same input: one module or one file, and the same patches, options, wrappers
    and callbacks.
    """

    def options(patcher):
        return {k: v for k, v in patcher.model_options.items() if k not in _NOT_OF_THE_PREDICTION}

    def wrappers(patcher):
        return {kind: patcher.wrappers[kind] for kind in _PREDICTION_WRAPPERS if patcher.wrappers.get(kind)}

    return (
        one_network(a, b)
        and _same_patches(a, b)
        and _same(options(a), options(b))
        and _same(wrappers(a), wrappers(b))
        and _same(a.callbacks, b.callbacks)
    )


# Source module → the patchers on copies of it that are still in use, so that a guide in two pairs is copied once.
_COPIES: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def own_module(patcher: ModelPatcher) -> ModelPatcher:
    """A clone of the patcher on a second copy of the unpatched module: the same prediction, exactly, for the memory of
    one more model.

    A copy that is still in use with the same weights is used again. Else a model from a core loader is read again from
    its file, any other is copied in memory. ValueError where neither can be exact.
    """
    if patcher.injections:
        raise ValueError(
            "Both models come from one loader, and the guide has a LoRA in bypass mode, which cannot be moved to a "
            "second copy of the weights. Use the plain LoRA loader for the guide, or load its checkpoint with a second "
            "loader node."
        )
    copies = _COPIES.setdefault(patcher.model, weakref.WeakSet())
    used = next((other for other in copies if _same_patches(other, patcher)), None)
    if used is not None:
        clone = patcher.clone(model_override=used.get_clone_model_override())
    elif patcher.cached_patcher_init is not None:
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
        _forget(module)
        clone = patcher.clone(model_override=(module, ({}, {}, {}, set())))
    # clone() shares this dict, which belongs to the first module.
    clone.hook_backup = {} if used is None else used.hook_backup
    clone.is_injected = False
    clone.parent = None  # else memory management would take the first module for this one once the clone is gone
    clone.remove_additional_models("multigpu")  # copies of the first module on other devices
    copies.add(clone)
    return clone


def _forget(module: torch.nn.Module) -> None:
    """Clears what the network has kept of earlier samplings, with the weights of then (HiDream-O1 keys and values)."""
    clear = getattr(module.diffusion_model, "clear_kv_cache", None)
    if clear is not None:
        clear()


def models_loaded_with(main: ModelPatcher) -> list[ModelPatcher]:
    """The models that guidances on this MODEL have brought along, and those that every run with it loads anyway."""
    own = [model for key, model in main.attachments.items() if key.startswith(f"{KEY}.")]
    return [*main.get_nested_additional_models(), *own]


def additional_models_of(patcher: ModelPatcher) -> list[ModelPatcher]:
    """Models that nodes have put beside this one, which have to be loaded with it; not its copies on other devices."""
    along = [model for key, models in patcher.additional_models.items() if key != "multigpu" for model in models]
    return list(dict.fromkeys(deeper for model in along for deeper in (model, *model.get_nested_additional_models())))


def attach_extra_model(main: ModelPatcher, key: str, patcher: ModelPatcher, separate: bool = False) -> ModelPatcher:
    """Makes `patcher` one of the models that a run with `main` loads, and returns the patcher to evaluate.

    It is kept as an attachment, not as one of the host's additional models: those the host also copies to every device
    of a main model that is split over several. When a model that is loaded anyway has the same module with the same
    weights, nothing is attached: the patcher runs on that load. With other weights on the same module, or with
    `separate`, it gets a module of its own.
    """
    main.remove_attachments(key)
    others = [main, *models_loaded_with(main)]

    def holder_of(one: ModelPatcher) -> ModelPatcher | None:
        return next((other for other in others if other.model is one.model), None)

    holder = holder_of(patcher)
    if holder is not None and same_weights(holder, patcher) and not separate:
        return patcher
    if holder is not None:
        patcher = own_module(patcher)
        if holder_of(patcher) is not None and not separate:
            return patcher
    main.set_attachments(key, patcher)
    return patcher
