"""The vocabulary density, its gradient, and the training losses against closed forms."""

import math

import pytest
import torch
from reference.density import density_gradient

from guidance_lab.xti import density, losses


@pytest.fixture
def vocabulary(generator):
    return 0.3 * torch.randn(50, 6, generator=generator, dtype=torch.float64)


@pytest.fixture
def tokens(generator):
    return 0.3 * torch.randn(4, 6, generator=generator, dtype=torch.float64)


def test_density_of_one_word_is_a_gaussian():
    """-log p = |e-v|^2 / 2h^2 + (d/2) log(2 pi h^2)."""
    word, token = torch.tensor([[1.0, 2.0]]).double(), torch.tensor([[1.0, 5.0]]).double()
    expected = 9 / (2 * 0.25) + math.log(2 * math.pi * 0.25)
    assert density.negative_log_density(token, word, 0.5).item() == pytest.approx(expected, rel=1e-12)


def test_density_integrates_to_one(generator):
    words = torch.randn(7, 1, generator=generator, dtype=torch.float64)
    grid = torch.linspace(-10, 10, 20001, dtype=torch.float64)
    probability = (-density.negative_log_density(grid[:, None], words, 0.4)).exp()
    assert torch.trapezoid(probability, grid).item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("bandwidth", [0.05, 0.3, 2.0])
def test_gradient_is_that_of_autograd(tokens, vocabulary, bandwidth):
    leaf = tokens.clone().requires_grad_()
    (expected,) = torch.autograd.grad(density.negative_log_density(leaf, vocabulary, bandwidth).sum(), leaf)
    assert torch.allclose(density_gradient(tokens, vocabulary, bandwidth), expected, rtol=1e-10, atol=1e-10)
    assert expected.abs().max() > 0.01


def test_gradient_step_raises_the_density(tokens, vocabulary):
    before = density.negative_log_density(tokens, vocabulary, 0.3)
    shifted = tokens - 0.3**2 * density_gradient(tokens, vocabulary, 0.3)  # one mean-shift step
    assert (density.negative_log_density(shifted, vocabulary, 0.3) < before).all()


def test_density_stays_finite_far_from_every_word():
    far = torch.full((1, 768), 10.0)
    words = torch.zeros(3, 768)
    assert density.negative_log_density(far, words, 0.014).isfinite().all()
    assert density_gradient(far, words, 0.014).isfinite().all()


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, math.nan])
def test_density_refuses_its_bandwidth(tokens, vocabulary, bandwidth):
    with pytest.raises(ValueError, match="bandwidth must be above 0"):
        density.negative_log_density(tokens, vocabulary, bandwidth)


def test_scott_bandwidth(generator):
    words = torch.randn(1000, 8, generator=generator, dtype=torch.float64) * 0.5
    assert density.scott_bandwidth(words) == pytest.approx(0.5 * 1000 ** (-1 / 12), rel=0.05)


def test_nearest_tokens_are_sorted_by_direction_and_not_by_length():
    words = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 3.0], [-1.0, 0.0]])
    similarity, rows = density.nearest_tokens(torch.tensor([[10.0, 1.0]]), words, 2)
    assert rows.tolist() == [[0, 2]]
    assert similarity[0].tolist() == pytest.approx([10 / math.sqrt(101), 11 / math.sqrt(202)])
    assert density.nearest_tokens(words, words, 99)[1].shape == (4, 4)


def test_layer_norms():
    norms = density.layer_norms({"MID": torch.tensor([[3.0, 4.0], [0.0, 0.0]])})
    assert norms["MID"].tolist() == [5.0, 0.0]


