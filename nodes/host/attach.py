"""Putting a guidance on a MODEL, and driving its life with the host's sampling hooks.

The MODEL clone carries three things: a post-CFG function per guidance (their order is the wiring order), the extra models, and one
OUTER_SAMPLE wrapper. The wrapper makes the `Run` and adds everything else to the options that the host clones for each sampling.
"""

import uuid
from typing import Any

import comfy.hooks
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP, add_wrapper_with_key

from .models import ExtraModel, place_beside
from .run import Evaluator, Run, Step

KEY = "guidance_lab"
RUN = "guidance_lab_run"


class Guidance:
    """Settings of one guidance; see the package docstring for its life. Subclasses are immutable once attached."""

    name: str = ""  # what the trace calls it
    extra_models: tuple[ExtraModel, ...] = ()
    loaded_models: tuple[ModelPatcher, ...] = ()  # other networks it uses by itself, loaded together with the main model

    def extra_memory(self, model: ModelPatcher, noise_shape: tuple[int, ...]) -> float:
        """Bytes that it needs on the device while it works, beside the weights and what the host counts for the model itself."""
        return 0.0

    def begin(self, run: Run) -> Any:
        return None

    def step(self, step: Step, state: Any) -> torch.Tensor:
        raise NotImplementedError

    def end(self, run: Run, state: Any) -> None:
        return None


class _Attachment:
    """A guidance on a MODEL, as the post-CFG function that the host calls. The key tells two attachments on one MODEL apart."""

    def __init__(self, guidance: Guidance):
        self.guidance = guidance
        self.key = f"{KEY}.{uuid.uuid4().hex}"

    def keyed_models(self) -> list[tuple[str, ExtraModel]]:
        return [(f"{self.key}.{i}", extra) for i, extra in enumerate(self.guidance.extra_models)]

    def __call__(self, args: dict) -> torch.Tensor:
        run: Run | None = args["model_options"].get(RUN)
        if run is None:
            raise RuntimeError(
                f"{self.guidance.name} needs a sampler that runs ComfyUI's OUTER_SAMPLE wrappers, and this one does not; "
                "use KSampler, or SamplerCustomAdvanced with any guider."
            )
        step = run.step or Step(run, args["input"], args["sigma"])
        step.denoised = args["denoised"]
        step.cond, step.cond_scale = args["cond"], args["cond_scale"]
        step.cond_denoised = step.own_prediction(args["cond"], args["cond_denoised"])
        step.uncond_denoised = None if args["uncond"] is None else step.own_prediction(args["uncond"], args["uncond_denoised"])
        name, state = run.states[self.key]
        with run.charge(name):
            return self.guidance.step(step, state)


def attach(model: ModelPatcher, guidance: Guidance) -> ModelPatcher:
    """A clone of the MODEL that carries the guidance after all that it carried before. Raises what `own_module` raises."""
    attachment = _Attachment(guidance)
    patched = model.clone()
    patched.set_model_sampler_post_cfg_function(attachment)
    for key, extra in attachment.keyed_models():
        place_beside(patched, key, extra.patcher, alone=_needs_own_module(extra))
    for i, loaded in enumerate(guidance.loaded_models):
        place_beside(patched, f"{attachment.key}.loaded.{i}", loaded)
    if not patched.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _outer_sample)
    return patched


def _needs_own_module(extra: ExtraModel) -> bool:
    # Hooks of its own conditioning would have to be registered on the patcher that owns the load.
    return extra.conditioning is not None and comfy.sampler_helpers.cond_has_hooks(extra.conditioning)


