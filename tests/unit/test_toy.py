"""The 2-D toy: its data set's constants (oracle O11), its sampler on ground-truth scores (O12), its network and
controls.
"""

import math

import numpy as np
import pytest
import torch

from guidance_lab.experiments.toy import controls, metrics
from guidance_lab.experiments.toy.distribution import BRANCHES_PER_CLASS, Mixture, mixture
from guidance_lab.experiments.toy.model import EnergyNet, ema_exponent
from guidance_lab.experiments.toy.sample import (
    denoise_at_higher_sigma,
    guided,
    heun,
    noise_levels,
    score_at_higher_sigma,
    truncated,
)
from guidance_lab.experiments.toy.train import load, snapshot_path, train


@pytest.fixture(scope="module")
def truth() -> Mixture:
    return mixture("A")


@pytest.fixture(scope="module")
def threshold(truth) -> float:
    return metrics.outlier_threshold(truth)


def reference_density(mix: Mixture, sigma: float) -> torch.distributions.Distribution:
    """torch's own mixture in double precision, from full covariance matrices."""
    axes, variance = mix.axes.double(), mix.variance.double()
    covariance = torch.einsum("kad,ka,kae->kde", axes, variance, axes) + sigma**2 * torch.eye(2)
    parts = torch.distributions.MultivariateNormal(mix.mean.double(), covariance)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(mix.weight.double()), parts)


@pytest.mark.parametrize(("classes", "count"), [("A", 1016), ("B", 1016), ("AB", 2032)])
def test_number_of_components(classes, count):
    assert len(mixture(classes)) == count


@pytest.mark.parametrize(
    ("classes", "mean", "std"),
    [("AB", (-0.00014, 0.00057), (0.49985, 0.49990)), ("A", (0.37185, 0.36461), (0.33306, 0.34149))],
)
def test_moments_are_those_of_the_papers_data(classes, mean, std):
    got_mean, got_std = mixture(classes).moments()
    assert got_mean.tolist() == pytest.approx(mean, abs=1e-5)
    assert got_std.tolist() == pytest.approx(std, abs=1e-5)


def test_likelihood_of_the_data(truth, threshold):
    log_density = truth.log_density(truth.sample(1 << 15, 0.0, torch.Generator().manual_seed(1)))
    assert log_density.mean() == pytest.approx(1.354, abs=0.015)
    assert log_density.std() == pytest.approx(1.105, abs=0.015)
    assert threshold == pytest.approx(-1.80, abs=0.1)
    contour = log_density.max() - 2.12**2
    assert (log_density > contour).float().mean() == pytest.approx(0.987, abs=0.005)


@pytest.mark.parametrize("sigma", [0.02, 0.3, 5.0])
def test_density_and_score_equal_a_direct_evaluation(truth, sigma):
    x = truth.sample(64, sigma, torch.Generator().manual_seed(2))
    direct = x.double().requires_grad_()
    log_density = reference_density(truth, sigma).log_prob(direct)
    score = torch.autograd.grad(log_density.sum(), direct)[0]
    torch.testing.assert_close(truth.log_density(x, sigma).double(), log_density, rtol=0, atol=1e-3)
    torch.testing.assert_close(truth.score(x, sigma).double(), score, rtol=1e-3, atol=1e-3)


def test_one_sigma_per_row_equals_one_sigma_at_a_time(truth):
    x = truth.sample(6, 1.0, torch.Generator().manual_seed(3))
    sigma = torch.tensor([0.01, 0.1, 0.5, 1.0, 2.0, 5.0])[:, None]
    alone = torch.cat([truth.score(x[i : i + 1], float(sigma[i])) for i in range(6)])
    torch.testing.assert_close(truth.score(x, sigma), alone, rtol=1e-4, atol=1e-5)


def test_score_is_finite_far_from_the_data(truth):
    assert truth.score(torch.tensor([[40.0, -40.0]]), 0.002).isfinite().all()


def test_branches(truth):
    weights = truth.branch_weights()
    assert len(weights) == BRANCHES_PER_CLASS == 127
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
    shares = truth.branch_shares(truth.sample(1 << 14, 0.0, torch.Generator().manual_seed(4)))
    assert float((shares - weights).abs().sum() / 2) < 0.04


def test_ideal_denoiser_samples_the_data(truth, threshold):
    """O12 with few samples; the full one is `python dev.py evidence toy`."""
    x = truth.sample(2048, 5.0, torch.Generator().manual_seed(5))
    got = metrics.measure(heun(truth.denoise, x, noise_levels()), truth, threshold)
    assert 0.004 < got.outliers < 0.018
    assert got.log_density == pytest.approx(1.375, abs=0.1)
    assert got.variation < 0.09
    assert got.coverage > 0.95


def test_heun_integrates_a_gaussian():
    """For data N(0, c) the ODE has the closed-form answer x0 = x * sqrt(c / (c + sigma^2))."""
    c, x = 0.25, torch.tensor([[3.0, -2.0]])
    levels = noise_levels(steps=200)
    end = heun(lambda x, sigma: x * c / (c + sigma**2), x, levels)
    torch.testing.assert_close(end, x * math.sqrt(c / (c + 25.0)), rtol=1e-3, atol=0)


