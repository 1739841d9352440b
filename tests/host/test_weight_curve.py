"""The weight over time: a flat curve of 1 changes no bit, a curve that is 0 somewhere is the window, and what is no
curve is refused.
"""

import caption_tools
import pytest
import torch
from caption_tools import NEGATIVE, PROMPT, SAYS, ChosenWords, encoded
from clip_tools import TinyCLIP, guide
from comfy_api.input import CurveInput
from comfy_extras.nodes_curve import CurveEditor

STEPS = 6
FLAT = {"points": [[0, 1], [1, 1]], "interpolation": "linear"}
HALF = {"points": [[0, 0.5], [1, 0.5]], "interpolation": "linear"}
# 1 from 0.3 to 0.7 and 0 around it; no step of these schedules lies on a slope.
INSIDE = {
    "points": [[0, 0], [0.2999, 0], [0.3, 1], [0.7, 1], [0.7001, 0], [1, 0]],
    "interpolation": "linear",
}
WINDOW = {"start_percent": 0.3, "end_percent": 0.7}


def curve(raw: dict) -> CurveInput:
    """As ComfyUI's own Curve Editor gives it."""
    return CurveEditor.execute(raw).result[0]


@pytest.fixture
def guidances(run_node, shapes):
    """Name → (strength, **settings) → the guided MODEL."""
    model, clip, _, early = shapes[:4]

    def pair(weight=2.3, **settings):
        node = "GuidanceLab_AutoguidanceModelPair"
        return run_node(node, model=model, guide_model=early, weight=weight, **settings)[0]

    def clip_guidance(weight=0.3, **settings):
        settings = {"start_percent": 0.0, **settings}
        return guide(run_node, model, TinyCLIP(), strength=weight, **settings)

    def through(weight=0.3, **settings):
        return clip_guidance(weight, gradient="through model", **settings)

    def caption(weight=1.3, **settings):
        return caption_tools.guided(run_node, shapes, ChosenWords(SAYS), scale=weight, **settings)

    return {"pair": pair, "clip": clip_guidance, "through": through, "caption": caption}


@pytest.fixture
def draw(shapes, sample, latent):
    conds = encoded(shapes[1], PROMPT), encoded(shapes[1], NEGATIVE)
    return lambda model, **settings: sample(model, *conds, latent(2, seed=3), cfg=2.0, **{"steps": STEPS, **settings})


EACH = pytest.mark.parametrize("name", ["pair", "clip", "through", "caption"])


@EACH
def test_a_flat_curve_of_one_is_bit_identical(guidances, draw, name):
    plain = draw(guidances[name]())
    assert torch.equal(draw(guidances[name](weight_curve=curve(FLAT))), plain)
    assert torch.equal(draw(guidances[name](weight_curve=FLAT)), plain)  # as a prompt over the API may say it
    assert not torch.equal(draw(guidances[name](weight_curve=curve(HALF))), plain)


@EACH
@pytest.mark.parametrize("sampler_name", ["euler", "heun"])
def test_a_curve_that_is_zero_somewhere_is_the_window(guidances, draw, name, sampler_name):
    window = draw(guidances[name](**WINDOW), sampler_name=sampler_name)
    assert torch.equal(draw(guidances[name](weight_curve=curve(INSIDE)), sampler_name=sampler_name), window)
    assert not torch.equal(window, draw(guidances[name](), sampler_name=sampler_name))


@pytest.mark.parametrize(("name", "whole", "half"), [("pair", 3.0, 2.0), ("clip", 0.5, 0.25), ("caption", 1.0, 0.5)])
def test_half_the_curve_is_half_the_weight(guidances, draw, name, whole, half):
    assert torch.equal(draw(guidances[name](whole, weight_curve=curve(HALF))), draw(guidances[name](half)))


def test_the_trace_shows_the_weight_in_force(guidances, draw, run_node):
    falling = curve({"points": [[0, 1], [1, 0]], "interpolation": "linear"})
    traced, trace = run_node("GuidanceLab_GuidanceTrace", model=guidances["pair"](3.0, weight_curve=falling))
    draw(traced)
    weights = [term.weight for one in trace.latest.evaluations for term in one.terms if term.name == "Autoguidance"]
    assert len(weights) == STEPS and weights == sorted(weights, reverse=True)
    assert weights[0] == pytest.approx(3.0, abs=0.01) and 1.0 <= weights[-1] < 1.2


@EACH
@pytest.mark.parametrize("wrong", [{"points": []}, {"points": [[0, float("nan")]]}, {"points": "x"}, {}, object()])
def test_what_is_no_curve_is_refused_in_one_sentence(guidances, name, wrong):
    with pytest.raises(ValueError, match="no curve of finite points"):
        guidances[name](weight_curve=wrong)


def test_stock_is_stock_afterwards(guidances, draw, shapes):
    stock = draw(shapes[0])
    for made in guidances.values():
        draw(made(weight_curve=curve(INSIDE)))
    assert torch.equal(draw(shapes[0]), stock)
