"""How a test of a compatibility table says its cell, and the references that the cells are held against."""

import importlib
import json
import uuid

import comfy.conds
import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.sd
import pytest
import torch

REL = 1e-4


class RandomTexts(comfy.sd.CLIP):
    """A CLIP whose texts are random numbers, in what each model family asks for: `make(seed)` is a CONDITIONING."""

    def __init__(self, make):
        super().__init__(no_init=True)
        self.make, self.use_clip_schedule, self.apply_hooks_to_conds = make, False, None
        with torch.inference_mode(False):
            self.cond_stage_model = torch.nn.Linear(1, 1)
        on = torch.device("cpu")
        self.patcher = comfy.model_patcher.ModelPatcher(self.cond_stage_model, load_device=on, offload_device=on)

    def clone(self, disable_dynamic=False):
        clone = RandomTexts(self.make)
        clone.patcher, clone.cond_stage_model = self.patcher.clone(), self.cond_stage_model
        return clone

    def tokenize(self, text, **options):
        return text

    def encode_from_tokens_scheduled(self, tokens, **options):
        return self.make(sum(map(ord, tokens)))


@pytest.fixture
def cell(record_property):
    """`cell(table, row, column, what)`: the cell of this test; `what` is "works", or the sentence of a refusal.

    `tools/compatibility.py` reads it from the report of a run, and only of tests that passed.
    """

    def say(table: str, row: str, column: str, what: str = "works"):
        record_property("compatibility", "\t".join((table, row, column, " ".join(what.split()))))

    return say


def refusal(action) -> str | None:
    """The sentence with which `action` is refused; None where it is not."""
    with torch.inference_mode():
        try:
            action()
        except ValueError as error:
            return str(error)
    return None


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def core(module: str, name: str, model, **given):
    """The MODEL that a node of ComfyUI's own gives, with its defaults where nothing is given."""
    node = getattr(importlib.import_module(f"comfy_extras.{module}"), name)
    if hasattr(node, "define_schema"):
        inputs = node.define_schema().inputs
        defaults = {each.id: each.default for each in inputs if getattr(each, "default", None) is not None}
        for each in inputs:
            if isinstance(getattr(each, "options", None), list) and each.options:
                defaults.setdefault(each.id, each.options[0])
        out = node.execute(**{**defaults, "model": model, **given})
        return getattr(out, "result", out)[0]
    kinds = node.INPUT_TYPES()
    entries = {**kinds.get("required", {}), **kinds.get("optional", {})}
    defaults = {key: entry[1]["default"] for key, entry in entries.items() if len(entry) > 1 and "default" in entry[1]}
    defaults |= {
        key: entry[0][0] for key, entry in entries.items() if isinstance(entry[0], list) and key not in defaults
    }
    return getattr(node(), node.FUNCTION)(**{**defaults, "model": model, **given})[0]


def with_separate_guide(model, guide, weight: float, own_c: bool = False):
    """A clone of the MODEL that adds (weight - 1)(C - B), written with core's post-CFG hook alone.

    B comes from a separate evaluation of `guide`, which has weights of its own. own_c: C too, for companions that
    change what the hook is told.
    """

    def after_cfg(args):
        x, sigma, conds = args["input"], args["sigma"], args["cond"]
        comfy.model_management.load_models_gpu([guide])
        guide.pre_run()
        if own_c:
            (c,) = comfy.samplers.calc_cond_batch(args["model"], [conds], x, sigma, args["model_options"])
        else:
            c = args["cond_denoised"]
        (b,) = comfy.samplers.calc_cond_batch(guide.model, [conds], x, sigma, guide.model_options)
        return args["denoised"] + (weight - 1) * (c - b)

    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(after_cfg)
    return clone


def second_evaluation(model, x, sigmas, positive, negative=None, cfg=1.0):
    """The MODEL's denoised prediction for this x at sigmas[1], after it has seen x at sigmas[0], of one real run."""
    seen = []

    def two(wrapped, noise, given, extra_args, callback, disable):
        seen.extend(wrapped(x, sigma * x.new_ones([len(x)]), **extra_args) for sigma in given[:2])
        return seen[1]

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, positive if negative is None else negative)
    guider.set_cfg(cfg)
    with torch.inference_mode():
        schedule = torch.tensor([*sigmas, sigmas[1] / 2])
        zeros = torch.zeros_like(x)
        guider.sample(zeros, zeros, comfy.samplers.KSAMPLER(two), schedule, disable_pbar=True)
    return seen[1]


def with_hook_for_captions(model, caption, scale: float, own_c: bool = False):
    """A clone of the MODEL that adds -scale (B - C) after the first evaluation, B under the prompt `caption`, written
    with core's post-CFG hook alone. own_c: as in `with_separate_guide`.
    """
    calls = []

    def after_cfg(args):
        calls.append(args["sigma"])
        if len(calls) == 1:
            return args["denoised"]
        x, sigma, conds = args["input"], args["sigma"], args["cond"]
        other = [{**entry, "uuid": uuid.uuid4(), "model_conds": {**entry["model_conds"]}} for entry in conds]
        for entry in other:
            entry["model_conds"]["c_crossattn"] = comfy.conds.CONDCrossAttn(caption[0][0])
        asked = [conds, other]
        c, b = comfy.samplers.calc_cond_batch(args["model"], asked, x, sigma, args["model_options"])
        return args["denoised"] - scale * (b - (c if own_c else args["cond_denoised"]))

    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(after_cfg)
    return clone


def trace_sizes(run_node, trace) -> dict[str, list[float]]:
    """Term → its relative size in each evaluation of the newest run."""
    record = json.loads(run_node("GuidanceLab_GuidanceTracePlot", trace=trace, after=None)[1])
    sizes: dict[str, list[float]] = {}
    for evaluation in record["evaluations"]:
        for term in evaluation["terms"]:
            sizes.setdefault(term["name"], []).append(term["size"])
    return sizes
