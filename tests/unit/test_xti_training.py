"""One step of XTI training on small linear networks, against the same step written out by hand."""

import math

import pytest
import torch

from guidance_lab.xti import training
from guidance_lab.xti.losses import density_loss, norm_loss, reconstruction_loss
from guidance_lab.xti.training import DENSITY, NONE, NORM, NORM_DECAY, Recipe, Trainer, Words, draw

LAYERS, VECTORS, WIDTH, TOKENS = 4, 2, 6, 3


class Linear:
    """A text encoder and a network that are matrices: layer i of the network reads the context of layer i alone."""

    def __init__(self, generator, layers=LAYERS):
        self.text = torch.randn(VECTORS * WIDTH, TOKENS * 5, generator=generator)
        self.read = torch.randn(layers, TOKENS * 5, 8, generator=generator) / 10
        self.pictures = torch.randn(5, 8, generator=generator)
        self.sigmas = torch.linspace(0.5, 4, 10)
        self.batches = []

    def encode(self, caption, rows):
        return torch.stack([(row.flatten() @ self.text + caption).reshape(TOKENS, 5) for row in rows])

    def predict(self, clean, noise, levels, contexts):
        self.batches.append(len(clean))
        sigma = self.sigmas[levels]
        added = sum(contexts[min(i, len(contexts) - 1)].flatten() @ read for i, read in enumerate(self.read))
        return clean + sigma[:, None] * noise * 0.1 + added, sigma


@pytest.fixture
def network(generator):
    return Linear(generator)


@pytest.fixture
def rows(generator):
    return list(torch.randn(LAYERS, VECTORS, WIDTH, generator=generator))


@pytest.fixture
def words(generator):
    return [Words.of(0.3 * torch.randn(30, WIDTH, generator=generator))]


def run(network, trainer, steps=3):
    return [
        trainer.step(network.pictures, 2, len(network.sigmas), network.encode, network.predict) for _ in range(steps)
    ]


def by_hand(network, rows, recipe, steps=3):
    """The plain loop: the whole batch in one graph, Adam on leaves."""
    leaves = [row.clone().requires_grad_() for row in rows]
    optimizer = torch.optim.Adam(leaves, lr=recipe.learning_rate)
    for step in range(steps):
        drawn = draw(recipe.seed, step, 2, network.pictures, len(network.sigmas), recipe.batch)
        clean = network.pictures[drawn.pictures]
        prediction, sigma = network.predict(clean, drawn.noise, drawn.levels, network.encode(drawn.caption, leaves))
        optimizer.zero_grad()
        reconstruction_loss(prediction, clean, sigma).backward()
        optimizer.step()
    return leaves


@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_a_step_is_adam_on_the_reconstruction(network, rows, words, at_once):
    recipe = Recipe(at_once=at_once, learning_rate=0.01)
    trainer = Trainer(rows, recipe, words)
    losses = run(network, trainer)
    assert max(network.batches) == at_once and sum(network.batches) == 3 * 8
    for learned, expected, start in zip(trainer.rows, by_hand(network, rows, recipe), rows, strict=True):
        assert torch.allclose(learned, expected, atol=1e-6)
        assert (learned - start).abs().max() > 0.01
    assert trainer.done == 3 and losses[-1].regulariser == 0.0
    assert losses[-1].norm == pytest.approx(float(torch.cat(trainer.rows).detach().norm(dim=1).mean()), rel=1e-6)


def test_the_given_rows_are_left_alone(network, rows, words):
    before = [row.clone() for row in rows]
    run(network, Trainer(rows, Recipe(), words), 1)
    assert all(torch.equal(a, b) for a, b in zip(rows, before, strict=True))


def test_a_layer_that_nothing_reads_does_not_move(network, rows, words):
    network.read[2] = 0
    trainer = Trainer(rows, Recipe(), words)
    run(network, trainer)
    moved = [not torch.equal(learned, start) for learned, start in zip(trainer.rows, rows, strict=True)]
    assert moved == [True, True, False, True]


def test_the_gradient_of_a_shared_row_is_the_sum_over_the_layers(network, rows, words):
    apart, together = Trainer([rows[0]] * LAYERS, Recipe(), words), Trainer([rows[0]], Recipe(shared=True), words)
    run(network, apart, 1)
    run(network, together, 1)
    assert torch.allclose(together.rows[0].grad, sum(row.grad for row in apart.rows), rtol=1e-4, atol=1e-6)


