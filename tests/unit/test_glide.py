"""GLIDE's schedule, its two guidance forms and the early-step cap, against the numbers of the official code."""

import math

import pytest
import torch
from reference import frames as reference_frames
from reference import glide as reference
from unit.gaussian import FRAMES
from unit.glide_golden import facts, hashed, tensors

from guidance_lab.guidance import frames, glide

STEPS = reference.respaced(glide.cosine_alpha_bars(), 100)
SHAPE = [2, 3, 8, 8]
KEYS = ("mean", "variance", "x0", "cond_mean.mean", "cond_score.x0", "cond_score.mean", "cond_score.ddim")


def relative(got, expected):
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.fixture(scope="module")
def inputs():
    """x, eps, model variance channels and gradient, as the recorded run had them."""
    return [
        hashed(f"input.diffusion_{name}", SHAPE, std)
        for name, std in (("x", 1.0), ("eps", 1.0), ("var", 0.5), ("grad", 0.3))
    ]


def test_respacing_keeps_the_original_timesteps():
    assert [step.timestep for step in STEPS] == facts()["timestep_map"]


@pytest.mark.parametrize("index", [99, 98, 95, 90, 50, 10, 0])
def test_coefficients(index):
    step, expected = STEPS[index], facts()["coefficients"][str(index)]
    one = torch.ones(1, dtype=torch.float64)
    assert step.timestep == expected["t_orig"]
    got = {
        "alpha_bar": step.alpha_bar,
        "alpha_bar_prev": step.alpha_bar_prev,
        "beta": step.beta,
        "Sigma_min": reference.variance(-one, step).item(),
        "Sigma_mid": reference.variance(0 * one, step).item(),
        "Sigma_max": reference.variance(one, step).item(),
        "x0_shift": glide.capped_weight(reference_frames.vp(step.alpha_bar, one)).item(),
        "sqrt_one_minus_abar": -reference_frames.eps_shift(one, reference_frames.vp(step.alpha_bar, one)).item(),
    }
    assert got == pytest.approx({key: expected[key] for key in got}, rel=1e-9)


@pytest.mark.parametrize("index", [99, 95, 50, 0])
def test_both_forms_on_the_recorded_step(index, inputs):
    x, eps, model_variance, gradient = inputs
    step, golden = STEPS[index], {key: tensors()[f"diffusion.s{index}.{key}"] for key in KEYS}
    x0 = reference.clamped_x0(x, eps, step)
    mean = reference.posterior_mean(x, x0, step)
    sigma = reference.variance(model_variance, step)
    shifted = reference.eps_form(x0, gradient, step)
    torch.testing.assert_close(sigma, golden["variance"], rtol=0, atol=1e-6)
    got = {
        "mean": mean,
        "x0": x0,
        "cond_mean.mean": reference.mean_form(mean, sigma, gradient),
        "cond_score.x0": shifted,
        "cond_score.mean": reference.posterior_mean(x, shifted, step),
        "cond_score.ddim": reference.ddim(x, shifted, step),
    }
    for key, value in got.items():
        assert relative(value, golden[key]) < 1e-5, key


@pytest.mark.parametrize("index", [99, 98, 95, 50, 0])
def test_the_eps_form_is_the_mean_form_with_beta_over_root_alpha(index, inputs):
    x, _, _, gradient = (value.double() for value in inputs)
    step = STEPS[index]
    weight = step.beta / math.sqrt(step.alpha_bar / step.alpha_bar_prev)
    assert weight == pytest.approx(facts()["coefficients"][str(index)]["beta_over_sqrt_alpha"], rel=1e-9)
    x0 = x.clamp(-1, 1)
    a = reference.posterior_mean(x, reference.eps_form(x0, gradient, step), step)
    b = reference.mean_form(reference.posterior_mean(x, x0, step), torch.tensor(weight).double(), gradient)
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_the_cap_acts_on_the_first_two_of_a_hundred_steps_and_makes_their_mean_weight_one():
    one = torch.ones(1, dtype=torch.float64)
    changed = []
    for index in range(100):
        step = STEPS[index]
        here, after = reference_frames.vp(step.alpha_bar, one), reference_frames.vp(step.alpha_bar_prev, one)
        free, capped = glide.capped_weight(here), glide.capped_weight(here, after)
        if not torch.equal(free, capped):
            changed.append(index)
            mean_weight = capped * math.sqrt(step.alpha_bar_prev) * step.beta / (1 - step.alpha_bar)
            assert mean_weight.item() == pytest.approx(1.0, rel=1e-6)
        tight = (
            glide.capped_weight(here, after, largest=0.25)
            * math.sqrt(step.alpha_bar_prev)
            * step.beta
            / (1 - step.alpha_bar)
        )
        assert tight.item() <= 0.25 * (1 + 1e-6)
    assert changed == [98, 99]


