"""Guidance Trace in real sampling: bit-identical pictures, and numbers equal to those of an independent post-CFG
hook.
"""

import json

import pytest
import torch
from comfy_extras.nodes_custom_sampler import BasicGuider, CFGGuider
from pair_tools import CallCounter, pair, run_guider

pytestmark = pytest.mark.side(4)

CFG, WEIGHT = 3.0, 1.7


def traced(run_node, model):
    return run_node("GuidanceLab_GuidanceTrace", model=model)


def read(run_node, trace) -> dict:
    return json.loads(run_node("GuidanceLab_GuidanceTracePlot", trace=trace, after=None)[1])


def term(evaluation: dict, name: str) -> dict:
    return next(t for t in evaluation["terms"] if t["name"] == name)


def norms(value):
    return value.flatten(1).norm(dim=1)


def mean_cosine(a, b) -> float:
    return torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).mean().item()


def hooked(model, into: list):
    """A clone with a post-CFG hook of the host's own kind that keeps what every evaluation gave."""
    clone = model.clone()

    def keep(args):
        into.append({name: args[name] for name in ("sigma", "denoised", "cond_denoised", "uncond_denoised")})
        return args["denoised"]

    clone.set_model_sampler_post_cfg_function(keep, disable_cfg1_optimization=False)
    return clone


@pytest.mark.parametrize("sampler_name", ["euler", "dpm_2", "dpmpp_2m"])
@pytest.mark.parametrize("cfg", [1.0, CFG])
def test_a_traced_model_samples_bit_for_bit_the_same(tiny_model, cond, latent, sample, run_node, sampler_name, cfg):
    positive, negative, start = cond(1), cond(2), latent(batch=2)
    plain = sample(tiny_model, positive, negative, start, sampler_name, steps=2, cfg=cfg)
    model, _ = traced(run_node, tiny_model)
    for _ in range(3):
        assert torch.equal(sample(model, positive, negative, start, sampler_name, steps=2, cfg=cfg), plain)
    assert torch.equal(sample(tiny_model, positive, negative, start, sampler_name, steps=2, cfg=cfg), plain)


def test_no_extra_model_evaluation(tiny_model, cond, latent, sample, run_node):
    counter = CallCounter(tiny_model)
    model, trace = traced(run_node, counter.model)
    sample(model, cond(1), cond(2), latent(), steps=3, cfg=CFG)
    assert counter.calls == 3
    evaluations = read(run_node, trace)["evaluations"]
    assert [e["costs"] for e in evaluations] == [
        [{**e["costs"][0], "name": "model", "calls": 1, "predictions": 2.0}] for e in evaluations
    ]


@pytest.mark.parametrize("wiring", ["trace after pair", "trace before pair"])
def test_numbers_equal_an_independent_computation(tiny_model, tiny_model_b, cond, latent, sample, run_node, wiring):
    positive, negative, start = cond(1), cond(2), latent(batch=2)
    kept: list[dict] = []
    if wiring == "trace after pair":
        model, trace = traced(run_node, pair(run_node, hooked(tiny_model, kept), tiny_model_b, WEIGHT))
    else:
        model, trace = traced(run_node, hooked(tiny_model, kept))
        model = pair(run_node, model, tiny_model_b, WEIGHT)
    final: list[dict] = []
    guided = sample(hooked(model, final), positive, negative, start, steps=3, cfg=CFG)
    assert torch.equal(
        guided, sample(pair(run_node, tiny_model, tiny_model_b, WEIGHT), positive, negative, start, steps=3, cfg=CFG)
    )

    record = read(run_node, trace)
    assert len(record["evaluations"]) == len(kept) == 3
    for index, (evaluation, before, after) in enumerate(zip(record["evaluations"], kept, final, strict=True)):
        cond_x0, direction = before["cond_denoised"], before["cond_denoised"] - before["uncond_denoised"]
        added = after["denoised"] - before["denoised"]
        assert evaluation["step"] == index
        assert evaluation["sigma"] == pytest.approx(before["sigma"][0].item())
        cfg, autoguidance = term(evaluation, "CFG"), term(evaluation, "Autoguidance")
        assert len(evaluation["terms"]) == 2
        assert (cfg["weight"], autoguidance["weight"]) == (CFG, WEIGHT)
        assert cfg["size"] == pytest.approx(((CFG - 1) * norms(direction) / norms(cond_x0)).mean().item(), rel=1e-4)
        assert cfg["cosine"] == pytest.approx(1.0, abs=1e-5)
        assert autoguidance["size"] == pytest.approx((norms(added) / norms(cond_x0)).mean().item(), rel=1e-4)
        assert autoguidance["cosine"] == pytest.approx(mean_cosine(added, direction), abs=1e-4)
        assert 0 < sum(c["seconds"] for c in evaluation["costs"]) <= evaluation["seconds"]
        assert {c["name"]: (c["calls"], c["predictions"]) for c in evaluation["costs"]} == {
            "model": (1, 2.0),
            "Autoguidance": (1, 1.0),
        }


def test_without_cfg_there_is_no_direction(tiny_model, tiny_model_b, cond, latent, sample, run_node):
    model, trace = traced(run_node, pair(run_node, tiny_model, tiny_model_b, WEIGHT))
    sample(model, cond(1), cond(2), latent(), steps=2, cfg=1.0)
    for evaluation in read(run_node, trace)["evaluations"]:
        (only,) = evaluation["terms"]
        assert (only["name"], only["cosine"], only["weight"]) == ("Autoguidance", None, WEIGHT)
        assert only["size"] > 0


