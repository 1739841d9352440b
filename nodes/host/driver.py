"""Driving the guidances of one sampling run with the host's hooks: who is called when, on whose account, and the end.

A driver lives from before the models are loaded until after the last clean-up. It keeps what must not be seen by a
guidance: wrappers, names, windows and states.
"""

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

from ...guidance.schedule import in_window
from .evaluate import LoadedExtra
from .gradient import differentiable_evaluation, options_for_gradient
from .guidance import Guidance
from .meter import MODEL, Meter
from .models import KEY, ExtraModel
from .node_text import show_on_node
from .run import Run, Step, Term

RUN = "guidance_lab_run"  # where the driver is found in the options of a sampling


@dataclass
class _Member:
    """A guidance in this run: what it is called, where it acts (None: everywhere), and what it keeps."""

    key: str
    guidance: Guidance
    name: str
    bounds: tuple[float, float] | None = None
    state: Any = None
    acted: bool = False

    def overrides(self, method: str) -> bool:
        return getattr(type(self.guidance), method) is not getattr(Guidance, method)

    def acts(self, step: Step) -> bool:
        inside = self.bounds is None or in_window(step.sigma_value, self.bounds)
        return inside and (self.guidance.over_time is None or self.guidance.factor(step) != 0)


class Driver:
    """One sampling of a guider with guidances on its MODEL."""

    def __init__(self, guider, guidances: list[tuple[str, Guidance]], shapes: dict):
        """guidances: (key, guidance) in wiring order, the key as in `extra_key`."""
        self.guider = guider
        names = [guidance.name for _, guidance in guidances]
        self.members = {}
        for place, (key, guidance) in enumerate(guidances):
            count = names[: place + 1].count(guidance.name)
            name = guidance.name if count == 1 else f"{guidance.name} {count}"
            self.members[key] = _Member(key, guidance, name)
        watched = any(member.overrides("observe") for member in self.members.values())
        self.meter = Meter(guider.model_patcher.load_device, watched)
        self.extras: list[LoadedExtra] = []
        self.evaluators: dict[ExtraModel, LoadedExtra] = {}
        conds = {name: [c.copy() for c in conds] for name, conds in guider.conds.items()}
        self.run = Run(guider, tuple(guidance for _, guidance in guidances), conds, shapes, self.evaluators)
        self.step: Step | None = None
        self.evaluated = self.asked = False  # whether a network has run, and the guider asked the guidances
        self.previous: torch.Tensor | None = None
        self.same_as: dict[int, int] = {}  # place of an appended cond in the running call → that of the positive

    def sample(self, executor, *args, **kwargs):
        """Around the whole sampling, before anything is loaded (OUTER_SAMPLE)."""
        with ExitStack() as stack:
            stack.callback(self._close)
            for member in self.members.values():
                for place, extra in enumerate(member.guidance.extra_models):
                    loaded = self.evaluators[extra] = LoadedExtra(self.run, extra_key(member.key, place), extra)
                    self.extras.append(loaded)
                    stack.callback(loaded.end)
                    loaded.prepare(self._apply_model)
            to_load = [model for extra in self.extras for model in extra.to_load]
            for key, model in self.guider.model_patcher.attachments.items():
                if any(key.startswith(f"{member}.loaded.") for member in self.members):
                    to_load.append(model)
            if to_load:
                # A copy that lives as long as this sampling.
                first = next(conds[0] for conds in self.guider.conds.values() if conds)
                first["additional_models"] = [*first.get("additional_models", []), *dict.fromkeys(to_load)]
            self._wrap(self.guider.model_options)
            output = executor(*args, **kwargs)
            self._warn_if_never_asked()
            return output

    def _warn_if_never_asked(self) -> None:
        """Says, in the log and on its node, of every guidance that had nothing to do in this run."""
        if not self.evaluated:
            return
        for member in self.members.values():
            if not self.asked:
                why = (
                    f"{type(self.guider).__name__} asked no post-CFG function (the Dual Model CFG Guider at cfg 1 does "
                    "so); use another guider or cfg."
                )
            elif not member.acted:
                why = "no step of this sampling lies in its window, or where its weight curve is not 0."
            else:
                continue
            message = f"{member.name} did nothing in this run, as {why}"
            logging.warning("Guidance Lab: %s", message)
            show_on_node(message, member.guidance.node_id)

    def _close(self) -> None:
        self.run.close()
        vars(self).clear()  # for the reason in `Run.close`

    def _wrap(self, options: dict) -> None:
        """Adds the driver and its wrappers to the model options, which the host makes for this sampling only."""
        options[RUN] = self
        # First, before any hook that changes predictions; under context windows it alone sees them whole.
        options["sampler_pre_cfg_function"] = [self._pre_cfg, *options.get("sampler_pre_cfg_function", [])]
        wrappers = options["transformer_options"].setdefault("wrappers", {})
        # First, so that C is what the sampler gets, with all that other wrappers make of it.
        others = wrappers.get(WrappersMP.CALC_COND_BATCH, {})
        wrappers[WrappersMP.CALC_COND_BATCH] = {KEY: [self._calc_cond_batch], **others}
        for kind, wrapper in (
            (WrappersMP.PREPARE_SAMPLING, self._prepare_sampling),
            (WrappersMP.SAMPLER_SAMPLE, self._sampler_sample),
            (WrappersMP.PREDICT_NOISE, self._predict_noise),
            (WrappersMP.APPLY_MODEL, self._apply_model),
        ):
            add_wrapper_with_key(kind, KEY, wrapper, options, is_model_options=True)

    def _prepare_sampling(self, executor, model, noise_shape, *rest, **kwargs):
        needed = sum(member.guidance.extra_memory(model, noise_shape) for member in self.members.values())
        base = model.model
        factor = base.memory_usage_factor
        # The host has no other place where an estimate can be raised: what it frees is proportional to this factor.
        base.memory_usage_factor = factor * (
            1 + needed / max(1.0, base.memory_required([noise_shape[0] * 2, *noise_shape[1:]]))
        )
        try:
            return executor(model, noise_shape, *rest, **kwargs)
        finally:
            base.memory_usage_factor = factor

    def _sampler_sample(
        self, executor, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
        *rest, **kwargs,
    ):  # fmt: skip
        run = self.run
        run.start(sigmas, extra_args, noise, latent_image, denoise_mask)
        for extra in self.extras:
            extra.begin()
        with ExitStack() as stack:
            for member in self.members.values():
                window = member.guidance.window
                if not window.is_everything:
                    member.bounds = window.sigmas(run.model_sampling.percent_to_sigma)
                with self.meter.charge(member.name):
                    member.state = member.guidance.begin(run)
                stack.callback(member.guidance.end, run, member.state)
            return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *rest, **kwargs)

    def _predict_noise(self, executor, x, sigma, model_options=None, *args, **kwargs):
        """Around each evaluation of the guider."""
        meter = self.meter
        step = self.step = Step(self.run, meter, x, sigma, self.previous)
        meter.costs = step.costs

        def evaluate(at: torch.Tensor) -> torch.Tensor:
            step.terms.clear()  # of an evaluation that is made once more
            step._predictions.clear()
            if not at.requires_grad:
                return self._call(MODEL, at, lambda: executor(at, sigma, model_options, *args, **kwargs))
            options = options_for_gradient(model_options)
            with differentiable_evaluation([*getattr(self.guider, "loaded_models", []), *self.run.models]):
                # Autograd must not save an inference tensor, and the sampler's sigma is one.
                return self._call(MODEL, at, lambda: executor(at, sigma.clone(), options, *args, **kwargs))

        try:
            began = meter.now()
            for member in self.members.values():
                if member.overrides("wrap") and member.acts(step):
                    evaluate = partial(self._wrapped, member, step, evaluate)
            denoised = evaluate(x)
            step.detach_predictions()
            step.seconds = meter.now() - began
            step.denoised = self.previous = denoised
            for member in self.members.values():
                with meter.charge(member.name):
                    member.guidance.observe(step, member.state)
            return denoised
        finally:
            self.step = meter.costs = None

    def _wrapped(self, member: _Member, step: Step, evaluate, at: torch.Tensor) -> torch.Tensor:
        return self._call(member.name, at, lambda: member.guidance.wrap(step, member.state, evaluate))

    def _call(self, name: str, at: torch.Tensor, call):
        """Calls on the account of `name`, with `at` for the step's x, so that all guidances inside take that one."""
        step = cast(Step, self.step)
        before, step.x = step.x, at
        try:
            with self.meter.charge(name):
                return call()
        finally:
            step.x = before

    def _extra_conds(self, member: _Member, step: Step) -> list[list[dict]]:
        if not member.overrides("extra_conds") or not member.acts(step):
            return []
        if member.key not in step._extra_conds:
            with self.meter.charge(member.name):
                step._extra_conds[member.key] = member.guidance.extra_conds(step, member.state)
        return step._extra_conds[member.key]

    def _calc_cond_batch(self, executor, model, conds, x, sigma, model_options):
        """Around the main model's predictions: keeps the first one of each list of conds, as it is before pre-CFG
        hooks.

        The guider's own call, the first one at the step's x, gets the guidances' extra conds appended.
        """
        step, extra = self.step, []
        positive = next(
            (i for i, cond in enumerate(conds) if cond is not None and cond is self.guider.conds.get("positive")), None
        )
        if step is not None and x is step.x and positive is not None and not step._predictions:
            extra = [cond for member in self.members.values() for cond in self._extra_conds(member, step)]
        self.same_as = {len(conds) + i: positive for i in range(len(extra))}
        try:
            predictions = executor(model, [*conds, *extra], x, sigma, model_options)
        finally:
            self.same_as = {}
        if step is not None:
            for cond, prediction in zip([*conds, *extra], predictions, strict=False):
                if cond is not None:
                    step._predictions.setdefault(id(cond), (cond, prediction))
        return predictions[: len(conds)]

    def _pre_cfg(self, args: dict) -> list:
        """The first pre-CFG function: keeps what the main model predicted for each list of conds of the guider."""
        if self.step is not None and args["input"] is self.step.x:
            for cond, prediction in zip(args["conds"], args["conds_out"], strict=False):
                if cond is not None:
                    self.step._predictions[id(cond)] = (cond, prediction)
        return args["conds_out"]

    def _apply_model(
        self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs
    ):
        """Around each forward of any network of this run."""
        options = {} if transformer_options is None else transformer_options
        if self.same_as and "cond_or_uncond" in options:
            # Attention patches know a positive (0) and a negative (1) at this place of the list, and nothing after
            # them.
            options["cond_or_uncond"][:] = [self.same_as.get(i, i) for i in options["cond_or_uncond"]]
        self.evaluated = True
        began = self.meter.now()
        out = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        self.meter.spend(1, x.shape[0], self.meter.now() - began)
        return out

    def post_cfg(self, key: str, args: dict) -> torch.Tensor:
        """The step of one guidance, as the host calls it after CFG."""
        member = self.members[key]
        guidance = member.guidance
        self.asked = True
        step = self.step or Step(self.run, self.meter, args["input"], args["sigma"])
        step.denoised = args["denoised"]
        # DualCFGGuider at cfg 1 and 1 hands on zeros instead of a prediction, and evaluates nothing but the positive.
        cond = self.guider.conds.get("positive") if args["cond"] is None else args["cond"]
        step.cond, step.cond_scale = cond, args["cond_scale"]
        step.cond_denoised = _before_hooks(step, cond, args["cond_denoised"])
        step.uncond_denoised = (
            None if args["uncond"] is None else _before_hooks(step, args["uncond"], args["uncond_denoised"])
        )
        acts = member.acts(step)
        member.acted |= acts
        if not acts:
            with self.meter.charge(member.name):
                for extra in guidance.extra_models:
                    self.evaluators[extra].update_caches(step)
            if self.meter.watched:
                step.terms.append(Term(member.name, None, guidance.neutral_weight))
            return step.denoised
        self._extra_conds(member, step)  # where the guider's call did not pass by
        with self.meter.charge(member.name):
            return guidance.step(step, member.state)


def _before_hooks(step: Step, cond: list | None, after: torch.Tensor) -> torch.Tensor:
    """The prediction for these conds as it came from the model; pre-CFG hooks may have made `after` of it."""
    known = step.known_prediction(cond)
    return after if known is None else known


def extra_key(key: str, place: int) -> str:
    """Under which the MODEL carries the extra model at this place of a guidance that was attached under `key`."""
    return f"{key}.{place}"