def test_guidance_of_denoisers():
    main, guide = (lambda x, s: x * 0.5), (lambda x, s: x * 0.25)
    x, sigma = torch.tensor([[1.0, -2.0]]), torch.tensor(1.0)
    assert torch.equal(guided(main, guide, 1.0)(x, sigma), main(x, sigma))
    torch.testing.assert_close(guided(main, guide, 0.0)(x, sigma), guide(x, sigma))
    torch.testing.assert_close(guided(main, guide, 3.0)(x, sigma), x)
    torch.testing.assert_close(truncated(main, 1.4)(x, sigma), x * 0.3)
    assert torch.equal(denoise_at_higher_sigma(lambda x, s: x * s, 1.5)(x, sigma), x * 1.5)


def test_score_at_higher_sigma_is_the_score_of_the_noisier_data(truth):
    x, sigma = truth.sample(5, 0.5, torch.Generator().manual_seed(8)), torch.tensor(0.5)
    expected = x + 0.5**2 * truth.score(x, 0.55)
    torch.testing.assert_close(score_at_higher_sigma(truth.denoise, 1.1)(x, sigma), expected, rtol=1e-4, atol=1e-5)


def test_score_of_the_network_is_the_gradient_of_its_density():
    net = EnergyNet(8, seed=1).eval()
    with torch.no_grad():
        net.gain.fill_(-0.7)
    net = net.double()
    x, sigma = torch.tensor([[0.3, -0.2]], dtype=torch.float64), torch.tensor([[0.4]], dtype=torch.float64)
    step = 1e-6 * torch.eye(2, dtype=torch.float64)
    numeric = [(net(x + d, sigma) - net(x - d, sigma)).item() / 2e-6 for d in step]
    np.testing.assert_allclose(net.score(x, 0.4)[0], numeric, rtol=1e-6)


def test_weight_magnitude_does_not_matter():
    net = EnergyNet(8, seed=1).eval()
    with torch.no_grad():
        net.gain.fill_(-0.7)
    x, sigma = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), torch.full((5, 1), 0.4)
    before = net(x, sigma)
    with torch.no_grad():
        for layer in net.hidden:
            layer.weight.mul_(3)
    torch.testing.assert_close(net(x, sigma), before)
    net.force_magnitude()
    assert net.hidden[0].weight.square().mean(1).tolist() == pytest.approx([1.0] * 8)


def test_ema_exponent_has_the_asked_width():
    gamma = ema_exponent(0.010)
    assert math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) == pytest.approx(0.010)
    assert gamma == pytest.approx(96.995, abs=1e-3)


def test_training_learns_resumes_and_is_seeded(tmp_path, truth, monkeypatch):
    monkeypatch.setattr("guidance_lab.experiments.toy.train.SNAPSHOT_EVERY", 32)
    monkeypatch.setattr("guidance_lab.experiments.toy.train.BATCH", 256)
    losses: list[str] = []
    train(tmp_path / "whole", "A", 16, 0, 128, losses.append)
    train(tmp_path / "parts", "A", 16, 0, 32, losses.append)
    train(tmp_path / "parts", "A", 16, 0, 128, losses.append)
    assert len(losses) == 8
    whole, parts = (load(tmp_path / name, "A", 16, 0, 128) for name in ("whole", "parts"))
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other)
    assert snapshot_path(tmp_path / "whole", "A", 16, 0, 32).exists()

    x = truth.sample(1024, 0.3, torch.Generator().manual_seed(6))
    error = lambda net: float((net.score(x, 0.3) - truth.score(x, 0.3)).square().mean())  # noqa: E731
    assert error(whole) < 0.5 * error(EnergyNet(8).eval())


def test_controls_damage_a_copy_and_not_the_network():
    net = EnergyNet(16, seed=2).eval().requires_grad_(False)
    net.gain.fill_(-0.7)
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    before = net.score(x, 0.5)
    other = EnergyNet(16, seed=3).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for damaged in (
        controls.with_weight_noise(net, 0.15, generator),
        controls.quantised(net, 4),
        controls.interpolated(net, other, 0.5),
        controls.with_dropout(net, 0.1, generator),
        controls.with_layer_skipped(net, 1),
        controls.told_higher_sigma(net, 1.1),
    ):
        assert not torch.allclose(damaged.score(x, 0.5), before)
    assert torch.equal(net.score(x, 0.5), before)
    harmless = (
        controls.with_weight_noise(net, 0, generator),
        controls.with_dropout(net, 0, generator),
        controls.told_higher_sigma(net, 1),
    )
    for untouched in harmless:
        torch.testing.assert_close(untouched.score(x, 0.5), before)
    assert torch.equal(controls.interpolated(net, other, 1.0).hidden[0].weight, other.hidden[0].weight)


def test_broken_samples_count_as_outliers(truth, threshold):
    x = truth.sample(1000, 0.0, torch.Generator().manual_seed(7))
    x[:100] = float("nan")
    assert metrics.measure(x, truth, threshold).outliers == pytest.approx(0.11, abs=0.01)