def test_outside_its_window_a_term_is_nothing(tiny_model, tiny_model_b, cond, latent, sample, run_node):
    model, trace = traced(run_node, pair(run_node, tiny_model, tiny_model_b, WEIGHT, end_percent=0.5))
    sample(model, cond(1), cond(2), latent(), steps=4, cfg=CFG)
    autoguidance = [term(e, "Autoguidance") for e in read(run_node, trace)["evaluations"]]
    assert [t["weight"] for t in autoguidance] == [WEIGHT, WEIGHT, 1.0, 1.0]
    assert autoguidance[0]["size"] > 0
    assert (autoguidance[3]["size"], autoguidance[3]["cosine"]) == (0.0, None)


@pytest.mark.parametrize("sampler_name", ["heun", "dpm_2"])
def test_two_evaluations_per_step(tiny_model, cond, latent, sample, run_node, sampler_name):
    kept: list[dict] = []
    model, trace = traced(run_node, hooked(tiny_model, kept))
    sample(model, cond(1), cond(2), latent(), sampler_name, steps=3, cfg=CFG)
    evaluations = read(run_node, trace)["evaluations"]
    assert len(evaluations) == len(kept) > 3
    assert [e["sigma"] for e in evaluations] == pytest.approx([k["sigma"][0].item() for k in kept])
    steps = [e["step"] for e in evaluations]
    assert steps == sorted(steps) and steps[-1] == 2


@pytest.mark.parametrize("kind", ["CFGGuider", "BasicGuider"])
def test_under_the_guiders_of_samplercustomadvanced(tiny_model, tiny_model_b, cond, latent, sample, run_node, kind):
    positive, negative, start = cond(1), cond(2), latent()
    model, trace = traced(run_node, pair(run_node, tiny_model, tiny_model_b, WEIGHT))
    cfg = CFG if kind == "CFGGuider" else 1.0
    guider = (
        CFGGuider.execute(model, positive, negative, cfg)[0]
        if kind == "CFGGuider"
        else BasicGuider.execute(model, positive)[0]
    )
    run_guider(guider, start)
    custom = read(run_node, trace)["evaluations"]
    sample(model, positive, negative, start, steps=2, cfg=cfg)
    plain = read(run_node, trace)["evaluations"]
    assert [e["terms"] for e in custom] == [e["terms"] for e in plain]


def test_every_run_has_its_own_record(tiny_model, cond, latent, sample, run_node):
    """The trace node stays cached while the sampler runs again: the same handle must give the newest run, and only
    that.
    """
    model, trace = traced(run_node, tiny_model)
    sample(model, cond(1), cond(2), latent(), steps=2, cfg=CFG, seed=1)
    first = read(run_node, trace)
    sample(model, cond(1), cond(2), latent(), steps=3, cfg=CFG, seed=2)
    second = read(run_node, trace)
    sample(model, cond(1), cond(2), latent(), steps=2, cfg=CFG, seed=1)
    third = read(run_node, trace)
    terms = [[e["terms"] for e in record["evaluations"]] for record in (first, second, third)]
    assert [len(t) for t in terms] == [2, 3, 2]
    assert terms[0] == terms[2] != terms[1][:2]


def test_two_traces_do_not_meet(tiny_model, cond, latent, sample, run_node):
    (one, one_trace), (other, other_trace) = traced(run_node, tiny_model), traced(run_node, tiny_model)
    sample(one, cond(1), cond(2), latent(), steps=2, cfg=CFG)
    assert other_trace.latest is None
    sample(other, cond(1), cond(2), latent(), steps=3, cfg=CFG)
    assert [len(read(run_node, t)["evaluations"]) for t in (one_trace, other_trace)] == [2, 3]


def test_a_run_that_failed_leaves_nothing_behind(tiny_model, cond, latent, sample, run_node):
    plain = sample(tiny_model, cond(1), cond(2), latent(), steps=2, cfg=CFG)
    model, trace = traced(run_node, tiny_model)
    broken = model.clone()

    def fail(args):
        raise RuntimeError("broken on purpose")

    broken.set_model_sampler_post_cfg_function(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        sample(broken, cond(1), cond(2), latent(), steps=2, cfg=CFG)
    with pytest.raises(ValueError, match="no model evaluation"):
        read(run_node, trace)
    assert torch.equal(sample(model, cond(1), cond(2), latent(), steps=2, cfg=CFG), plain)
    assert len(read(run_node, trace)["evaluations"]) == 2


def test_what_another_node_does_is_shown_as_its_own_term(tiny_model, cond, latent, sample, run_node):
    other = tiny_model.clone()
    other.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 1.25)
    model, trace = traced(run_node, other)
    sample(model, cond(1), cond(2), latent(), steps=2, cfg=1.0)
    for evaluation in read(run_node, trace)["evaluations"]:
        assert term(evaluation, "other nodes")["size"] == pytest.approx(0.25, rel=1e-4)


def test_the_plot_is_an_image(tiny_model, cond, latent, sample, run_node):
    model, trace = traced(run_node, tiny_model)
    sample(model, cond(1), cond(2), latent(), steps=2, cfg=CFG)
    image = run_node("GuidanceLab_GuidanceTracePlot", trace=trace, after=None)[0]
    assert image.shape == (1, 640, 1024, 3) and image.dtype == torch.float32
    assert 0 <= image.min() < 0.3 and image.max() == 1


def test_a_plot_before_sampling_is_refused_in_one_sentence(tiny_model, run_node):
    _, trace = traced(run_node, tiny_model)
    with pytest.raises(ValueError, match="found no sampling run in its trace"):
        read(run_node, trace)
