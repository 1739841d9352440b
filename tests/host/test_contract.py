"""The contract of a guidance, method by method: what is called when, on whose account, and inside the window only."""

import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from pair_tools import STEPS, CallCounter

from guidance_lab.guidance.schedule import Window
from guidance_lab.nodes.host import ExtraModel, Guidance, attach

pytestmark = pytest.mark.side(4)


@pytest.fixture
def sample(sample, cond, latent):
    def run(model, *args, batch=1, **options):
        return sample(model, cond(1), cond(2), latent(batch=batch), *args, **{"steps": STEPS, **options})

    return run


class Everything(Guidance):
    """Overrides all methods, writes down that they were called, and predicts by an extra model in each."""

    def __init__(self, log, name="all", window=None, guide=None):
        self.log, self.name = log, name
        self.window = window or Window()
        self.extra_models = () if guide is None else (ExtraModel(guide),)

    def begin(self, run):
        self.log.append((self.name, "begin"))
        return {"run": run, "calls": 0}

    def _called(self, method, step, state):
        assert step.run is state["run"]
        self.log.append((self.name, method))
        if self.extra_models and method != "observe":
            extra = step.run.evaluator(self.extra_models[0])
            extra.predict(extra.conds["positive"], step.x, step.sigma)

    def extra_conds(self, step, state):
        self._called("extra_conds", step, state)
        return []

    def wrap(self, step, state, evaluate):
        self._called("wrap", step, state)
        denoised = evaluate(step.x)
        self.log.append((self.name, "wrapped"))
        return denoised

    def step(self, step, state):
        self._called("step", step, state)
        step.record_term(torch.zeros_like(step.denoised), 2.0)
        return step.denoised

    def observe(self, step, state):
        self._called("observe", step, state)

    def end(self, run, state):
        self.log.append((self.name, "end"))


def test_the_order_of_a_run(tiny_model, sample):
    log = []
    model = attach(attach(tiny_model, Everything(log, "a")), Everything(log, "b"))
    assert torch.equal(sample(model), sample(tiny_model))
    evaluation = [
        ("b", "wrap"), ("a", "wrap"), ("a", "extra_conds"), ("b", "extra_conds"), ("a", "step"), ("b", "step"),
        ("a", "wrapped"), ("b", "wrapped"), ("a", "observe"), ("b", "observe"),
    ]  # fmt: skip
    assert log == [("a", "begin"), ("b", "begin"), *evaluation * STEPS, ("b", "end"), ("a", "end")]


def test_outside_its_window_nothing_is_called_and_no_model_evaluated(tiny_model, tiny_model_b, sample):
    log, steps = [], []
    guide = CallCounter(tiny_model_b)
    percent_to_sigma = tiny_model.model.model_sampling.percent_to_sigma
    window = Window(0.3, 0.6)

    class Watch(Guidance):
        def observe(self, step, state):
            steps.append(step)

    model = attach(attach(tiny_model, Everything(log, "all", window, guide.model)), Watch())
    assert torch.equal(sample(model, steps=8), sample(tiny_model, steps=8))
    inside = [percent_to_sigma(0.3) >= step.sigma_value >= percent_to_sigma(0.6) for step in steps]
    assert 0 < sum(inside) < 8 and not inside[0] and not inside[-1]
    for method in ("extra_conds", "wrap", "step"):
        assert log.count(("all", method)) == sum(inside)
    assert log.count(("all", "observe")) == 8 and log[0] == ("all", "begin") and log[-1] == ("all", "end")
    assert guide.calls == 3 * sum(inside)
    assert [[(term.name, term.value is None, term.weight) for term in step.terms] for step in steps] == [
        [("all", False, 2.0)] if acts else [("all", True, 0.0)] for acts in inside
    ]


def test_the_driver_knows_the_name_and_the_account_in_every_callback(tiny_model, tiny_model_b, sample):
    log, costs = [], []

    class Watch(Guidance):
        name = "watch"

        def observe(self, step, state):
            costs.append({name: (cost.calls, cost.rows) for name, cost in step.costs.items()})
            assert [term.name for term in step.terms] == ["all", "all 2"]

    model = attach(tiny_model, Everything(log, guide=tiny_model_b))
    model = attach(attach(model, Everything(log, guide=tiny_model_b)), Watch())
    sample(model, batch=2)
    assert costs == [{"all 2": (3, 6), "all": (3, 6), "model": (1, 4)}] * STEPS


def test_the_end_comes_for_all_also_when_an_end_fails(tiny_model, sample):
    log = []

    class Failing(Everything):
        def end(self, run, state):
            super().end(run, state)
            raise KeyError("on purpose")

    model = attach(attach(tiny_model, Everything(log, "a")), Failing(log, "b"))
    with pytest.raises(KeyError):
        sample(model)
    assert log[-2:] == [("b", "end"), ("a", "end")]
    assert torch.equal(sample(attach(tiny_model, Everything(log, "a"))), sample(tiny_model))


