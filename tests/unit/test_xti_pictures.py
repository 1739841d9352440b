"""Photos of several sizes, masks, captions of their own, schedules: a step of training against the same by hand."""

import math

import pytest
import torch

from guidance_lab.xti.losses import reconstruction_loss
from guidance_lab.xti.photo_sizes import bucket, crop, random_crop
from guidance_lab.xti.pictures import Pictures
from guidance_lab.xti.rates import rate_factor
from guidance_lab.xti.training import Recipe, Trainer, Words, draw, validation_draw

SIGMAS = torch.linspace(0.5, 4, 10)


class Network:
    """Four layers on latents of any size [C, h, w]; the text is the sum of the rows and the caption's number."""

    def __init__(self, generator):
        self.read = torch.randn(4, 6, 3, generator=generator) / 10
        self.calls = []

    def encode(self, caption, rows):
        self.calls.append(caption)
        return torch.stack([(row.sum(0) * (1 + caption)).reshape(1, 6) for row in rows])

    def predict(self, clean, noise, levels, contexts):
        self.calls.append(tuple(clean.shape))
        sigma = SIGMAS[levels][:, None, None, None]
        added = sum(contexts[i][0] @ self.read[i] for i in range(4))
        return clean + sigma * (0.1 * noise + added[None, :, None, None] * clean), SIGMAS[levels]


@pytest.fixture
def network(generator):
    return Network(generator)


@pytest.fixture
def rows(generator):
    return list(torch.randn(4, 2, 6, generator=generator))


def latents(*sizes, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


def trainer(rows, **settings):
    return Trainer(rows, Recipe(learning_rate=0.01, **settings), [Words.of(torch.randn(9, 6))])


def mixed():
    """Two sizes, one mask, two captions of their own (numbers 2 and 3) beside two shared ones."""
    first, second, third = latents((4, 6), (4, 6), (5, 5))
    mask = torch.zeros(1, 5, 5)
    mask[:, 1:3] = 1
    return Pictures([first, second, third], [None, None, mask], [None, 3, 2])


def by_hand(network, rows, pictures, settings, steps):
    """One picture at a time, in one graph."""
    leaves = [row.clone().requires_grad_() for row in rows]
    optimizer = torch.optim.AdamW(leaves, lr=0.01, weight_decay=0)
    recipe = Recipe(learning_rate=0.01, **settings)
    for step in range(steps):
        drawn = draw(recipe.seed, step, 2, pictures, 10, recipe.batch)
        losses = []
        for place, number in enumerate(drawn.pictures.tolist()):
            own = pictures.captions[number]
            context = network.encode(drawn.caption if own is None else own, leaves)
            clean = pictures.latents[number][None]
            predicted, sigma = network.predict(clean, drawn.noise[place][None], drawn.levels[[place]], context)
            error = ((predicted - clean) / sigma).square()
            mask = pictures.masks[number]
            losses.append(error.mean() if mask is None else error[..., mask[0] > 0].mean())
        optimizer.zero_grad()
        (sum(losses) / len(losses)).backward()
        optimizer.step()
    return leaves


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_mixed_pictures_are_trained_as_one_by_one(network, rows, at_once):
    learner = trainer(rows, at_once=at_once, batch=8)
    for _ in range(3):
        learner.step(mixed(), 2, 10, network.encode, network.predict)
    shapes = [call for call in network.calls if isinstance(call, tuple)]
    assert max(shape[0] for shape in shapes) <= at_once
    for learned, expected in zip(learner.rows, by_hand(network, rows, mixed(), {"batch": 8}, 3), strict=True):
        assert torch.allclose(learned, expected, atol=1e-6)


def test_each_caption_is_encoded_once_a_step(network, rows):
    trainer(rows, batch=9, at_once=2).step(mixed(), 2, 10, network.encode, network.predict)
    captions = [call for call in network.calls if not isinstance(call, tuple)]
    assert len(captions) == 3 and {2, 3} < set(captions)


def test_pictures_of_one_size_are_what_a_tensor_is(network, rows):
    tensor = torch.stack(latents((4, 4), (4, 4), (4, 4)))
    results = []
    for given in (tensor, Pictures.of(tensor), Pictures(list(tensor), [torch.ones(1, 4, 4)] * 3, [None] * 3)):
        learner = trainer(rows, batch=5, at_once=2)
        learner.step(given, 2, 10, network.encode, network.predict)
        results.append(torch.cat(learner.rows))
    assert torch.equal(results[0], results[1]) and torch.allclose(results[0], results[2], atol=1e-6)


def test_a_mask_hides_what_is_black(generator):
    """Also from the gradient; and a small thing counts as much as a large one."""
    clean, predicted = torch.randn(2, 2, 3, 4, 4, generator=generator)
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, :, :2], mask[1, :, 0, 0] = 1, 1
    predicted.requires_grad_()
    loss = reconstruction_loss(predicted, clean, torch.tensor([1.0, 2.0]), mask)
    error = (predicted - clean).square().detach()
    assert loss.item() == pytest.approx(float((error[0, :, :2].mean() + error[1, :, 0, 0].mean() / 4) / 2), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, predicted)
    assert (gradient[0, :, 2:] == 0).all() and (gradient[0, :, :2] != 0).all()
    assert (gradient[1] != 0).sum() == 3


