"""The contract of the host adapter, with guidances written for the purpose."""

import gc
import weakref
from functools import partial

import pytest
import torch
from comfy_extras.nodes_custom_sampler import CFGGuider
from pair_tools import STEPS, CallCounter, pair, run_guider

pytestmark = pytest.mark.side(4)


@pytest.fixture
def sample(sample):
    return partial(sample, steps=STEPS)


@pytest.fixture
def host(guidance_lab):
    from guidance_lab.nodes import host

    return host


@pytest.fixture
def recorder(host):
    """A guidance that changes nothing and writes down its life and what it hears."""

    class Recorder(host.Guidance):
        name = "Recorder"

        def __init__(self):
            self.log, self.steps = [], []

        def begin(self, run):
            self.log.append("begin")
            return {"run": run, "count": 0}

        def step(self, step, state):
            state["count"] += 1
            assert step.run is state["run"]
            return step.denoised

        def observe(self, step, state):
            self.steps.append(step)

        def end(self, run, state):
            self.log.append(("end", state["count"]))

    return Recorder()


def add(host, name, amount, log=None):
    class Add(host.Guidance):
        def __init__(self):
            self.name = name

        def begin(self, run):
            if log is not None:
                log.append(f"begin {name}")

        def step(self, step, state):
            term = torch.full_like(step.denoised, amount)
            step.record_term(term, amount)
            return step.denoised + term

        def end(self, run, state):
            if log is not None:
                log.append(f"end {name}")

    return Add()


def test_begin_step_end(host, recorder, tiny_model, cond, latent, sample):
    model = host.attach(tiny_model, recorder)
    assert torch.equal(sample(model, cond(1), cond(2), latent()), sample(tiny_model, cond(1), cond(2), latent()))
    assert recorder.log == ["begin", ("end", STEPS)]
    sample(model, cond(1), cond(2), latent())
    assert recorder.log == ["begin", ("end", STEPS)] * 2


@pytest.mark.parametrize("at", ["begin", "step"])
def test_end_comes_after_an_error_too_for_all_that_began(host, tiny_model, cond, latent, sample, at):
    log = []

    class Failing(host.Guidance):
        name = "Failing"

        def begin(self, run):
            if at == "begin":
                raise KeyError("on purpose")

        def step(self, step, state):
            raise KeyError("on purpose")

    model = host.attach(host.attach(tiny_model, add(host, "first", 0.0, log)), Failing())
    with pytest.raises(KeyError):
        sample(model, cond(1), cond(2), latent())
    assert log == ["begin first", "end first"]
    assert tiny_model.model.current_patcher is None


def test_guidances_act_in_wiring_order_also_on_a_clone(host, tiny_model, cond, latent, sample):
    class Double(host.Guidance):
        name = "Double"

        def step(self, step, state):
            return step.denoised * 2

    def last(model):
        seen = []
        model = model.clone()
        model.set_model_sampler_post_cfg_function(lambda args: (seen.append(args["denoised"]), args["denoised"])[1])
        sample(model, cond(1), cond(2), latent(), steps=1)
        return seen[0]

    plain = last(tiny_model)
    assert torch.equal(last(host.attach(host.attach(tiny_model, add(host, "one", 1.0)), Double())), (plain + 1.0) * 2)
    assert torch.equal(
        last(host.attach(host.attach(tiny_model, Double()), add(host, "one", 1.0)).clone()), plain * 2 + 1.0
    )


@pytest.mark.parametrize("listens", ["before", "after"])
def test_a_listener_hears_all_terms_wherever_it_is_wired(
    host, recorder, tiny_model, tiny_model_b, cond, latent, run_node, sample, listens
):
    model = host.attach(tiny_model, recorder) if listens == "before" else tiny_model
    model = pair(run_node, model, tiny_model_b, 1.7)
    model = host.attach(pair(run_node, model, tiny_model_b, 1.3, start_percent=0.5), add(host, "one", 1.0))
    model = host.attach(model, recorder) if listens == "after" else model
    sample(model, cond(1), cond(2), latent(), cfg=3.0)
    first = recorder.steps[0]
    assert [(term.name, term.weight) for term in first.terms] == [
        ("Autoguidance", 1.7),
        ("Autoguidance 2", 1.0),
        ("one", 1.0),
    ]
    assert first.terms[1].value is None
    cfg = first.uncond_denoised + (first.cond_denoised - first.uncond_denoised) * 3.0
    assert torch.equal(first.denoised, cfg + first.terms[0].value + first.terms[2].value)
    assert recorder.steps[-1].terms[1].weight == 1.3
    assert [step.sigma_value for step in recorder.steps] == sorted(
        (step.sigma_value for step in recorder.steps), reverse=True
    )
    assert first.cond_scale == 3.0


