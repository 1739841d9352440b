"""CLIP guidance in the real host: sign, size, window, batch and mask, in both gradient modes."""

import math

import pytest
import tiny_networks
import torch
from clip_tools import RGB, ConstantScorer, LinearScorer, TinyCLIP, guide, one_evaluation, watched

from guidance_lab.guidance.crops import whole_view
from guidance_lab.nodes.host.decode import make_decoder
from guidance_lab.nodes.host.models import models_loaded_with

SAMPLERS = ["euler", "heun", "dpmpp_2m", "dpmpp_sde", "euler_ancestral", "uni_pc", "euler_cfg_pp"]
GRADIENTS = pytest.mark.parametrize("gradient", ["x0", "through model"])


@pytest.fixture(scope="module")
def _sd15():
    with torch.inference_mode():
        return tiny_networks.build("SD15")


@pytest.fixture
def model(_sd15):
    return _sd15.clone()


@pytest.fixture
def prompts():
    return tiny_networks.positive(1), tiny_networks.positive(2)


def start(batch=1, **more):
    return {"samples": torch.zeros(batch, 4, 8, 8), **more}


@pytest.mark.parametrize("sampler_name", SAMPLERS)
def test_zero_strength_is_stock_and_loads_nothing(model, prompts, sample, run_node, sampler_name):
    scorer = TinyCLIP()
    stock = sample(model, *prompts, start(), sampler_name, steps=3)
    guided = guide(run_node, model, scorer, strength=0.0)
    assert torch.equal(sample(guided, *prompts, start(), sampler_name, steps=3), stock)
    assert scorer.calls == 0 and not models_loaded_with(guided)
    assert not torch.equal(sample(guide(run_node, model, scorer), *prompts, start(), sampler_name, steps=3), stock)


@GRADIENTS
def test_a_window_without_a_step_is_stock(model, prompts, sample, run_node, gradient):
    scorer = TinyCLIP()
    guided = guide(run_node, model, scorer, start_percent=1.0, end_percent=1.0, gradient=gradient)
    assert torch.equal(sample(guided, *prompts, start(), "heun"), sample(model, *prompts, start(), "heun"))
    assert scorer.calls == 0


@pytest.mark.parametrize("blend", ["UPainting", "x0"])
@GRADIENTS
def test_the_score_follows_the_sign(model, prompts, sample, run_node, gradient, blend):
    scorer = TinyCLIP()

    def score(strength):
        guided = guide(run_node, model, scorer, strength=strength, gradient=gradient, blend=blend)
        latent = sample(guided, *prompts, start()) * model.model.latent_format.scale_factor
        return scorer.score(whole_view(make_decoder(RGB, model).decode(latent), scorer.side), None).item()

    down, neutral, up = (score(s) for s in (-0.5, 0.0, 0.5))
    assert down < neutral < up


@GRADIENTS
def test_strength_is_the_size_of_the_shift(model, prompts, sample, run_node, gradient):
    """In VP the eps prediction moves by strength * sqrt(1 - abar): x0 by strength * (1 - abar)/sqrt(abar), each picture
    for itself.
    """
    guided, watch = watched(guide(run_node, model, TinyCLIP(), strength=0.7, gradient=gradient))
    sample(guided, *prompts, start(batch=2), steps=9)
    assert len(watch.shifts) == 9
    for step, shift in list(zip(watch.steps, watch.shifts, strict=True))[
        4:
    ]:  # the first steps are so long that they are capped
        abar = 1 / (1 + step.sigma_value**2)
        rms = shift.square().mean((1, 2, 3)).sqrt()
        assert rms == pytest.approx([0.7 * (1 - abar) / math.sqrt(abar)] * 2, rel=1e-5)


def test_the_window_decides_which_steps_are_looked_at(model, prompts, sample, run_node):
    scorer = TinyCLIP()
    guided, watch = watched(guide(run_node, model, scorer, start_percent=0.3, end_percent=0.8))
    sample(guided, *prompts, start(), steps=10)
    bounds = [model.model.model_sampling.percent_to_sigma(p) for p in (0.3, 0.8)]
    inside = [bounds[0] >= step.sigma_value >= bounds[1] for step in watch.steps]
    assert [shift is not None for shift in watch.shifts] == inside
    assert scorer.calls == sum(inside) and 0 < sum(inside) < 10


@pytest.mark.parametrize(("sampler_name", "expected"), [("euler", [0, 3, 6]), ("heun", [0, 3, 3, 6, 6])])
def test_every_third_step_by_sigma_not_by_call(model, prompts, sample, run_node, sampler_name, expected):
    """A new gradient at steps 0, 3, 6; Heun evaluates each noise level but the first twice."""
    scorer = TinyCLIP()
    guided, watch = watched(guide(run_node, model, scorer, every=3))
    sample(guided, *prompts, start(), sampler_name, steps=8)
    made = [index for index, step in zip(watch.indices, watch.steps, strict=True) if "CLIP guidance" in step.costs]
    assert made == expected
    assert scorer.calls == len(expected)
    assert all(shift is not None for shift in watch.shifts)