class _LoadedExtra(Evaluator):
    """The life of one extra model in a run: `prepare` before the host loads, `begin` after, `end` always."""

    def __init__(self, run: Run, key: str, extra: ExtraModel):
        main = run.model_patcher
        registered = main.get_additional_models_with_key(key)
        # A LoRA that was put on the MODEL after the guidance may have made it differ from a guide that ran on its weights.
        patcher = place_beside(main, key, registered[0] if registered else extra.patcher, alone=_needs_own_module(extra))
        self.owns_load = bool(main.get_additional_models_with_key(key))
        conds = run.conds if extra.conditioning is None else {"positive": comfy.sampler_helpers.convert_cond(extra.conditioning)}
        conds = {name: [c.copy() for c in entries] for name, entries in conds.items()}
        self.more_to_load = []
        if extra.conditioning is not None:
            comfy.samplers.preprocess_conds_hooks(conds)
            self.more_to_load += comfy.sampler_helpers.get_additional_models(conds, patcher.model_dtype())[0]
        if patcher.is_dynamic() and self.owns_load and any(c.get("hooks") for entries in conds.values() for c in entries):
            patcher = patcher.get_non_dynamic_delegate()  # as guiders do: dynamic patchers have no weight hooks
            self.more_to_load.append(patcher)
        self.hook_mode = patcher.hook_mode
        super().__init__(run, patcher, comfy.model_patcher.create_model_options_clone(patcher.model_options), conds)

    def prepare(self) -> None:
        if comfy.samplers.get_total_hook_groups_in_conds(self.conds) <= 1:
            self.patcher.hook_mode = comfy.hooks.EnumHookMode.MinVram
        comfy.sampler_helpers.prepare_model_patcher(self.patcher, self.conds, self.options)
        comfy.samplers.filter_registered_hooks_on_conds(self.conds, self.options)
        add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, self.run.apply_model, self.options, is_model_options=True)

    def begin(self) -> None:
        device = self.patcher.load_device
        comfy.samplers.cast_to_load_options(self.options, device=device, dtype=self.patcher.model_dtype())
        self.options["transformer_options"]["sample_sigmas"] = self.run.sigmas
        if self.owns_load:
            self.patcher.pre_run()
        else:
            # pre_run() would also make this patcher the current one of the module, which its holder has to stay.
            self.patcher.model_patches_to(device)
            self._call(CallbacksMP.ON_PRE_RUN)
        self.conds = self.process(self.conds)

    def end(self) -> None:
        comfy.samplers.cast_to_load_options(self.options, device=self.patcher.offload_device)
        if not self.owns_load:
            self.patcher.model_patches_call_function(function_name="cleanup")
            self._call(CallbacksMP.ON_CLEANUP)
        elif self.patcher.model.current_patcher is not None:  # else the host has cleaned up
            self.patcher.cleanup()
        self.patcher.hook_mode = self.hook_mode
        self.patcher.restore_hook_patches()

    def _call(self, kind: str) -> None:
        for callback in self.patcher.get_all_callbacks(kind):
            callback(self.patcher)


def _outer_sample(executor, *args, **kwargs):
    """Around the whole sampling of a guider, before anything is loaded: makes the run, and ends it in every case."""
    guider = executor.class_obj
    attachments = [f for f in guider.model_options.get("sampler_post_cfg_function", []) if isinstance(f, _Attachment)]
    run = Run(guider, {k: v for k, v in kwargs.items() if k == "latent_shapes"})
    extras: list[_LoadedExtra] = []
    try:
        for attachment in attachments:
            for key, extra in attachment.keyed_models():
                extras.append(_LoadedExtra(run, key, extra))
                run.evaluators[extra] = extras[-1]
                extras[-1].prepare()
        more_to_load = [model for extra in extras for model in extra.more_to_load]
        if more_to_load:
            first = next(conds[0] for conds in guider.conds.values() if conds)  # a copy that lives as long as this sampling
            first["additional_models"] = [*first.get("additional_models", []), *more_to_load]
        _wrap_options(guider.model_options, run, attachments, extras)
        return executor(*args, **kwargs)
    finally:
        for extra in reversed(extras):
            extra.end()
        run.close()


def _wrap_options(options: dict, run: Run, attachments: list[_Attachment], extras: list[_LoadedExtra]) -> None:
    """Adds the run and its wrappers to the model options that exist for this sampling only."""

    def sampler_sample(executor, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, *rest, **kwargs):
        run.start(sigmas, extra_args, noise, latent_image, denoise_mask)
        for extra in extras:
            extra.begin()
        run.states = {}
        try:
            names: list[str] = []
            for attachment in attachments:
                names.append(attachment.guidance.name)
                count = names.count(attachment.guidance.name)
                name = attachment.guidance.name if count == 1 else f"{attachment.guidance.name} {count}"
                with run.charge(name):
                    run.states[attachment.key] = (name, attachment.guidance.begin(run))
            return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *rest, **kwargs)
        finally:
            for attachment in reversed(attachments):
                if attachment.key in run.states:
                    attachment.guidance.end(run, run.states[attachment.key][1])

    def prepare_sampling(executor, model, noise_shape, *rest, **kwargs):
        needed = sum(attachment.guidance.extra_memory(model, noise_shape) for attachment in attachments)
        base = model.model
        factor = base.memory_usage_factor
        # The host has no other place where an estimate can be raised: what it frees is proportional to this factor.
        base.memory_usage_factor = factor * (1 + needed / max(1.0, base.memory_required([noise_shape[0] * 2, *noise_shape[1:]])))
        try:
            return executor(model, noise_shape, *rest, **kwargs)
        finally:
            base.memory_usage_factor = factor

    options[RUN] = run
    wrappers = options["transformer_options"].setdefault("wrappers", {})
    # First, so that C is what the sampler gets, with all that other wrappers make of it.
    wrappers[WrappersMP.CALC_COND_BATCH] = {KEY: [run.calc_cond_batch], **wrappers.get(WrappersMP.CALC_COND_BATCH, {})}
    for kind, wrapper in (
        (WrappersMP.PREPARE_SAMPLING, prepare_sampling),
        (WrappersMP.SAMPLER_SAMPLE, sampler_sample),
        (WrappersMP.PREDICT_NOISE, run.predict_noise),
        (WrappersMP.APPLY_MODEL, run.apply_model),
    ):
        add_wrapper_with_key(kind, KEY, wrapper, options, is_model_options=True)
