"""Diffusion models in a sampling run: evaluated under their own options and conds, loaded beside the guider's model."""

from typing import TYPE_CHECKING

import comfy.hooks
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP, add_wrapper_with_key

from .gradient import options_for_gradient
from .models import KEY, ExtraModel, additional_models_of, attach_extra_model
from .own_state import OwnControls, OwnVideoCache, own_hooks, own_step_cache

if TYPE_CHECKING:
    from .run import Run, Step


class Evaluator:
    """A loaded model with the options and processed conds under which it is evaluated in this run."""

    def __init__(self, run: "Run", patcher: ModelPatcher, options: dict, conds: dict[str, list]):
        self.run, self.patcher, self.options, self.conds = run, patcher, options, conds

    def process(self, conds: dict[str, list]) -> dict[str, list]:
        """Host-converted conds {"positive": [...]} → the same with this model's own inputs: areas, masks, adm,
        ControlNet, timesteps.
        """
        run = self.run
        return comfy.samplers.process_conds(
            self.patcher.model, run.noise, conds, run.device, run.latent_image, run.denoise_mask, run.seed, **run.shapes
        )

    def predict(self, cond: list, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The x0 prediction (batch, ...) of this model at x, sigma (batch,) for one list of processed conds."""
        model = self.patcher.model
        options = options_for_gradient(self.options) if x.requires_grad else self.options
        whole = options.get("sampler_calc_cond_batch_function")
        if whole is not None:
            return whole({"conds": [cond, None], "input": x, "sigma": sigma, "model": model, "model_options": options})[
                0
            ]
        return comfy.samplers.calc_cond_batch(model, [cond], x, sigma, options)[0]

    def predict_like(self, step: "Step") -> torch.Tensor:
        """The prediction at the step's x and sigma on the conditioning that the guider's own prediction was made
        from.
        """
        name = next((k for k, processed in self.run.main.conds.items() if processed is step.cond), "positive")
        cond = self.conds.get(name, self.conds.get("positive"))
        if cond is None:
            raise RuntimeError(
                f"This guider has no positive conditioning (only {', '.join(self.conds)}); use a guider that has one."
            )
        return self.predict(cond, step.x, step.sigma)


def needs_own_module(extra: ExtraModel) -> bool:
    """Hooks of its own conditioning would have to be registered on the patcher that owns the load."""
    return extra.conditioning is not None and comfy.sampler_helpers.cond_has_hooks(extra.conditioning)


class LoadedExtra(Evaluator):
    """The life of one extra model in a run: `prepare` before the host loads, `begin` after, `end` always."""

    def __init__(self, run: "Run", key: str, extra: ExtraModel):
        main = run.model_patcher
        # A LoRA that was put on the MODEL after the guidance may have made it differ from a guide that ran on its
        # weights.
        patcher = attach_extra_model(
            main, key, main.get_attachment(key) or extra.patcher, separate=needs_own_module(extra)
        )
        self.owns_load = main.get_attachment(key) is not None
        conds = (
            run.conds
            if extra.conditioning is None
            else {"positive": comfy.sampler_helpers.convert_cond(extra.conditioning)}
        )
        conds = {name: [c.copy() for c in entries] for name, entries in conds.items()}
        self.to_load = additional_models_of(patcher)
        if extra.conditioning is not None:
            comfy.samplers.preprocess_conds_hooks(conds)
            self.to_load += comfy.sampler_helpers.get_additional_models(conds, patcher.model_dtype())[0]
        if self.owns_load:
            own_hooks(conds)
            if patcher.is_dynamic() and any(c.get("hooks") for entries in conds.values() for c in entries):
                patcher = patcher.get_non_dynamic_delegate()  # as guiders do: dynamic patchers have no weight hooks
            self.to_load.append(patcher)
        self.controls: OwnControls | None = None
        self.video = OwnVideoCache()
        self.hook_mode = patcher.hook_mode
        super().__init__(run, patcher, comfy.model_patcher.create_model_options_clone(patcher.model_options), conds)

    def prepare(self, apply_model) -> None:
        """Registers hooks; `apply_model`: the wrapper around each of its forwards."""
        if comfy.samplers.get_total_hook_groups_in_conds(self.conds) <= 1:
            self.patcher.hook_mode = comfy.hooks.EnumHookMode.MinVram
        comfy.sampler_helpers.prepare_model_patcher(self.patcher, self.conds, self.options)
        comfy.samplers.filter_registered_hooks_on_conds(self.conds, self.options)
        add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, apply_model, self.options, is_model_options=True)

    def begin(self) -> None:
        device = self.patcher.load_device
        comfy.samplers.cast_to_load_options(self.options, device=device, dtype=self.patcher.model_dtype())
        self.options["transformer_options"]["sample_sigmas"] = self.run.sigmas
        own_step_cache(self.options, self.patcher.get_model_object("model_sampling"))
        if self.owns_load:
            self.patcher.pre_run()
        else:
            # pre_run() would also make this patcher the current one of the module, which its holder has to stay.
            self.patcher.model_patches_to(device)
            self._call(CallbacksMP.ON_PRE_RUN)
        controls = OwnControls(self.conds)
        self.conds = self.process(self.conds)
        self.controls = controls

    def predict(self, cond: list, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        if self.controls is not None:
            self.controls.share_hints()
        self.video.put(self.run.main.options, self.options, self.patcher.model, x)
        return super().predict(cond, x, sigma)

    def update_caches(self, step: "Step") -> None:
        """Called in a step where the prediction is not wanted: makes it all the same where later ones build on it."""
        if self.video.at_work(self.run.main.options) and step.sigma_value == 0:
            self.predict_like(step)

    def end(self) -> None:
        comfy.samplers.cast_to_load_options(self.options, device=self.patcher.offload_device)
        if self.controls is not None:
            self.controls.cleanup()
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