def test_draws_depend_on_seed_and_step_alone(network):
    state = torch.get_rng_state()
    one, again = (draw(3, 7, 9, network.pictures, 1000, 8) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.caption == again.caption
    assert all(torch.equal(getattr(one, key), getattr(again, key)) for key in ("pictures", "levels", "noise"))
    for seed, step in ((3, 8), (4, 7), (7, 3), (2, 8)):
        other = draw(seed, step, 9, network.pictures, 1000, 8)
        assert not torch.equal(one.levels, other.levels) and not torch.equal(one.noise, other.noise)


def test_every_picture_comes_before_any_comes_again(network):
    for batch, most in ((3, 1), (5, 1), (8, 2), (11, 3)):
        drawn = draw(0, 0, 1, network.pictures, 10, batch)
        counts = torch.bincount(drawn.pictures, minlength=5)
        assert counts.sum() == batch == len(drawn.noise) == len(drawn.levels)
        assert counts.max() == most and counts.max() - counts.min() <= 1


def test_draws_reach_all_captions_and_levels(network):
    drawn = [draw(0, step, 3, network.pictures, 10, 8) for step in range(60)]
    assert {d.caption for d in drawn} == {0, 1, 2}
    assert set(torch.cat([d.levels for d in drawn]).tolist()) == set(range(10))


def test_a_resumed_run_goes_on_with_the_draws(network, rows, words):
    whole = Trainer(rows, Recipe(), words)
    losses = run(network, whole, 4)
    first = Trainer(rows, Recipe(), words)
    run(network, first, 2)
    second = Trainer(first.rows, Recipe(), words, done=2)
    assert run(network, second, 1)[0].reconstruction == losses[2].reconstruction
    assert second.done == 3


class HalfGradient(torch.autograd.Function):
    """What a float16 network does to gradients: too large is infinite, too small is zero."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.half().float()


def test_half_precision_scales_the_loss_until_it_fits(network, rows, words):
    class Half(Linear):
        def predict(self, *given):
            prediction, sigma = super().predict(*given[:3], HalfGradient.apply(given[3]) * self.factor)
            return prediction, sigma

    half = Half(torch.Generator().manual_seed(0))
    recipe = Recipe(learning_rate=0.01)
    for factor, scale_stays in ((1e-7, True), (3.0, False)):
        half.factor = factor
        trainer, plain = Trainer(rows, recipe, words, half_precision=True), Trainer(rows, recipe, words)
        run(half, trainer, 1)
        run(half, plain, 1)
        assert (trainer.loss_scale == 2.0**14) == scale_stays and trainer.loss_scale > 1
        gradient, unscaled = trainer.rows[0].grad, plain.rows[0].grad
        assert gradient.isfinite().all() and gradient.abs().max() > 0
        if scale_stays:  # without the scale everything is lost
            assert unscaled.abs().max() < 0.5 * gradient.abs().max()
        else:
            assert torch.allclose(gradient, unscaled, rtol=1e-2, atol=1e-3 * float(unscaled.abs().max()))


def test_a_loss_that_is_not_finite_stops_and_changes_nothing(network, rows, words):
    trainer = Trainer(rows, Recipe(), words, done=4)
    network.pictures[:] = math.nan
    with pytest.raises(FloatingPointError, match="step 5; use a smaller learning rate"):
        run(network, trainer, 1)
    assert all(torch.equal(a, b) for a, b in zip(trainer.rows, rows, strict=True))


@pytest.mark.parametrize("regulariser", [NORM, DENSITY])
def test_the_penalty_is_the_weighted_loss_of_every_encoder(rows, generator, regulariser):
    words = [Words.of(0.3 * torch.randn(20, width, generator=generator)) for width in (2, 4)]
    trainer = Trainer(rows, Recipe(regulariser=regulariser, weight=0.7), words)
    tokens = torch.cat(rows)
    if regulariser == NORM:
        expected = norm_loss(tokens[:, :2], words[0].norm) + norm_loss(tokens[:, 2:], words[1].norm)
    else:
        expected = sum(
            density_loss(t, w.rows, w.bandwidth) for t, w in zip((tokens[:, :2], tokens[:, 2:]), words, strict=True)
        )
    assert trainer._penalty().item() == pytest.approx(0.7 * expected.item(), rel=1e-5)


@pytest.mark.parametrize(("options", "towards"), [
    (dict(regulariser=NORM, weight=50.0), "words"), (dict(regulariser=NORM, weight=50.0, target=2.0), 2.0),
    (dict(regulariser=NORM_DECAY, weight=0.5), "words"), (dict(regulariser=NORM_DECAY, weight=0.5, target=2.0), 2.0),
])  # fmt: skip
def test_norm_regularisers_pull_the_norms_to_the_target(network, rows, words, options, towards):
    target = words[0].norm if towards == "words" else towards
    free, held = (Trainer(rows, Recipe(learning_rate=0.02, **given), words) for given in ({}, options))
    run(network, free, 30)
    losses = run(network, held, 30)
    off = [(torch.cat(trainer.rows).norm(dim=1) - target).abs().mean().item() for trainer in (free, held)]
    assert off[1] < 0.6 * off[0]
    assert (losses[0].regulariser > 0) == (options["regulariser"] == NORM)


def test_the_density_regulariser_pulls_towards_the_words(network, rows, words):
    free, held = (
        Trainer(rows, Recipe(learning_rate=0.02, **given), words)
        for given in ({}, dict(regulariser=DENSITY, weight=1.0, bandwidth=0.3))
    )
    run(network, free, 30)
    losses = run(network, held, 30)
    density = [density_loss(torch.cat(trainer.rows).detach(), words[0].rows, 0.3).item() for trainer in (free, held)]
    assert density[1] < 0.6 * density[0]
    assert losses[0].regulariser == pytest.approx(density_loss(torch.cat(rows), words[0].rows, 0.3).item(), rel=1e-5)


def test_weight_zero_is_no_regulariser(network, rows, words):
    results = []
    for regulariser in (NONE, NORM, DENSITY):
        trainer = Trainer(rows, Recipe(regulariser=regulariser), words)
        run(network, trainer)
        results.append(torch.cat(trainer.rows))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize(("options", "message"), [
    (dict(regulariser="kde"), 'Unknown regulariser "kde": use none, norm, norm decay, density'), (dict(batch=0),
    "batch must be above 0"),
    (dict(learning_rate=math.nan), "learning rate must be above 0"), (dict(at_once=-1), "at once must be above 0"),
    (dict(weight=-1.0), "weight must be 0 or more"), (dict(bandwidth=math.inf), "bandwidth must be 0 or more"),
])  # fmt: skip
def test_a_wrong_recipe_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


def test_words_know_their_norm_and_bandwidth(generator):
    rows = torch.randn(40, 5, generator=generator)
    words = training.Words.of(rows)
    assert words.norm == pytest.approx(float(rows.norm(dim=1).mean()))
    assert words.bandwidth == pytest.approx(float(rows.std(0).mean()) * 40 ** (-1 / 9), rel=1e-6)
