"""CLIP towers, discriminator and losses against the official code's numbers, with formula weights."""

import json
from pathlib import Path

import pytest
import torch
from galip_formula import build, formula, inputs
from reference.galip_losses import discriminator_loss, generator_loss
from safetensors.torch import load_file

from guidance_lab import galip
from guidance_lab.galip import losses

FIXTURES = Path(__file__).parent.parent / "fixtures/galip"
GOLDEN = load_file(FIXTURES / "golden.safetensors")
NUMBERS = json.loads((FIXTURES / "golden.json").read_text())
TOLERANCE = 1e-5


def rel_rms(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value.double() - reference.double()).norm() / reference.double().norm())


@pytest.fixture(scope="module")
def image_encoder() -> galip.ImageEncoder:
    torch.set_num_threads(1)
    return build(galip.ImageEncoder, "clip.visual.").requires_grad_(False)


@pytest.fixture(scope="module")
def real(image_encoder) -> tuple[torch.Tensor, torch.Tensor]:
    """(features, embedding) of the real images: 256 px, as in the official training."""
    return image_encoder(formula("input.real", (2, 3, 256, 256), 0.5).clamp(-1, 1))


# In double precision: the order in which a processor sums thousands of float32 products alone moves a score by 1e-5.
@pytest.fixture(scope="module")
def netd() -> galip.NetD:
    return build(galip.NetD, "netD.").double().requires_grad_(False)


@pytest.fixture(scope="module")
def netc() -> galip.NetC:
    return build(galip.NetC, "netC.").double().requires_grad_(False)


def test_text_embedding():
    encoder = build(galip.TextEncoder, "clip.")
    with torch.no_grad():
        for ids, golden in zip(NUMBERS["text.token_ids"], GOLDEN["text.sent_emb"], strict=True):
            padded = torch.tensor([ids + [0] * (77 - len(ids))])
            embedding = encoder(padded)
            assert rel_rms(embedding[0], golden) < TOLERANCE
            assert rel_rms(encoder(torch.tensor([ids]))[0], golden) < TOLERANCE, (
                "padding must not matter: attention is causal"
            )
    assert embedding.norm() > 5, "the sentence embedding is not normalized"


def test_image_encoder(real):
    features, embedding = real
    assert features.shape == (2, 3, 768, 7, 7)
    assert rel_rms(features[:, :, ::32], GOLDEN["img.features"]) < TOLERANCE
    assert rel_rms(embedding, GOLDEN["img.embed"]) < TOLERANCE


def test_double_normalization_is_kept(image_encoder):
    """CLIP sees -1 as 0.5 and +1 as 1, never anything darker."""
    black_white = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 30, 30)
    mean, std = torch.tensor(galip.clip.MEAN), torch.tensor(galip.clip.STD)
    seen = image_encoder.preprocess(black_white)[:, :, 100, 100] * std + mean
    torch.testing.assert_close(seen, torch.tensor([[0.5] * 3, [1.0] * 3]))


def test_discriminator(real, netd, netc):
    out = netd(real[0].double())
    assert rel_rms(out[:, ::16], GOLDEN["netD.out"]) < TOLERANCE
    assert rel_rms(netc(out, inputs()[1].double()), GOLDEN["netC.out"]) < TOLERANCE


def test_penalty(real, netd, netc):
    features, sentence = real[0].double().requires_grad_(), inputs()[1].double().requires_grad_()
    score = netc(netd(features), sentence)
    norm = losses.gradient_norm(score, features, sentence)
    assert rel_rms(norm.detach(), GOLDEN["magp.gradnorm"]) < TOLERANCE
    penalty = losses.matching_aware_gradient_penalty(netc(netd(features), sentence), features, sentence)
    assert float(penalty.detach()) == pytest.approx(NUMBERS["magp.loss"], rel=6 * TOLERANCE)


def test_penalty_trains_the_discriminator(generator):
    netd, netc = galip.NetD(64, 8, 2), galip.NetC(8, 5, 4)
    features = torch.randn(2, 2, 64, 7, 7, generator=generator).requires_grad_()
    sentence = torch.randn(2, 5, generator=generator).requires_grad_()
    losses.matching_aware_gradient_penalty(netc(netd(features), sentence), features, sentence).backward()
    assert netc.joint_conv[0].weight.grad.abs().max() > 0


def test_losses(real, image_encoder, netd, netc):
    """On the generated image as the official code made it: the full-size generator agrees with it
    (test_galip_model).
    """
    noise, sentence = inputs()
    expected = NUMBERS["loss"]
    with torch.no_grad():
        judged, exact = netd(real[0].double()), sentence.double()
        matched = netc(judged, exact)
        wrong = netc(judged, losses.mismatched(exact))
        features, embedding = image_encoder(build(galip.Generator, "netG.")(noise, sentence))
        fake = netc(netd(features.double()), exact)
    assert float(losses.hinge_real(matched)) == pytest.approx(expected["d_real"], rel=TOLERANCE)
    assert float(losses.hinge_fake(wrong)) == pytest.approx(expected["d_mis"], rel=TOLERANCE)
    assert float(losses.hinge_fake(fake)) == expected["d_fake"]
    assert float(-fake.mean()) == pytest.approx(expected["g_adv"], rel=TOLERANCE)
    assert float(losses.clip_similarity(embedding, sentence)) == pytest.approx(expected["g_sim"], abs=TOLERANCE)
    total = expected["d_real"] + 0.5 * (expected["d_fake"] + expected["d_mis"])
    assert float(discriminator_loss(matched, fake, wrong)) == pytest.approx(total, rel=TOLERANCE)
    total = expected["g_adv"] - 4 * expected["g_sim"]
    assert float(generator_loss(fake, embedding, sentence)) == pytest.approx(total, rel=TOLERANCE)
