"""Autoguidance: a model pair in which the weaker model shows where not to go."""

import logging
import math
from dataclasses import dataclass

import torch

from ...guidance.autoguidance import add_term, guidance_term
from ...guidance.schedule import Window
from .._api import io
from ..host import ExtraModel, Guidance, Run, Step, attach, same_prediction
from ..host.curve_input import curve_input, over_time, show_weights
from ..host.live import Live
from ..host.node_text import show_on_node
from ..layers import read_in_run
from .pairing import refuse_unlike, refuse_unlike_sampling

CATEGORY = "Guidance Lab/Autoguidance"


class ModelPair(Guidance):
    """D = CFG(C, U) + (w - 1)(C - B): eq. 3 of the autoguidance paper at cfg 1, eq. 6 otherwise."""

    name = "Autoguidance"
    neutral_weight = 1.0

    def __init__(
        self, guide_model, weight: float, window: Window, guide_positive: list | None = None, curve=None, node_id=None
    ):
        """curve: percent -> factor of weight - 1, or None."""
        self.over_time, self.node_id = curve, node_id
        self.guide = ExtraModel(guide_model, guide_positive)
        self.extra_models = (self.guide,)
        self.weight = weight
        self.window = window

    def begin(self, run: Run) -> "_PairInRun | None":
        """None in a run where main model and guide are one and the same. ValueError where they cannot be mixed."""
        if self.guide.conditioning is None and same_prediction(run.model_patcher, self.guide.patcher):
            return None
        warning = refuse_unlike_sampling(run.model_patcher, self.guide.patcher)
        if warning is not None:
            _warn(warning, self.node_id)
        guide = run.evaluator(self.guide)
        read_in_run(guide.options, guide.conds)  # prompts per layer: C and B read the same
        show_weights(self, self.weight, run, Live(self.node_id))
        return _PairInRun()

    def step(self, step: Step, state: "_PairInRun | None"):
        if state is None:
            step.record_term(None, self.neutral_weight)
            return step.denoised
        guide = step.run.evaluator(self.guide).predict_like(step)
        state.compare(step.cond_denoised, guide)
        weight = self.weight_at(self.weight, step)
        term = guidance_term(step.cond_denoised, guide, weight)
        step.record_term(term, weight)
        return add_term(step.denoised, term)

    def end(self, run: Run, state: "_PairInRun | None") -> None:
        if state is not None and state.differ is not None and not state.differ.item():
            _warn(
                "model and guide_model predicted the same in this whole run, so autoguidance did nothing; give it a "
                "weaker guide.",
                self.node_id,
            )


@dataclass
class _PairInRun:
    """Whether the two predictions have differed so far (None: not compared yet)."""

    differ: torch.Tensor | None = None

    def compare(self, main: torch.Tensor, guide: torch.Tensor) -> None:
        """Stays on the device: the answer is read once, at the end."""
        differ = (main - guide).abs().amax() > 1e-6 * main.abs().amax()
        self.differ = differ if self.differ is None else self.differ | differ


def check_weight(weight: float) -> None:
    """ValueError when the weight is no finite number."""
    if not math.isfinite(weight):
        raise ValueError(f"weight is {weight}; give a finite number, 1 for no autoguidance, usually 1.5 to 3.")


def _warn(message: str, node_id: str | None) -> None:
    logging.warning("Guidance Lab: %s", message)
    show_on_node(message, node_id)


class AutoguidanceModelPair(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_AutoguidanceModelPair",
            display_name="Autoguidance Model Pair",
            category=CATEGORY,
            description=(
                "Guides a model with a weaker version of itself: better pictures without losing variety. "
                "Costs one evaluation of the guide per step; works at cfg 1 and together with CFG, with any sampler."
            ),
            search_aliases=[
                "autoguidance",
                "AG",
                "guiding with a bad version of itself",
                "bad model",
                "weak model",
                "EDM2",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The good model, the one you want pictures from. LoRAs and patches on it act on it alone.",
                ),
                io.Model.Input(
                    "guide_model",
                    tooltip="A weaker model of the same family: an earlier or smaller checkpoint, the base of your "
                    "fine-tune, the model without its LoRA, or Weaker Version. LoRAs and patches on it act on it "
                    "alone.",
                ),
                io.Float.Input(
                    "weight",
                    default=2.0,
                    min=0.0,
                    max=20.0,
                    step=0.05,
                    tooltip="w in D = CFG + (w - 1)(model - guide). 1 is off (the guide is not even loaded), usual 1.5 "
                    "to 3; "
                    "0 at cfg 1 shows the guide's own picture.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where autoguidance starts, as a part of the sampling: 0 is the noisiest step, 1 the last. "
                    "Usually 0: the paper found it useful at all noise levels.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where autoguidance ends, this point included; usually 1. Outside the window the guide is "
                    "not evaluated.",
                ),
                io.Conditioning.Input(
                    "guide_positive",
                    optional=True,
                    tooltip="The same prompt, encoded for the guide. Only needed when the guide has another text "
                    "encoder than the model.",
                ),
                curve_input("weight"),
            ],
            outputs=[io.Model.Output(tooltip="The model with autoguidance on it, for KSampler or any guider node.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, weight=1.0, start_percent=0.0, end_percent=1.0) -> bool | str:
        # The host's own range check is off for inputs named here; linked ones arrive as None.
        if weight is not None and not 0.0 <= weight <= 20.0:
            return f"weight is {weight}; give a number from 0 to 20, 1 for no autoguidance, usually 1.5 to 3."
        try:
            Window(start_percent or 0.0, 1.0 if end_percent is None else end_percent)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, model, guide_model, weight=2.0, start_percent=0.0, end_percent=1.0, guide_positive=None, weight_curve=None
    ) -> io.NodeOutput:
        check_weight(weight)
        curve = over_time(weight_curve)
        window = Window(start_percent, end_percent)
        if model is None or guide_model is None:
            raise ValueError(
                "Autoguidance Model Pair needs both a model and a guide_model; connect the weaker model to guide_model."
            )
        refuse_unlike(model, guide_model, guide_positive)
        if weight == 1.0:
            return io.NodeOutput(model.clone())
        if guide_positive is None and same_prediction(model, guide_model):
            _warn(
                "model and guide_model are the same, so autoguidance does nothing; give it a weaker guide.",
                cls.hidden.unique_id,
            )
        return io.NodeOutput(
            attach(model, ModelPair(guide_model, weight, window, guide_positive, curve, cls.hidden.unique_id))
        )


NODES = [AutoguidanceModelPair]