def test_reconstruction_loss_is_the_noise_error(generator):
    x0, noise, predicted = (torch.randn(3, 4, 5, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    sigma = torch.tensor([0.1, 1.0, 14.0]).double()
    column = sigma.reshape(3, 1, 1, 1)
    x = x0 + column * noise
    loss = losses.reconstruction_loss(x - column * predicted, x0, sigma)
    assert loss.item() == pytest.approx((predicted - noise).square().mean().item(), rel=1e-10)


def test_reconstruction_loss_is_the_velocity_error_of_flow_models(generator):
    x0, noise, velocity = (torch.randn(2, 4, 3, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    sigma = torch.tensor([0.2, 0.9]).double()
    column = sigma.reshape(2, 1, 1, 1)
    x = (1 - column) * x0 + column * noise
    loss = losses.reconstruction_loss(x - column * velocity, x0, sigma)
    assert loss.item() == pytest.approx((velocity - (noise - x0)).square().mean().item(), rel=1e-10)


def test_norm_loss_is_zero_at_the_target_and_keeps_directions():
    tokens = torch.tensor([[0.3, 0.4], [0.0, 2.0]], requires_grad=True)
    assert losses.norm_loss(tokens, 0.5).item() == pytest.approx((2 - 0.5) ** 2 / 2)
    (gradient,) = torch.autograd.grad(losses.norm_loss(tokens, 0.1), tokens)
    assert torch.allclose(gradient[0] / gradient[0].norm(), tokens[0] / tokens[0].norm())


def test_norm_decay_moves_norms_and_nothing_else():
    tokens = torch.tensor([[3.0, 4.0], [0.0, 0.1], [0.0, 0.0]])
    moved = losses.norm_decay(tokens, 0.4, 0.1)
    assert moved.norm(dim=1).tolist() == pytest.approx([5 - 0.46, 0.1 + 0.03, 0.0], rel=1e-6)
    assert torch.allclose(moved[0] / moved[0].norm(), tokens[0] / 5)
    assert torch.allclose(losses.norm_decay(tokens, 0.4, 1.0)[:2].norm(dim=1), torch.tensor(0.4))


def test_density_loss_is_the_mean(tokens, vocabulary):
    expected = density.negative_log_density(tokens, vocabulary, 0.3).mean()
    assert torch.equal(losses.density_loss(tokens, vocabulary, 0.3), expected)


def test_velocity_scale_makes_the_loss_that_of_v(generator):
    """Salimans & Ho: the squared error of v, whatever the noise level; x0 = s^2 x / (sigma^2 + s^2) - v sigma s /
    sqrt(sigma^2 + s^2).
    """
    for data in (1.0, 0.5):
        sigma = torch.tensor([0.05, 1.0, 80.0], dtype=torch.float64)
        x, v, other = torch.randn(3, 3, 4, generator=generator, dtype=torch.float64)
        total, column = (sigma**2 + data**2)[:, None], sigma[:, None]
        x0, prediction = (data**2 * x / total - output * column * data / total.sqrt() for output in (v, other))
        loss = losses.reconstruction_loss(prediction, x0, losses.velocity_scale(sigma, data))
        assert loss.item() == pytest.approx((v - other).square().mean().item(), rel=1e-9)


def test_a_word_is_left_out_of_its_own_density(vocabulary):
    found = density.word_densities(vocabulary, 0.3, count=len(vocabulary))
    for i in (0, 17, len(vocabulary) - 1):
        others = torch.cat([vocabulary[:i], vocabulary[i + 1 :]])
        assert found[i].item() == pytest.approx(
            density.negative_log_density(vocabulary[i : i + 1], others, 0.3).item(), rel=1e-9
        )


def test_word_densities_are_spread_over_the_vocabulary(vocabulary):
    every = density.word_densities(vocabulary, 0.3, count=1000)
    assert every.shape == (50,)
    assert torch.allclose(density.word_densities(vocabulary, 0.3, count=6), every[[0, 10, 20, 29, 39, 49]])


def test_word_densities_refuse_what_they_cannot_compare(vocabulary):
    with pytest.raises(ValueError, match="other words"):
        density.word_densities(vocabulary[:1], 0.3)
    with pytest.raises(ValueError, match="bandwidth must be above 0"):
        density.word_densities(vocabulary, 0.0)


@pytest.mark.parametrize("loss", ["norm", "density"])
def test_gradients_of_the_regularisers_are_finite_differences(tokens, vocabulary, loss):
    function = (
        (lambda t: losses.norm_loss(t, 0.4)) if loss == "norm" else (lambda t: losses.density_loss(t, vocabulary, 0.3))
    )
    leaf = tokens.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf), leaf)
    for i, j in ((0, 0), (1, 3), (3, 5)):
        shift = torch.zeros_like(tokens)
        shift[i, j] = 1e-5
        assert gradient[i, j].item() == pytest.approx(
            (function(tokens + shift) - function(tokens - shift)).item() / 2e-5, rel=1e-6
        )
    assert function(tokens - 1e-3 * gradient) < function(tokens)