def test_between_two_gradients_the_last_one_is_used_at_the_present_size(model, prompts, sample, run_node):
    guided, watch = watched(guide(run_node, model, TinyCLIP(), every=2))
    sample(guided, *prompts, start(), steps=9)
    fresh, reused = watch.shifts[4], watch.shifts[5]
    assert torch.nn.functional.cosine_similarity(fresh.flatten(), reused.flatten(), dim=0) == pytest.approx(1, abs=1e-5)
    abar = 1 / (1 + watch.steps[5].sigma_value ** 2)
    assert reused.square().mean().sqrt().item() == pytest.approx(0.5 * (1 - abar) / math.sqrt(abar), rel=1e-5)


@GRADIENTS
@pytest.mark.parametrize("size", ["rms", "clamp", "exact"])
def test_a_batch_of_two_is_two_singles(model, prompts, run_node, gradient, size):
    guided = guide(run_node, model, TinyCLIP(), gradient=gradient, size=size, crops=2)
    x = 3.0 * tiny_networks.noisy(model, batch=2, height=8, width=8)
    both = one_evaluation(guided, x, 3.0, *prompts, cfg=3.0)
    singles = torch.cat([one_evaluation(guided, one, 3.0, *prompts, cfg=3.0) for one in x.split(1)])
    assert (both - singles).abs().max() < 1e-4 * both.abs().max()


@GRADIENTS
def test_a_mask_is_respected_and_the_size_is_taken_inside(model, prompts, sample, run_node, gradient):
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:6, 1:8] = 1
    generator = torch.Generator().manual_seed(5)
    given = {"samples": torch.randn(1, 4, 8, 8, generator=generator), "noise_mask": mask}
    guided, watch = watched(guide(run_node, model, TinyCLIP(), gradient=gradient))
    out = sample(guided, *prompts, given, steps=9)
    inside = mask.expand(1, 4, 8, 8).bool()
    for step, shift in list(zip(watch.steps, watch.shifts, strict=True))[4:]:
        assert (shift[~inside] == 0).all()
        abar = 1 / (1 + step.sigma_value**2)
        assert shift[inside].square().mean().sqrt().item() == pytest.approx(
            0.5 * (1 - abar) / math.sqrt(abar), rel=1e-5
        )
    assert torch.allclose(out[~inside], given["samples"][~inside], atol=1e-4)


def test_the_scorer_sees_the_given_picture_around_the_mask(model, prompts, sample, run_node):
    """Outside the mask the estimate is thrown away by the sampler, so it must not be looked at."""
    seen = []

    class Seeing(LinearScorer):
        def score(self, view, step):
            seen.append(view.detach().clone())
            return super().score(view, step)

    mask = torch.zeros(1, 8, 8)
    mask[:, 2:6, 1:8] = 1
    given = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5)), "noise_mask": mask}
    sample(guide(run_node, model, Seeing(), blend="x0"), *prompts, given, steps=2)
    expected = make_decoder(RGB, model).decode(model.model.process_latent_in(given["samples"]))
    outside = (mask == 0).expand(1, 3, 8, 8)
    assert torch.allclose(seen[-1][outside], expected[outside], atol=1e-4)
    assert not torch.allclose(seen[-1][~outside], expected[~outside], atol=1e-1)


@GRADIENTS
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_a_useless_gradient_is_no_shift(model, prompts, sample, run_node, gradient, value, caplog):
    guided = guide(run_node, model, ConstantScorer(value), gradient=gradient)
    out = sample(guided, *prompts, start())
    stock = sample(model, *prompts, start())
    # Through the model the evaluation is made with PyTorch's attention, which rounds otherwise than the host's on a
    # CPU.
    assert torch.equal(out, stock) if gradient == "x0" else (out - stock).abs().max() < 1e-3 * stock.abs().max()
    assert caplog.text.count("not a number") == (0 if value == 0 else 1)


def test_the_guider_is_the_patch_under_cfg_guider(model, prompts, run_node):
    import comfy.samplers
    from clip_tools import objective
    from pair_tools import run_guider

    settings = dict(decoder=RGB, strength=0.4, start_percent=0.1, crops=2)
    guider = run_node(
        "GuidanceLab_UPaintingCLIPGuider",
        model=model, positive=prompts[0], negative=prompts[1], cfg=3.0, objective=objective(TinyCLIP()), **settings,
    )[0]  # fmt: skip
    patched = comfy.samplers.CFGGuider(guide(run_node, model, TinyCLIP(), **settings))
    patched.set_conds(*prompts)
    patched.set_cfg(3.0)
    assert torch.equal(run_guider(guider, start(), steps=4), run_guider(patched, start(), steps=4))


@GRADIENTS
def test_the_trace_knows_the_term_and_its_cost(model, prompts, sample, run_node, gradient):
    guided = guide(run_node, model, TinyCLIP(), start_percent=0.5, gradient=gradient)
    traced, trace = run_node("GuidanceLab_GuidanceTrace", model=guided)
    sample(traced, *prompts, start(), steps=6)
    evaluations = trace.latest.evaluations
    terms = [{term.name: term for term in evaluation.terms}["CLIP guidance"] for evaluation in evaluations]
    assert terms[0].size == 0 and terms[-1].size > 0 and terms[-1].weight == 0.5
    assert not any(term.name == "other nodes" for evaluation in evaluations for term in evaluation.terms)
    costs = {cost.name: cost for cost in trace.latest.totals()}
    assert costs["CLIP guidance"].calls == sum(term.size > 0 for term in terms) and costs["model"].calls == 6
