"""Scorers that guide in the evidence and do not ship: their training, and the sampler that repeats early steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from comfy.k_diffusion.sampling import sample_euler

from guidance_lab.experiments.data import scene
from guidance_lab.experiments.evidence.guidance_variants import recurrent_euler
from guidance_lab.experiments.train import captioner_estimates, captioner_own, matcher
from guidance_lab.experiments.train.captioner import labels
from guidance_lab.experiments.train.clip import normalized
from guidance_lab.experiments.train.own_pictures import caption_of
from guidance_lab.shapes import shipped
from guidance_lab.shapes.read import read
from guidance_lab.shapes.render import render
from guidance_lab.shapes.world import parse

COUNT = captioner_estimates.CHECKED + 100


@pytest.fixture(scope="module")
def drawn():
    """In place of estimates: pictures of one gray each, which say which scene they stand for."""
    gray = (torch.arange(COUNT) % 200).byte().view(-1, 1, 1, 1).expand(COUNT, 128, 128, 3)
    return {"estimates": gray, "redraws": gray + 50}


def test_pictures_and_captions_belong_together(drawn):
    x, captions = captioner_estimates.pictures(drawn, 16, np.random.default_rng(0))
    assert x.shape == (16, 3, 128, 128) and len(captions) == 16
    trained_on = {scene(i).caption for i in range(COUNT - captioner_estimates.CHECKED)}
    assert set(captions[8:]) <= trained_on  # the kept ones are never shown
    for row, offset in (*((i, 0) for i in range(8, 12)), *((i, 50) for i in range(12, 16))):
        shown = round(float(x[row, 0, 0, 0]) * 255) - offset
        assert scene(shown).caption == captions[row]
    fresh = np.random.default_rng(0).integers(COUNT, captioner_estimates.SCENES, 8)
    for row in range(4):
        expected = torch.tensor(render(scene(int(fresh[row])))).permute(2, 0, 1) / 255
        assert torch.allclose(x[row], expected) and captions[row] == scene(int(fresh[row])).caption
    assert (x[4:8].diff(dim=-1).abs().mean() < 0.1) and not torch.equal(x[4:8], x[:4])


SHOWN = {  # what was asked for → (what the picture shows, its caption)
    "a red ball on sand": ("a blue ball on sand", "a blue ball on sand"),
    "a red ball left of a blue cube on sand": ("a blue cube left of a red ball on sand",) * 2,
    "a red ball left of a blue cube on gray": ("a red ball on gray", "a red ball on gray"),
    "a green car above a red star on black": ("a red star above a green house on sand",) * 2,
    "a red ball left of a blue cube and above a green car on white": (
        "a red ball left of a blue star and above a green car on white",
    )
    * 2,
    "a red ball left of a blue ball on white": ("a blue ball left of a red ball on white",) * 2,
    "two red balls on sand": ("two red stars on ice", "two red stars on ice"),
}


@pytest.mark.parametrize("asked", SHOWN)
def test_a_picture_is_called_what_it_shows(asked):
    shown, caption = SHOWN[asked]
    rng = np.random.default_rng(3)
    while True:  # places for what is shown: those of a random scene with as many things
        placed = scene(int(rng.integers(10_000)))
        wanted = parse(shown)
        if len(placed.things) == len(wanted.things) and placed.relation == wanted.relation:
            break
    things = (replace(t, x=p.x, y=p.y, size=50.0) for t, p in zip(wanted.things, placed.things, strict=True))
    picture = render(replace(wanted, things=tuple(things)))
    assert caption_of(parse(asked), read(picture)) == caption


def test_nothing_is_called_nothing():
    assert caption_of(parse("a red ball on sand"), read(np.full((128, 128, 3), 128, np.uint8))) == ""


def test_own_pictures_and_captions_belong_together():
    count = captioner_own.CHECKED + 60
    captions = [scene(i).caption if i % 3 else "" for i in range(count)]
    gray = (torch.arange(count) % 200).byte().view(-1, 1, 1, 1, 1).expand(count, 3, 128, 128, 3)
    drawn = gray + torch.tensor([0, 20, 40], dtype=torch.uint8).view(1, 3, 1, 1, 1)  # finished, and two estimates
    x, said = captioner_own.batch_of(drawn, captions, 16, np.random.default_rng(0))
    assert x.shape == (16, 3, 128, 128) and len(said) == 16 and "" not in said
    shades = [round(float(value) * 255) for value in x[8:, 0, 0, 0]]
    assert [captions[shade] for shade in shades[:4]] == said[8:12]  # finished
    for shade, caption in zip(shades[4:], said[12:], strict=True):
        assert caption in {captions[shade - 20], captions[max(0, shade - 40)]}
    assert max(shades[:4]) < 60  # the kept ones are never shown


def test_a_wrong_caption_is_wrong_and_a_right_one_is_left():
    captions = [scene(i).caption for i in range(60)]
    right = np.arange(60) % 2
    told = matcher.misled(captions, right, np.random.default_rng(1))
    assert [a == b for a, b in zip(captions, told, strict=True)] == [bool(fits) for fits in right]


def test_the_matcher_begins_with_the_captioner():
    """Its picture states, and so what it can see, are the captioner's; the head alone is new."""
    captioner, network = shipped.load_captioner(), matcher.matcher().eval()
    names = matcher.from_captioner(captioner.state_dict())
    missing, unexpected = network.load_state_dict(names, strict=False)
    assert {name.split(".")[0] for name in missing} == {"itm_head", "vision_proj", "text_proj"}
    assert not unexpected
    x = torch.from_numpy(np.stack([render(scene(i)) for i in range(3)])).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        seen = [one.vision_model(pixel_values=normalized(x)).last_hidden_state for one in (captioner, network)]
        assert torch.equal(*seen)
        out = matcher.logits(network, x, [scene(i).caption for i in range(3)])
        short = matcher.logits(network, x[:1], [scene(0).caption])  # padding of the longer captions has no say
    assert out.shape == (3, 2) and torch.allclose(out[:1], short, atol=1e-5)
    ids, mask = matcher.words([scene(i).caption for i in range(3)])
    assert torch.equal(mask == 1, labels([scene(i).caption for i in range(3)])[1] != -100) and ids.shape == mask.shape


SIGMAS = torch.linspace(10, 0, 41)


def gaussian(x, sigma, **_):
    """The exact denoiser of data N(0, 2^2)."""
    return x * 4 / (4 + sigma.view(-1, 1) ** 2)


def test_recurrence_taken_once_is_euler():
    x = 10 * torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    plain = sample_euler(gaussian, x, SIGMAS, disable=True)
    assert torch.allclose(recurrent_euler(gaussian, x, SIGMAS, repeats=1), plain, atol=1e-5)


def test_recurrence_leaves_the_law_of_the_samples():
    """With noise of another size on the way back it would not: 4000 samples tell a deviation to about 1 %."""
    x = (104**0.5) * torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    drawn = recurrent_euler(gaussian, x, SIGMAS, {"seed": 3})
    once = recurrent_euler(gaussian, x, SIGMAS, repeats=1)
    assert float(drawn.std()) == pytest.approx(float(once.std()), rel=0.05)
    assert torch.corrcoef(torch.stack([drawn.flatten(), once.flatten()]))[0, 1] < 0.95  # and they are new samples
    assert torch.equal(drawn, recurrent_euler(gaussian, x, SIGMAS, {"seed": 3}))