def test_wraps_are_nested_and_may_evaluate_elsewhere_and_twice(tiny_model, sample):
    """The last wired is the outermost; guidances inside see the x of the evaluation, and records of the last one."""
    seen, recorded = [], []

    class Scaled(Guidance):
        def __init__(self, factor, add):
            self.factor, self.add = factor, add

        def wrap(self, step, state, evaluate):
            return evaluate(step.x * self.factor) + self.add

    class Twice(Guidance):
        def wrap(self, step, state, evaluate):
            return (evaluate(step.x) + evaluate(step.x)) / 2

    class Look(Guidance):
        def step(self, step, state):
            seen.append(step.x)
            step.record_term(step.x, 1.0)
            return step.denoised

        def observe(self, step, state):
            recorded.append(len(step.terms))

    def first(model):
        """x of the first evaluation."""
        model, out = model.clone(), []
        model.set_model_sampler_post_cfg_function(lambda args: (out.append(args["input"]), args["denoised"])[1])
        sample(model, steps=1)
        return out[0]

    x = first(tiny_model)
    model = attach(attach(tiny_model, Look()), Scaled(2.0, 1.0))
    sample(attach(attach(model, Scaled(3.0, 0.0)), Twice()), steps=1)
    assert len(seen) == 2 and recorded == [1]
    assert torch.equal(seen[0], x * 3.0 * 2.0) and torch.equal(seen[1], seen[0])


def test_what_a_wrap_gives_is_what_the_sampler_gets(tiny_model, sample):
    class Zero(Guidance):
        def wrap(self, step, state, evaluate):
            return torch.zeros_like(step.x)

    counter = CallCounter(tiny_model)
    out = sample(attach(counter.model, Zero()))
    assert counter.calls == 0 and out.abs().max() < 1e-3


def test_extra_conds_are_predicted_in_the_guiders_own_call(tiny_model, sample):
    counter, predicted = CallCounter(tiny_model), []

    class Also(Guidance):
        def begin(self, run):
            return [run.main.conds[name][:] for name in ("negative", "positive")]  # lists of their own

        def extra_conds(self, step, state):
            return state if step.index else []

        def step(self, step, state):
            if step.index:
                negative, positive = state
                predicted.append((step.predict(negative), step.uncond_denoised))
                predicted.append((step.predict(positive), step.cond_denoised))
            return step.denoised

    assert torch.allclose(sample(attach(counter.model, Also())), sample(tiny_model), atol=1e-4)
    assert counter.rows == [2] + [4] * (STEPS - 1) and len(predicted) == 2 * (STEPS - 1)
    assert all(torch.allclose(*two, atol=1e-4) for two in predicted)


def test_the_estimate_before_is_the_final_one(tiny_model, sample):
    """After all guidances and what other nodes make of it, of the evaluation before; none at the first."""
    given, before = [], []

    class Look(Guidance):
        def step(self, step, state):
            before.append(step.previous)
            return step.denoised

    model = attach(tiny_model, Look())
    model.set_model_sampler_post_cfg_function(lambda args: (given.append(args["denoised"] * 1.1), given[-1])[1])
    sample(model, "heun")
    assert before[0] is None and len(before) == 2 * STEPS - 1
    assert all(torch.equal(a, b) for a, b in zip(before[1:], given, strict=False))


@pytest.mark.parametrize("sampler_name", ["euler", "heun", "dpm_2", "dpmpp_sde"])
def test_the_trace_counts_steps_as_a_guidance_does(tiny_model, sample, run_node, sampler_name):
    indices, sigmas = [], []

    class Look(Guidance):
        def step(self, step, state):
            indices.append(step.index)
            sigmas.append(step.sigma_value)
            return step.denoised

    model, trace = run_node("GuidanceLab_GuidanceTrace", model=attach(tiny_model, Look()))
    sample(model, sampler_name, steps=3)
    assert [evaluation.step for evaluation in trace.latest.evaluations] == indices
    schedule = comfy.samplers.calculate_sigmas(tiny_model.model.model_sampling, "normal", 3)
    if sampler_name == "dpm_2":  # DISCARD_PENULTIMATE: of 4 levels the last but one is left out
        schedule = comfy.samplers.calculate_sigmas(tiny_model.model.model_sampling, "normal", 4)
        schedule = torch.cat([schedule[:-2], schedule[-1:]])
    for index, sigma in zip(indices, sigmas, strict=True):
        assert schedule[index] * (1 + 1e-5) >= sigma and (index == 2 or sigma > schedule[index + 1] * (1 - 1e-5))


def test_gradients_go_back_through_an_evaluation(tiny_model, tiny_model_b, sample):
    """A wrap that hands in an x with a gradient gets one, through CFG and through the extra model of another."""
    gradients, attention = [], {"model": [], "guide": []}

    def looking(model, name):
        """Whether each forward is made with attention that has a backward."""

        def look(executor, x, t, *args, **kwargs):
            attention[name].append("optimized_attention_override" in args[3])
            return executor(x, t, *args, **kwargs)

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "look", look)
        return model

    class Pull(Guidance):
        def wrap(self, step, state, evaluate):
            with torch.inference_mode(False), torch.enable_grad():
                leaf = step.x.clone().requires_grad_()
                denoised = evaluate(leaf)
                gradients.append(torch.autograd.grad(denoised.square().sum(), leaf)[0])
            return denoised.detach()

    class Other(Guidance):
        def __init__(self, guide):
            self.extra_models = (ExtraModel(guide),)

        def step(self, step, state):
            return step.denoised + step.run.evaluator(self.extra_models[0]).predict_like(step)

    plain = sample(attach(tiny_model, Pull()), steps=1)
    assert torch.allclose(plain, sample(tiny_model, steps=1), atol=1e-3 * plain.abs().max())
    other = attach(looking(tiny_model, "model"), Other(looking(tiny_model_b, "guide")))
    sample(attach(other, Pull()), steps=1)
    assert attention == {"model": [True], "guide": [True]}
    sample(other, steps=1)
    assert attention == {"model": [True, False], "guide": [True, False]}
    assert all(torch.isfinite(g).all() and g.abs().max() > 0 for g in gradients)
    assert not torch.allclose(*gradients, rtol=1e-2)
