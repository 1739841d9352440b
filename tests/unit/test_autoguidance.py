"""Autoguidance algebra against closed forms and against the formulas of other implementations, written out."""

import pytest
import torch
from reference.autoguidance import best_extrapolation, weights_from_total

from guidance_lab.guidance.autoguidance import (
    add_term,
    autoguided,
    guidance_term,
    multi_guided,
)


@pytest.fixture
def predictions(generator):
    return [torch.randn(2, 4, 8, 8, generator=generator) for _ in range(3)]


def test_weight_one_is_the_main_model_and_zero_the_guide(predictions):
    main, guide, _ = predictions
    assert autoguided(main, guide, 1.0) is main
    assert torch.allclose(autoguided(main, guide, 0.0), guide, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 2.1, 7.3])
def test_equation_3_is_the_lerp_of_edm2_and_diffusers(predictions, weight):
    main, guide, _ = predictions
    result = autoguided(main, guide, weight)
    tolerance = 1e-6 * result.abs().max()
    assert (result - torch.lerp(guide, main, weight)).abs().max() <= tolerance
    # diffusers' use_original_formulation: cond + g (cond - weak), where w = g + 1
    assert (result - (main + (weight - 1.0) * (main - guide))).abs().max() <= tolerance


def test_an_equal_guide_adds_exactly_nothing(predictions):
    main = predictions[0]
    assert torch.equal(autoguided(main, main.clone(), 5.0), main)


def test_equation_6_reduces_to_cfg_and_to_equation_3(predictions):
    main, guide, uncond = predictions
    assert torch.allclose(multi_guided(main, [(uncond, 3.0), (guide, 1.0)]), uncond + (main - uncond) * 3.0, atol=2e-6)
    assert torch.equal(multi_guided(main, [(uncond, 1.0), (guide, 2.5)]), autoguided(main, guide, 2.5))


def test_equation_6_is_linear_in_each_weight(predictions):
    main, guide, uncond = (p.double() for p in predictions)

    def at(w_u, w_c):
        return multi_guided(main, [(uncond, w_u), (guide, w_c)])

    for low, middle, high in ((at(2, 1.5), at(2, 2), at(2, 2.5)), (at(1.5, 2), at(2, 2), at(2.5, 2))):
        assert torch.allclose((low + high) / 2, middle, rtol=0, atol=1e-12)


def test_equation_6_measures_both_differences_from_the_main_prediction(predictions):
    """The order does not matter, and CFG followed by the autoguidance term is the same (the spec's 'sequential
    delta').
    """
    main, guide, uncond = predictions
    a = multi_guided(main, [(uncond, 4.0), (guide, 2.0)])
    b = multi_guided(main, [(guide, 2.0), (uncond, 4.0)])
    cfg = uncond + (main - uncond) * 4.0
    assert torch.allclose(a, b, atol=5e-6)
    assert torch.allclose(a, add_term(cfg, guidance_term(main, guide, 2.0)), atol=5e-6)


@pytest.mark.parametrize(
    ("mix", "expected"), [(0.0, (3.0, 1.0)), (1.0, (1.0, 3.0)), (0.5, (2.0, 2.0)), (0.25, (2.5, 1.5))]
)
def test_total_and_mix(mix, expected):
    assert weights_from_total(3.0, mix) == pytest.approx(expected)


def test_total_and_mix_is_the_other_packs_paper_mode(predictions):
    """CFG(1 + (1-a)(g-1)) + a(g-1)(C - B), the formula of an existing ComfyUI pack restated."""
    main, guide, uncond = predictions
    total, mix = 4.0, 0.3
    w_u, w_c = weights_from_total(total, mix)
    w_cfg, w_ag = (1 - mix) * (total - 1), mix * (total - 1)
    other = uncond + (main - uncond) * (1 + w_cfg) + w_ag * (main - guide)
    assert torch.allclose(multi_guided(main, [(uncond, w_u), (guide, w_c)]), other, atol=5e-6)


@pytest.mark.parametrize("mix", [-0.1, 1.1, float("nan")])
def test_a_mix_outside_its_range_is_refused(mix):
    with pytest.raises(ValueError, match="0 to 1"):
        weights_from_total(3.0, mix)


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_mixing_commutes_with_the_parameterization(generator, kind):
    """eps, v and flow velocity are affine in x0 with equal coefficients for both models, so mixing them gives the same
    denoised.
    """
    x, main, guide = (torch.randn(2, 4, 8, 8, generator=generator).double() for _ in range(3))
    sigma, weight = 0.7, 2.3
    root = (sigma**2 + 1) ** 0.5
    to_output, to_x0 = {
        "eps": (lambda d: (x - d) / sigma, lambda e: x - sigma * e),
        "v": (lambda d: (x / root**2 - d) * root / sigma, lambda v: x / root**2 - v * sigma / root),
        "flow": (lambda d: (x - d) / sigma, lambda f: x - sigma * f),
    }[kind]
    mixed = to_x0(weight * to_output(main) + (1 - weight) * to_output(guide))
    assert torch.allclose(autoguided(main, guide, weight), mixed, rtol=0, atol=1e-12)


def test_half_precision_is_summed_in_float32(predictions):
    main, guide = (p.half() for p in predictions[:2])
    result = autoguided(main, guide, 2.0)
    assert result.dtype == torch.float16
    assert torch.equal(result, (main.float() * 2 - guide.float()).half())


def test_best_extrapolation_minimizes_the_error(predictions):
    main, guide, clean = predictions
    best = best_extrapolation(main, guide, clean).view(-1, 1, 1, 1)

    def error(s):
        return (main + s * (main - guide) - clean).square().flatten(1).sum(1)

    assert (error(best) < error(best + 0.01)).all() and (error(best) < error(best - 0.01)).all()
    assert best_extrapolation(main, main - 0.5 * (clean - main), clean) == pytest.approx([2.0, 2.0], rel=1e-5)