def test_calls_rows_and_time_are_counted_on_their_name(
    host, recorder, tiny_model, tiny_model_b, cond, latent, run_node, sample
):
    model = host.attach(pair(run_node, tiny_model, tiny_model_b, 1.7), recorder)
    sample(model, cond(1), cond(2), latent(batch=2), "heun", cfg=3.0)
    assert len(recorder.steps) == 2 * STEPS - 1  # one for each model evaluation, the last heun step has one
    for step in recorder.steps:
        assert {name: (cost.calls, cost.rows) for name, cost in step.costs.items()} == {
            "model": (1, 4),
            "Autoguidance": (1, 2),
        }
        assert 0 < step.costs["Autoguidance"].seconds < step.seconds
        assert sum(cost.seconds for cost in step.costs.values()) <= step.seconds


def test_terms_are_not_kept_when_nobody_listens(host, tiny_model, cond, latent, sample):
    kept = []

    class Look(host.Guidance):
        name = "Look"

        def step(self, step, state):
            kept.append(len(step.terms))
            return step.denoised

    sample(host.attach(host.attach(tiny_model, add(host, "one", 1.0)), Look()), cond(1), cond(2), latent())
    assert kept == [0] * STEPS


def test_what_a_run_offers_at_begin(host, tiny_model, tiny_model_b, cond, latent, sample):
    seen = {}

    class Look(host.Guidance):
        name = "Look"
        extra_models = (host.ExtraModel(tiny_model_b),)

        def begin(self, run):
            seen.update(
                names=sorted(run.conds), processed="c_crossattn" in run.conds["positive"][0]["model_conds"],
                shape=run.noise.shape,
                sigmas=run.sigmas, seed=run.seed, device=run.device, mask=run.denoise_mask,
                parameterization=run.parameterization,
                image=run.latent_image,
                loaded=run.evaluator(self.extra_models[0]).patcher.model.current_patcher is not None, model=run.model,
            )  # fmt: skip

        def step(self, step, state):
            again = step.run.main.predict(step.cond, step.x, step.sigma)
            assert torch.allclose(again, step.cond_denoised, atol=1e-4 * again.abs().max())
            other = step.run.main.process({"positive": [c.copy() for c in step.run.conds["negative"]]})["positive"]
            again = step.run.main.predict(other, step.x, step.sigma)
            assert torch.allclose(again, step.uncond_denoised, atol=1e-4 * again.abs().max())
            return step.denoised

    start = latent(batch=2, seed=1)
    sample(host.attach(tiny_model, Look()), cond(1), cond(2), start, seed=11)
    assert seen["names"] == ["negative", "positive"] and not seen["processed"]
    assert seen["shape"] == start["samples"].shape and seen["seed"] == 11 and seen["parameterization"] == "VE"
    assert len(seen["sigmas"]) == STEPS + 1 and seen["device"].type == "cpu" and seen["mask"] is None
    assert torch.equal(seen["image"], tiny_model.model.process_latent_in(start["samples"]))
    assert seen["loaded"] and seen["model"] is tiny_model.model


def test_evaluations_inside_a_step_are_charged_to_the_guidance(host, recorder, tiny_model, cond, latent, sample):
    class Again(host.Guidance):
        name = "Again"

        def step(self, step, state):
            step.run.main.predict(step.cond, step.x, step.sigma)
            return step.denoised

    counter = CallCounter(tiny_model)
    sample(host.attach(host.attach(counter.model, Again()), recorder), cond(1), cond(2), latent())
    assert all((step.costs["model"].calls, step.costs["Again"].calls) == (1, 1) for step in recorder.steps)
    assert counter.calls == 2 * STEPS


def test_a_model_is_gone_when_nobody_holds_it(host, tiny_model, tiny_model_b, cond, latent, run_node, sample):
    """Without the garbage collector: ComfyUI cannot unload what only that can free, and warns of a memory leak."""
    model = host.attach(pair(run_node, tiny_model, tiny_model_b, 2.0), add(host, "one", 1.0))
    there = weakref.ref(model)
    gc.collect()
    gc.disable()
    try:
        sample(model, cond(1), cond(2), latent())
        del model
        assert there() is None
    finally:
        gc.enable()


def test_a_sampler_that_skips_the_hosts_wrappers_is_told_so(host, recorder, tiny_model, cond, latent):
    model = host.attach(tiny_model, recorder)
    guider = CFGGuider.execute(model, cond(1), cond(2), 3.0)[0]
    model.wrappers.clear()
    with pytest.raises(RuntimeError, match="OUTER_SAMPLE"):
        run_guider(guider, latent())
