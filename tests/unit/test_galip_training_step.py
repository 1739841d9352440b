"""A whole training step against a flat second writing of it, the golden losses of the official code, and resuming."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from galip_formula import build, formula, formula_state_dict, inputs
from torch import nn

from guidance_lab import galip
from guidance_lab.galip.training import Trainer

DIMS = galip.Dims(
    nz=6,
    cond_dim=10,
    grid=4,
    code_channels=8,
    code_hidden=4,
    bridge_blocks=1,
    clip_width=64,
    clip_layers=3,
    clip_patch=4,
    prompts=1,
    channels=((8, 8), (8, 4)),
    sizes=(8, 16),
)
NUMBERS = json.loads((Path(__file__).parent.parent / "fixtures/galip/golden.json").read_text())["loss"]


def filled(module: nn.Module, prefix: str) -> nn.Module:
    module.load_state_dict(formula_state_dict(module, prefix))
    return module


def trainer(**options) -> Trainer:
    """A tiny one; formula weights, so that no term is silent."""
    torch.set_num_threads(1)
    return Trainer(
        filled(galip.Generator(DIMS, galip.PLAIN), "netG."),
        filled(galip.NetD(64, 8, 2), "netD."),
        filled(galip.NetC(8, 10, 6, 3, 4), "netC."),
        filled(galip.ImageEncoder(64, 3, 4, 4, 10, taps=(0, 2)), "clip.visual."),
        **options,
    )


def batch(seed: int, size: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(size, *shape, generator=source) for shape in ((3, 16, 16), (10,), (6,)))


def adam(parameters: list[torch.Tensor], gradients: list[torch.Tensor], lr: float) -> list[torch.Tensor]:
    """The first step of Adam with betas (0, 0.9): the bias-corrected moments are the gradient and its square."""
    return [p.detach() - lr * g / (g.square().sqrt() + 1e-8) for p, g in zip(parameters, gradients, strict=True)]


def written_out(
    given: Trainer, real, sentence, noise, lr_g: float, lr_d: float
) -> tuple[list[torch.Tensor], list[torch.Tensor], dict]:
    """One iteration after the paper, sample by sample, with nothing of galip.training or galip.losses."""
    generator, netd, netc, encoder = (
        copy.deepcopy(m) for m in (given.generator, given.netd, given.netc, given.encoder)
    )
    size = len(real)
    fake = generator(noise, sentence)
    terms = dict.fromkeys(("d_real", "d_fake", "d_mis", "penalty", "g_adv", "similarity"), 0.0)
    for i in range(size):
        features = encoder(real[i : i + 1])[0].detach().requires_grad_()
        own = sentence[i : i + 1].clone().requires_grad_()
        score = netc(netd(features), own)
        slopes = torch.autograd.grad(score.sum(), (features, own), create_graph=True)
        norm = sum(slope.square().sum() for slope in slopes).sqrt()
        other = sentence[(i + 1) % size][None]
        terms["d_real"] = terms["d_real"] + (1 - score).clamp(min=0).squeeze() / size
        terms["d_mis"] = terms["d_mis"] + (1 + netc(netd(features), other)).clamp(min=0).squeeze() / size
        terms["d_fake"] = (
            terms["d_fake"] + (1 + netc(netd(encoder(fake[i : i + 1].detach())[0]), own)).clamp(min=0).squeeze() / size
        )
        terms["penalty"] = terms["penalty"] + 2 * norm**6 / size
    total = terms["d_real"] + terms["d_fake"] / 2 + terms["d_mis"] / 2 + terms["penalty"]
    judge = [*netd.parameters(), *netc.parameters()]
    gradients = torch.autograd.grad(total, judge, allow_unused=True)
    used = [(p, g) for p, g in zip(judge, gradients, strict=True) if g is not None]
    with torch.no_grad():
        for (p, _), new in zip(used, adam(*zip(*used, strict=True), lr_d), strict=True):
            p.copy_(new)
    for i in range(size):
        features, embedding = encoder(fake[i : i + 1])
        terms["g_adv"] = terms["g_adv"] - netc(netd(features), sentence[i : i + 1]).squeeze() / size
        unit = F.normalize(embedding[0], dim=0) @ F.normalize(sentence[i], dim=0)
        terms["similarity"] = terms["similarity"] + unit / size
    trained = [p for p in generator.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(terms["g_adv"] - 4 * terms["similarity"], trained)
    return judge, adam(trained, gradients, lr_g), terms


def test_a_step_is_the_papers():
    ours = trainer(lr_g=1e-3, lr_d=4e-3)
    data = batch(0)
    judge, drawn, terms = written_out(ours, *data, 1e-3, 4e-3)
    found = ours.step(*data)
    for name, value in terms.items():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-4, atol=1e-6, msg=name)
    # A first step of Adam is the sign of the gradient: entries whose gradient is rounding error may go either way.
    for mine, expected in (
        (list(ours.netd.parameters()) + list(ours.netc.parameters()), judge),
        ([p for p in ours.generator.parameters() if p.requires_grad], drawn),
    ):
        wrong = sum(float(((a - b).abs() > 1e-6).sum()) for a, b in zip(mine, expected, strict=True))
        assert wrong <= 2e-3 * sum(p.numel() for p in mine)


def test_clip_stays_frozen_and_the_rest_learns():
    ours = trainer()
    before = {
        name: part.state_dict()
        for name, part in {"netG": ours.generator, "netD": ours.netd, "netC": ours.netc, "clip": ours.encoder}.items()
    }
    before = {name: {key: value.clone() for key, value in state.items()} for name, state in before.items()}
    ours.step(*batch(0))
    assert all(torch.equal(value, before["clip"][key]) for key, value in ours.encoder.state_dict().items())
    for key, value in ours.generator.state_dict().items():
        assert torch.equal(value, before["netG"][key]) == ("CLIP_ViT" in key), key
    for name, part in (("netD", ours.netd), ("netC", ours.netc)):
        for key, value in part.state_dict().items():
            assert torch.equal(value, before[name][key]) == ("DBlocks.0.conv_s" in key), (
                key
            )  # the shortcut that is never used


def test_golden_losses():
    """The official code's numbers at full size, from the image that its own generator made.

    The discriminator is in double precision: its scores are sums of large terms that cancel, and float32 rounds those
    differently on each processor.
    """
    torch.set_num_threads(1)
    noise, sentence = inputs()
    encoder = build(galip.ImageEncoder, "clip.visual.")
    ours = Trainer(
        galip.Generator(DIMS), build(galip.NetD, "netD.").double(), build(galip.NetC, "netC.").double(), encoder
    )
    with torch.no_grad():
        real, _ = ours.encode_image(formula("input.real", (2, 3, 256, 256), 0.5).clamp(-1, 1))
        fake, embedding = ours.encode_image(build(galip.Generator, "netG.")(noise, sentence))
    real, fake, embedding, sentence = (part.double() for part in (real, fake, embedding, sentence))
    terms = ours.discriminator_terms(real, fake, sentence) | ours.generator_terms(fake, embedding, sentence)
    assert {k: v.item() for k, v in terms.items() if k not in ("penalty", "similarity")} == pytest.approx(
        {k: NUMBERS[k] for k in ("d_real", "d_mis", "d_fake", "g_adv")}, rel=1e-5
    )
    assert terms["penalty"].item() == pytest.approx(0.83520, rel=6e-5)
    assert terms["similarity"].item() == pytest.approx(NUMBERS["g_sim"], abs=1e-5)


def test_defaults_are_the_official_ones():
    ours = trainer()
    assert ours.sim_weight == 4.0 and ours.encoder.normalize_twice and ours.clip_features
    for optimizer, lr in ((ours.optimizer_g, 1e-4), (ours.optimizer_d, 4e-4)):
        (group,) = optimizer.param_groups
        assert (group["lr"], group["betas"], group["weight_decay"], group["amsgrad"]) == (lr, (0.0, 0.9), 0, False)


def test_a_resumed_run_is_the_same_run(tmp_path):
    first = trainer()
    first.step(*batch(0))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = trainer()
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for seed in (1, 2):
        expected, found = first.step(*batch(seed)), second.step(*batch(seed))
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert torch.equal(first.generator.to_rgb[1].weight, second.generator.to_rgb[1].weight)


def test_without_clip_features_the_penalty_is_on_pixels():
    class Pixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 4, 4)

        def forward(self, image):
            return self.conv(image)

    ours = trainer()
    torch.manual_seed(0)
    pixels = Trainer(ours.generator, Pixels(), ours.netc, ours.encoder, clip_features=False)
    real, sentence, noise = batch(0)
    assert torch.equal(pixels.encode_image(real)[0], real)
    found = pixels.step(real, sentence, noise)
    assert found["penalty"] > 0 and all(torch.isfinite(value) for value in found.values())


def test_bfloat16_is_the_same_step_less_exactly():
    exact, mixed = trainer(), trainer(autocast=torch.bfloat16)
    data = batch(3, 4)
    expected, found = exact.step(*data), mixed.step(*data)
    for name in expected:
        assert found[name].dtype == torch.float32
        assert float(found[name]) == pytest.approx(float(expected[name]), rel=0.2, abs=0.05), name
    assert not torch.equal(found["g_adv"], expected["g_adv"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_same_step_on_a_gpu():
    here, there = trainer(), trainer()
    for part in (there.generator, there.netd, there.netc, there.encoder):
        part.cuda()
    expected, found = here.step(*batch(0)), there.step(*(tensor.cuda() for tensor in batch(0)))
    for name in expected:
        assert float(found[name]) == pytest.approx(float(expected[name]), rel=1e-3, abs=1e-4), name


def test_refusals():
    with pytest.raises(ValueError, match="at least 2"):
        trainer().step(*batch(0, 1))
    with pytest.raises(ValueError, match=r"torch\.float16, but this training has no loss scaling"):
        trainer(autocast=torch.float16)
