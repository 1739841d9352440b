"""Conversions between x0, eps, v, velocity and score, and the exact tilt of a Gaussian in each of them."""

import pytest
import torch
from reference import frames as reference
from unit.gaussian import FRAMES, world

from guidance_lab.guidance import frames

LEVELS = list(FRAMES)
GAMMA = 0.7


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frame", LEVELS)
def test_eps_v_velocity_and_score_give_the_clean_sample_back(frame, generator):
    x0, noise = torch.randn(2, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    level = FRAMES[frame](x0)
    x = level.alpha * x0 + level.sigma * noise
    close(reference.denoised_from_eps(x, noise, level), x0)
    close(reference.denoised_from_velocity(x, noise - x0, level), x0)
    close(reference.denoised_from_score(x, -noise / level.sigma, level), x0)
    r = frames.radius(level)
    close(reference.denoised_from_v(x, level.alpha / r * noise - level.sigma / r * x0, level), x0)


@pytest.mark.parametrize("frame", LEVELS)
@pytest.mark.parametrize("kind", ["eps", "v", "velocity", "score"])
def test_each_conversion_is_the_inverse_of_the_other(frame, kind, generator):
    x, x0 = torch.randn(2, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    level = FRAMES[frame](x)
    prediction = getattr(reference, f"{kind}_from_denoised")(x, x0, level)
    close(getattr(reference, f"denoised_from_{kind}")(x, prediction, level), x0)


@pytest.mark.parametrize("frame", LEVELS)
@pytest.mark.parametrize("kind", ["denoised", "eps", "v", "velocity"])
def test_a_gaussian_is_tilted_exactly_in_every_parameterization(frame, kind, generator):
    """A linear reward gamma*u.x0 turns N(m, C) into N(m + gamma*C*u, C); the guided prediction must be that target's
    own.
    """
    data, direction, x = world(generator)
    level = FRAMES[frame](x)
    denoised = data.denoise(x, level)
    target = data.tilted(GAMMA * direction).denoise(x, level)
    # grad_x S(D(x)) = (dD/dx)^T u, and dD/dx = a * Cov[x0|x] / b^2
    gradient = (level.alpha / level.sigma**2).squeeze() * data.posterior_covariance(level) @ direction
    guide = getattr(reference, f"{kind}_shift")(GAMMA * gradient, level)
    if kind == "denoised":
        close(denoised + guide, target)
        return
    prediction = getattr(reference, f"{kind}_from_denoised")(x, denoised, level)
    close(getattr(reference, f"denoised_from_{kind}")(x, prediction + guide, level), target)


def test_factors_are_the_published_ones():
    one = torch.ones(1, dtype=torch.float64)
    abar, sigma = 0.3, 0.63
    vp, ve, flow = reference.vp(abar, one), frames.ve(sigma, one), frames.flow(sigma, one)
    close(reference.denoised_shift(one, vp), one * (1 - abar) / abar**0.5)
    close(reference.eps_shift(one, vp), one * -((1 - abar) ** 0.5))
    close(reference.v_shift(one, vp), one * -(((1 - abar) / abar) ** 0.5))
    close(reference.denoised_shift(one, ve), one * sigma**2)
    close(reference.eps_shift(one, ve), one * -sigma)
    close(reference.denoised_shift(one, flow), one * sigma**2 / (1 - sigma))
    close(reference.velocity_shift(one, flow), one * -sigma / (1 - sigma))


def test_ve_and_vp_levels_are_the_same_level():
    x = torch.ones(1, dtype=torch.float64)
    sigma = 4.69
    level = frames.ve(sigma, x)
    abar = frames.alpha_bar(level)
    close(abar, x / (1 + sigma**2))
    close(frames.noise_fraction(level), reference.vp(abar, x).sigma)
    close(frames.to_vp(x, level), x / (1 + sigma**2) ** 0.5)


@pytest.mark.parametrize("frame", ["VE", "flow"])
def test_sampling_with_the_shift_reaches_the_tilted_distribution(frame, generator):
    """The whole loop, as a sampler sees it: integrate from noise with the shifted estimate (Heun) and look at mean and
    covariance.
    """
    data, direction, _ = world(generator)
    make = {"VE": frames.ve, "flow": frames.flow}[frame]
    sigmas = (
        torch.linspace(80**0.2, 0.002**0.2, 160) ** 5 if frame == "VE" else torch.linspace(0.999, 0.001, 160)
    ).double()
    x = torch.randn(4000, len(direction), generator=generator, dtype=torch.float64) * (
        sigmas[0] if frame == "VE" else 1
    )

    def slope(x, sigma):
        level = make(sigma, x)
        gradient = (level.alpha / level.sigma**2).squeeze() * data.posterior_covariance(level) @ direction
        return (x - data.denoise(x, level) - reference.denoised_shift(GAMMA * gradient, level)) / sigma

    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        first = slope(x, sigma)
        x = x + (after - sigma) * (first + slope(x + (after - sigma) * first, after)) / 2
    target = data.tilted(GAMMA * direction)
    assert (target.mean - data.mean).norm() > 0.5
    assert (x.mean(0) - target.mean).abs().max() < 0.1
    assert (x.T.cov() - target.covariance).abs().max() < 0.15


def test_levels_broadcast_one_value_or_one_per_sample():
    x = torch.zeros(2, 4, 8, 8, dtype=torch.float16)
    assert frames.ve(1.0, x).sigma.shape == (1, 1, 1, 1)
    level = frames.flow(torch.tensor([0.25, 0.5]), x)
    assert level.alpha.flatten().tolist() == [0.75, 0.5] and level.alpha.shape == (2, 1, 1, 1)
    assert level.sigma.dtype == torch.float32
    with pytest.raises(ValueError, match="3 values for a batch of 2"):
        frames.ve(torch.ones(3), x)