def test_the_cap_is_the_same_in_every_frame_and_finite_where_the_signal_is_gone():
    one = torch.ones(1, dtype=torch.float64)
    sigma, after = 5.0, 0.5
    levels = [
        (frames.ve(sigma, one), frames.ve(after, one)),
        (frames.flow(sigma / (1 + sigma), one), frames.flow(after / (1 + after), one)),
        (reference_frames.vp(1 / (1 + sigma**2), one), reference_frames.vp(1 / (1 + after**2), one)),
    ]
    beta = 1 - (1 + after**2) / (1 + sigma**2)
    expected = sigma**2 / (1 + sigma**2) * math.sqrt(1 + after**2) / beta
    assert expected < sigma**2 / math.sqrt(1 + sigma**2)
    for level in levels:
        assert glide.capped_weight(*level).item() == pytest.approx(expected, rel=1e-12)
    assert torch.isinf(glide.capped_weight(frames.flow(1.0, one)))
    assert glide.capped_weight(frames.flow(1.0, one), frames.flow(0.5, one)).item() == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("following", [3.0, 4.0])
def test_a_step_that_adds_noise_or_none_is_not_capped(following):
    """A restarting sampler goes up again: the drop is then below zero, and would turn the pull round."""
    one = torch.ones(1, dtype=torch.float64)
    here, after = frames.ve(3.0, one), frames.ve(following, one)
    assert torch.equal(glide.capped_weight(here, after), glide.capped_weight(here))


def test_the_weight_keeps_its_digits_at_low_noise_in_float32():
    level = frames.ve(1e-4, torch.ones(1))
    assert glide.capped_weight(level).item() == pytest.approx(1e-8, rel=1e-5)


@pytest.mark.parametrize("frame", FRAMES)
def test_the_nearest_original_timestep(frame):
    bars = glide.cosine_alpha_bars()
    like = torch.ones(3, 1, dtype=torch.float64)
    picked = torch.tensor([bars[3], bars[250], bars[998]], dtype=torch.float64)
    sigma = (1 / picked - 1).sqrt() * 1.0001
    level = {
        "VE": frames.ve(sigma, like),
        "flow": frames.flow(sigma / (1 + sigma), like),
        "VP": reference_frames.vp(1 / (1 + sigma**2), like),
    }[frame]
    assert glide.nearest_timestep(level, bars).tolist() == [3, 250, 998]


def test_noise_beyond_the_schedule_gets_its_ends():
    bars = glide.cosine_alpha_bars()
    level = frames.flow(torch.tensor([0.0, 1.0]), torch.ones(2, 1))
    assert glide.nearest_timestep(level, bars).tolist() == [0, 999]


def test_renoising_has_the_right_moments_its_own_generator_and_a_gradient(generator):
    x0 = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
    before = torch.random.get_rng_state()
    y = glide.renoise(x0, 0.36, generator)
    assert abs(y.mean().item() - 0.3) < 0.03 and abs(y.std().item() - 0.8) < 0.03
    assert torch.equal(glide.renoise(x0, 0.36, torch.Generator().manual_seed(0)), y)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x0)[0], torch.full_like(x0, 0.6))


def test_an_impossible_number_of_steps_is_refused():
    for count in (1, 1001):
        with pytest.raises(ValueError, match="between 2 and 1000"):
            reference.respaced(glide.cosine_alpha_bars(), count)
