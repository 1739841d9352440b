"""The contract of a guidance: what it is asked in a sampling run, and when."""

from collections.abc import Callable
from typing import Any, cast

import torch
from comfy.model_patcher import ModelPatcher

from ...guidance.schedule import Window, in_window, percent_at, weight_over_time
from .models import ExtraModel
from .run import Run, Step


class Guidance:
    """Settings of one guidance. What a subclass does not need it does not override; it is immutable once attached.

    What changes while sampling lives in the state that `begin` returns, which exists for one run only.
    """

    node_id: str | None = None  # of the node that made it, for what is said there
    name: str = ""  # what the trace calls it; a second one of that name in a run gets a number
    window: Window = Window()  # outside of it only `begin`, `observe` and `end` are called
    neutral_weight: float = 0.0  # the weight that the trace shows outside of the window
    over_time: Callable[[float], float] | None = None  # percent -> factor of the weight; where it is 0, as outside
    # Whether it adds the gradient of a score to the estimate; a model's own clamp of its estimates comes before that.
    adds_a_gradient: bool = False
    extra_models: tuple[ExtraModel, ...] = ()  # diffusion models that it evaluates: `run.evaluator(extra)`
    loaded_models: tuple[
        ModelPatcher, ...
    ] = ()  # other networks it uses by itself, loaded together with the main model

    def factor(self, step: Step) -> float:
        """What `over_time` says at this evaluation; 1 without it."""
        return 1.0 if self.over_time is None else self.over_time(step.percent)

    def weight_at(self, weight: float, step: Step) -> float:
        """The weight in force at this evaluation: `weight` itself without `over_time` or where that is 1."""
        return weight_over_time(weight, self.factor(step), self.neutral_weight)

    def weights(self, weight: float, run: Run) -> list[float]:
        """The weights of a whole run: one for each step of its schedule."""
        to_sigma = run.model_sampling.percent_to_sigma
        bounds = self.window.sigmas(to_sigma)
        found = []
        for sigma in run.sigmas.tolist()[:-1]:
            acts = self.window.is_everything or in_window(sigma, bounds)
            factor = 1.0 if self.over_time is None else self.over_time(percent_at(sigma, to_sigma))
            found.append(weight_over_time(weight, factor if acts else 0.0, self.neutral_weight))
        return found

    def extra_memory(self, model: ModelPatcher, noise_shape: tuple[int, ...]) -> float:
        """Bytes that it needs on the device while it works, beside the weights and what the host counts for the model
        itself.
        """
        return 0.0

    def begin(self, run: Run) -> Any:
        """Once, when all is loaded. What it returns is handed to everything below as `state`."""
        return None

    def extra_conds(self, step: Step, state: Any) -> list[list[dict]]:
        """Lists of processed conds that the main model shall predict in the guider's own call; `step.predict(cond)` has
        each later.

        Once in each evaluation, before the model is called; only x, sigma and what was before are known in `step`.
        Attention patches see each as another version of the positive.
        """
        return []

    def wrap(self, step: Step, state: Any, evaluate: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Around the whole evaluation, with all guidances in it: `evaluate(x)` makes it, as often as it is called.

        Given an x that requires a gradient, `evaluate` gives x0 with the graph back to it, through every model.
        Several guidances that wrap are nested, the last wired outermost. What is recorded before `evaluate` is lost.
        """
        return evaluate(step.x)

    def step(self, step: Step, state: Any) -> torch.Tensor:
        """The new denoised estimate, once per model evaluation, after CFG and the guidances wired before."""
        return cast(torch.Tensor, step.denoised)

    def observe(self, step: Step, state: Any) -> None:
        """After each evaluation, when `step` has the final denoised, all terms and costs. Overriding it has a price:
        the terms are kept and the times wait for the GPU.
        """
        return None

    def end(self, run: Run, state: Any) -> None:
        """Once, also after an error or an interrupt, if `begin` was gone through."""
        return None