@pytest.mark.parametrize("mask", [torch.zeros(1, 4, 4), torch.ones(1, 3, 4), torch.ones(4, 4)])
def test_masks_that_cannot_be_are_refused(mask):
    with pytest.raises(ValueError, match="the mask of picture 2 is empty or has another size"):
        Pictures(latents((4, 4), (4, 4)), [None, mask], [None, None])


def test_draws_of_several_sizes_depend_on_seed_and_step_alone():
    state = torch.get_rng_state()
    one, again, other = (draw(3, step, 2, mixed(), 10, 7) for step in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.noise, again.noise, strict=True))
    assert not torch.equal(one.levels, other.levels)
    assert [noise.shape for noise in one.noise] == [mixed().latents[i].shape for i in one.pictures.tolist()]


@pytest.mark.parametrize("count", [1, 3, 11])
def test_validation_is_the_same_each_time_and_reaches_all(count):
    pictures = torch.stack(latents(*[(2, 2)] * count))
    first, again = (validation_draw(pictures, 1000) for _ in range(2))
    assert torch.equal(first.noise, again.noise) and torch.equal(first.levels, again.levels)
    assert set(first.pictures.tolist()) == set(range(count)) and len(first.pictures) >= 8
    assert first.levels.min() < 1000 / 8 and first.levels.max() > 1000 * 7 / 8
    assert first.levels.sort().values.diff().max() <= 126


def test_validation_measures_and_changes_nothing(network, rows):
    learner = trainer(rows, batch=4, at_once=3)
    before = [row.detach().clone() for row in learner.rows]
    loss = learner.validate(mixed(), 10, network.encode, network.predict)
    assert loss == learner.validate(mixed(), 10, network.encode, network.predict)
    assert all(torch.equal(a, b) for a, b in zip(before, learner.rows, strict=True))
    drawn = validation_draw(mixed(), 10)
    expected = []
    for place, number in enumerate(drawn.pictures.tolist()):
        clean, own = mixed().latents[number][None], mixed().captions[number]
        context = network.encode(0 if own is None else own, rows)
        predicted, sigma = network.predict(clean, drawn.noise[place][None], drawn.levels[[place]], context)
        error, mask = ((predicted - clean) / sigma).square(), mixed().masks[number]
        expected.append(error.mean() if mask is None else error[..., mask[0] > 0].mean())
    assert loss == pytest.approx(float(sum(expected) / len(expected)), rel=1e-5)


def test_rates():
    assert [rate_factor("constant", i, 0) for i in range(3)] == [1, 1, 1]
    assert [rate_factor("constant", i, 9, 4) for i in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert [rate_factor("linear", i, 6, 2) for i in range(7)] == [0.5, 1, 1, 0.75, 0.5, 0.25, 0]
    cosine = [rate_factor("cosine", i, 8) for i in range(9)]
    assert cosine == pytest.approx([math.cos(math.pi * i / 16) ** 2 for i in range(9)])


def test_the_schedule_is_what_adam_steps_with(network, rows):
    """Adam's first step on a constant gradient is one learning rate long, and here each step is the first."""
    tensor = torch.stack(latents((4, 4)))
    for done, factor in ((0, 0.5), (1, 1.0), (3, 0.75), (4, 0.5)):
        recipe = Recipe(learning_rate=0.01, batch=2, schedule="linear", warm_up=2, total=6)
        learner = Trainer(rows, recipe, [Words.of(torch.randn(9, 6))], done)
        learner.step(tensor, 1, 10, network.encode, network.predict)
        moved = (torch.cat(learner.rows) - torch.cat(rows)).abs()
        assert moved.max().item() == pytest.approx(0.01 * factor, rel=1e-3)


@pytest.mark.parametrize("settings", [{"schedule": "steps"}, {"schedule": "cosine", "warm_up": 5, "total": 5}])
def test_schedules_that_cannot_be(settings):
    with pytest.raises(ValueError, match="Unknown schedule|needs steps after its warm-up"):
        Recipe(**settings)


@pytest.mark.parametrize(("photo", "size", "expected"), [
    ((4000, 3000), 512, (576, 448)), ((3000, 4000), 512, (448, 576)), ((1000, 1000), 512, (512, 512)),
    ((1920, 1080), 512, (640, 384)), ((9000, 1000), 512, (640, 320)), ((48, 96), 64, (40, 80)),
    ((3000, 2000), 1024, (1216, 832)), ((300, 200), 64, (80, 48)),
])  # fmt: skip
def test_buckets(photo, size, expected):
    width, height = bucket(*photo, size)
    assert (width, height) == expected
    step = 64 if size >= 512 else 8
    assert width % step == height % step == 0 and width * height <= size * size
    assert 0.5 <= width / height <= 2 and width * height > 0.7 * size * size


def test_crops():
    assert crop(400, 300, 1.0) == (50, 0, 300, 300)
    assert crop(300, 400, 1.0) == (0, 50, 300, 300)
    assert crop(400, 300, 2.0) == (0, 50, 400, 200)
    assert crop(400, 300, 1.0, 0.5, 0.0, 1.0) == (0, 150, 150, 150)
    assert crop(1, 1, 1.5) == (0, 0, 1, 1)
    boxes = {random_crop(400, 300, 1.0, f"{i}") for i in range(50)}
    assert len(boxes) > 40 and random_crop(400, 300, 1.0, "3") == random_crop(400, 300, 1.0, "3")
    assert all(0 <= x and 0 <= y and x + w <= 400 and y + h <= 300 and 240 <= w == h for x, y, w, h in boxes)
