"""The networks of Shapes and how they are trained: layout, normalization, sampling, resuming, twins."""

import copy
import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

from guidance_lab.experiments import training
from guidance_lab.experiments.data import scene
from guidance_lab.experiments.evidence.pictures import place_again
from guidance_lab.experiments.muon import Muon, optimizers
from guidance_lab.experiments.sampling import contexts, sample, without_text, zeroed_below
from guidance_lab.experiments.train import export, noised_clip
from guidance_lab.experiments.train.captioner import labels
from guidance_lab.experiments.train.clip import CHANGES, changed, contrastive_loss, twin
from guidance_lab.experiments.train.diffusion import ENDS, MAIN, SMALL, normalize_contiguous, prompts, untrained
from guidance_lab.experiments.train.galip import rates
from guidance_lab.experiments.train.outer import OuterText, forget_outside
from guidance_lab.experiments.train.text import targets
from guidance_lab.experiments.training import initialize, learning_rate
from guidance_lab.guidance.noised_clip import load
from guidance_lab.shapes import clip as shapes_clip
from guidance_lab.shapes import shipped
from guidance_lab.shapes.models import GROUPS, LATENT, autoencoder, text_encoder
from guidance_lab.shapes.world import parse


@pytest.fixture(scope="module")
def network():
    base, unet = untrained(MAIN)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in unet.parameters():  # the last layers begin at zero
            if not p.any():
                p.normal_(0, 0.1, generator=generator)
    return base, unet.requires_grad_(False)


def test_the_layout_is_that_of_sd15(network):
    _, unet = network
    crossed = [name for name, part in unet.named_modules() if name.endswith("attn2")]
    blocks = [name.split(".transformer_blocks")[0].rpartition(".")[0] for name in crossed]
    inner = [f"input_blocks.{i}" for i in (1, 2, 4, 5, 7, 8)] + ["middle_block"]
    assert blocks == inner + [f"output_blocks.{i}" for i in range(3, 12)]


def test_every_normalization_has_channels_to_compare(network):
    for module in (network[1], autoencoder()):
        groups = [part for part in module.modules() if isinstance(part, nn.GroupNorm)]
        assert groups and all(part.num_groups == GROUPS and part.num_channels >= 4 * GROUPS for part in groups)


def test_an_untrained_network_says_nothing():
    _, unet = untrained(MAIN)
    with torch.no_grad():
        x = torch.randn(1, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(0))
        assert not unet(x, torch.tensor([500]), context=torch.zeros(1, 4, 128)).any()


@pytest.mark.parametrize("side", (8, 4, 2))
def test_zeroed_levels_have_no_say(network, side):
    """While the hook stands, weights of the levels inside change nothing; those of the level outside do."""
    _, unet = network
    generator = torch.Generator().manual_seed(1)
    x, context = (torch.randn(shape, generator=generator) for shape in ((1, 4, LATENT, LATENT), (1, 5, 128)))
    level = {8: 1, 4: 2, 2: 3}[side]
    inside, outside = unet.output_blocks[11 - 3 * level], unet.output_blocks[12 - 3 * level]

    def out() -> torch.Tensor:
        return unet(x, torch.tensor([500]), context=context)

    def changes(block) -> bool:
        before, weight = out(), block[0].out_layers[3].weight
        kept = weight.clone()
        weight.mul_(-3)
        after = out()
        weight.copy_(kept)
        return not torch.equal(before, after)

    whole = out()
    hook = zeroed_below(unet, side)
    try:
        assert not torch.equal(out(), whole)
        assert not changes(inside) and not changes(unet.middle_block) and changes(outside)
    finally:
        hook.remove()
    assert torch.equal(out(), whole) and changes(inside)


def test_layers_without_text_read_the_empty_prompt(network):
    _, unet = network
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, 4, LATENT, LATENT), (2, 5, 128), (1, 5, 128))
    x, context, empty = (torch.randn(shape, generator=generator) for shape in shapes)

    def out(context: torch.Tensor) -> torch.Tensor:
        return unet(x, torch.tensor([500, 500]), context=context)

    whole, nothing = out(context), out(empty.expand(2, -1, -1))
    drawn = {}
    for sides in ((16,), (8,), (4,), (2,), (16, 8, 4, 2)):
        hooks = without_text(unet, set(sides), empty)
        drawn[sides] = out(context)
        for hook in hooks:
            hook.remove()
    assert torch.equal(drawn.pop((16, 8, 4, 2)), nothing) and torch.equal(out(context), whole)
    assert all(not torch.equal(one, other) for one in drawn.values() for other in (whole, nothing))


def test_outer_levels_read_what_each_sample_has_for_them(network):
    """Without text for the first sample only, it is drawn as without text on maps of 16 and 8, the second as usual."""
    base, _ = network
    unet = copy.deepcopy(base.diffusion_model)  # its hooks stay on it
    generator = torch.Generator().manual_seed(2)
    shapes = ((2, 4, LATENT, LATENT), (2, 5, 128), (1, 5, 128))
    x, context, empty = (torch.randn(shape, generator=generator) for shape in shapes)

    def out() -> torch.Tensor:
        return unet(x, torch.tensor([500, 500]), context=context)

    whole, hooks = out(), without_text(unet, {16, 8}, empty)
    silent = out()
    for hook in hooks:
        hook.remove()
    outer = OuterText(unet)
    assert torch.equal(out(), whole)
    outer.context = torch.where(torch.tensor([[[False]], [[True]]]), context, empty)
    drawn = out()
    assert torch.equal(drawn[0], silent[0]) and torch.equal(drawn[1], whole[1]) and not torch.equal(drawn[0], whole[0])


def test_outer_levels_that_forgot_say_nothing_of_the_text(network):
    base, _ = network
    unet = copy.deepcopy(base.diffusion_model)
    generator = torch.Generator().manual_seed(3)
    x, context, empty = (
        torch.randn(s, generator=generator) for s in ((1, 4, LATENT, LATENT), (1, 5, 128), (1, 5, 128))
    )

    def changes(sides: set[int]) -> bool:
        whole = unet(x, torch.tensor([500]), context=context)
        hooks = without_text(unet, sides, empty)
        other = unet(x, torch.tensor([500]), context=context)
        for hook in hooks:
            hook.remove()
        return not torch.equal(whole, other)

    assert changes({16}) and changes({8}) and changes({4, 2})
    forget_outside(unet)
    assert not changes({16, 8}) and changes({4, 2})


class Point(nn.Module):
    """The exact eps-prediction for data that is one point: eps = (x - sqrt(a) point) / sqrt(1 - a)."""

    def __init__(self, base, point: torch.Tensor):
        super().__init__()
        self.a, self.point = 1 / (1 + base.model_sampling.sigmas**2), point

    def forward(self, x, t, context):
        low = t.floor().long()
        a = self.a[low].view(-1, 1, 1, 1)
        return (x - a.sqrt() * self.point * context[:, :1, :1].unsqueeze(-1)) / (1 - a).sqrt()


@pytest.mark.parametrize("cfg, expected", ((1.0, 1.0), (2.0, 2.0)))
def test_sampling_ends_where_the_data_is(network, cfg, expected):
    """With an exact network for one point the sampler ends at it; the empty prompt's is zero, so CFG 2 doubles it."""
    base, _ = network
    point = torch.linspace(-1, 1, 4 * LATENT * LATENT).view(1, 4, LATENT, LATENT)
    drawn = sample(base, Point(base, point), torch.ones(3, 2, 8), torch.zeros(1, 2, 8), seed=0, cfg=cfg)
    assert drawn.shape == (3, 4, LATENT, LATENT)
    assert (drawn - expected * point).abs().max() < 0.05


def test_one_seed_is_one_picture(network):
    base, unet = network
    text = text_encoder()
    initialize(text, seed=1)
    rows, empty = contexts(text, ["a red ball on white"], "cpu"), contexts(text, [""], "cpu")
    first, again, other = (sample(base, unet, rows, empty, seed, 2.0, steps=2) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def layer_run(name: str, every: int = 2) -> tuple[nn.Linear, training.Run]:
    layer = nn.Linear(1, 1)
    nn.init.zeros_(layer.weight)
    return layer, training.Run(name, {"model": layer}, every)


def test_a_run_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "RUNS", tmp_path)
    layer, run = layer_run("x")
    for _ in run.steps(8):
        with torch.no_grad():
            layer.weight += 1
        run.done(4, loss=1.0)
    layer, run = layer_run("x")
    assert layer.weight.item() == 2 and (run.step, run.samples) == (2, 8)
    assert list(run.steps(8)) == []
    assert '"loss": 1.0' in (tmp_path / "x" / "log.jsonl").read_text(encoding="utf-8")
    assert torch.equal(training.trained("x")["weight"], layer.weight)
    with pytest.raises(FileNotFoundError, match="train it first"):
        training.trained("y")


def test_weights_that_travel_stand_in_for_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(training, "CHECKPOINT", tmp_path / "checkpoint")
    assert training.kept("x") is None and training.seen("x") == 0
    layer = nn.Linear(2, 1)
    training.write_weights(tmp_path / "checkpoint" / "x.safetensors", layer.state_dict(), 640, unet="{}")
    assert training.seen("x") == 640
    assert (training.trained("x")["weight"] - layer.weight).abs().max() < 1e-3
    assert training.trained("x")["weight"].dtype == torch.float32
    both = {f"{part}:{key}": value for part in "ab" for key, value in layer.state_dict().items()}
    training.write_weights(tmp_path / "checkpoint" / "y.safetensors", both, 1)
    assert sorted(training.trained("y", "a")) == ["bias", "weight"]
    with pytest.raises(FileNotFoundError, match="train it first"):
        training.trained("y", "c")
    layer, run = layer_run("x")
    run.samples = 650
    run.save()
    assert training.seen("x") == 650 and torch.equal(training.trained("x")["weight"], layer.weight)


def test_a_run_that_is_told_to_end_saves_its_last_step(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "RUNS", tmp_path)
    _, run = layer_run("x")
    with pytest.raises(SystemExit, match="goes on"):
        for step in run.steps(100):
            if step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            run.done(1, loss=1.0)
    assert layer_run("x")[1].step == 5
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL or callable(signal.getsignal(signal.SIGTERM))


def test_the_learning_rate_rises_and_falls():
    rows = [learning_rate(step, 1000, 2.0, warmup=10, floor=0.1) for step in (0, 9, 10, 505, 1000, 2000)]
    assert rows == pytest.approx([0.2, 2.0, 2.0, 1.1, 0.2, 0.2])
    assert rates(0, 100) == pytest.approx((3, 3)) and rates(100, 100) == pytest.approx((1, 0.2))


def test_a_twin_is_wrong_in_one_way():
    rng = np.random.default_rng(0)
    for index in range(300):
        drawn = scene(index)
        assert twin(drawn, rng).caption != drawn.caption
        for kind in CHANGES:
            other = changed(drawn, kind, rng)
            if other is not None:
                assert other.caption != drawn.caption and parse(other.caption).caption == other.caption, kind


def test_swapped_things_keep_their_words():
    drawn = parse("a red ball left of a blue cube on white")
    rng = np.random.default_rng(0)
    assert changed(drawn, "swap", rng).caption == "a blue cube left of a red ball on white"
    assert changed(drawn, "swap colours", rng).caption == "a blue ball left of a red cube on white"
    assert changed(parse("two red balls on white"), "count", rng).caption == "three red balls on white"


def test_the_contrastive_loss_is_that_of_clip():
    """Against plain cross-entropies, captions all different."""
    images, texts = (torch.randn(n, 8, generator=torch.Generator().manual_seed(n)) for n in (4, 6))
    scale = torch.tensor(1.0)
    logits = scale.exp() * images @ texts.T
    right = torch.arange(4)
    expected = (nn.functional.cross_entropy(logits, right) + nn.functional.cross_entropy(logits[:, :4].T, right)) / 2
    assert contrastive_loss(images, texts, list("abcd"), scale) == pytest.approx(expected.item(), rel=1e-5)
    assert contrastive_loss(images, texts, list("abca"), scale).item() != pytest.approx(expected.item(), rel=1e-3)


def test_a_scene_placed_again_has_its_caption():
    rng = np.random.default_rng(0)
    for index in range(100):
        wanted = parse(scene(index).caption)
        placed = place_again(wanted, rng)
        assert placed.caption == wanted.caption and placed != wanted


def test_text_targets_say_what_the_caption_says():
    whole, nouns = targets(parse("a small red ball left of a blue striped cube on sand"), set())
    assert len(nouns) == 2 and nouns[0]["relation"] == 0 and nouns[1]["relation"] == 1
    assert (nouns[0]["size"], nouns[1]["size"], nouns[1]["texture"]) == (1, 0, 2)
    assert whole["number"] == 1 and whole["background"] == 4 and whole["name2"] == 0
    whole, nouns = targets(parse("three balls on white"), {"background"})
    assert len(nouns) == 1 and nouns[0]["number"] == 3 and nouns[0]["colour"] == 0 and whole["background"] == 0


def test_captions_to_learn_end_once():
    ids, wanted = labels(["a red ball on white"])
    assert (wanted != -100).sum() == 7 and torch.equal(ids[wanted != -100], wanted[wanted != -100])


def test_prompts_are_within_what_training_shows():
    assert all(len(s.things) == 1 and s.things[0].colour for s in prompts(30, True))
    assert all(len(s.things) in (2, 3) for s in prompts(30, False))


def test_normalizations_see_maps_channels_first_and_change_nothing():
    _, unet = untrained(MAIN)
    unet.to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(0))
    x, t, context = x.contiguous(memory_format=torch.channels_last), torch.tensor([10, 900]), torch.ones(2, 5, 128)
    for p in unet.parameters():  # the last layers begin at zero
        if not p.any():
            p.data.fill_(0.01)
    before, seen = unet(x, t, context=context), []
    normalize_contiguous(unet)
    unet.out[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].is_contiguous()))
    torch.testing.assert_close(unet(x, t, context=context), before, rtol=1e-4, atol=1e-5)
    assert seen == [True] and before.abs().max() > 0


def test_kernels_are_trained_as_matrices_and_the_ends_by_adam():
    base, unet = untrained(MAIN)
    unet.to(memory_format=torch.channels_last)
    both = optimizers(unet, ENDS, 1e-3)
    matrices, others = both["muon"].weights, both["adam"].param_groups[0]["params"]
    assert len(matrices) + len(others) == len(list(unet.parameters()))
    assert {id(p) for p in (*matrices, *others)} == {id(p) for p in unet.parameters()}
    assert min(p.ndim for p in matrices) == 2
    by_adam = {id(p) for p in others}
    assert {id(unet.out[2].weight), id(unet.time_embed[0].weight), id(unet.input_blocks[0][0].weight)} <= by_adam


def test_a_step_of_muon_goes_along_every_singular_vector_alike():
    kernel = nn.Parameter(
        torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    )
    before = kernel.detach().clone()
    gradient = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    optimizer = Muon([kernel], lr=0.01, weight_decay=0.0)
    optimizer.zero_grad()
    (kernel * gradient).sum().backward()
    optimizer.step()
    # the gradient U S V^T becomes U V^T, scaled by lr * 0.2 * sqrt(36)
    left, _, right = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
    along = torch.diagonal(left.T @ (before - kernel.detach()).flatten(1) @ right.T) / (0.01 * 0.2 * 6)
    assert along.min() > 0.6 and along.max() < 1.3  # Newton and Schulz bring them near 1
    with pytest.raises(ValueError, match="does not lie in memory"):
        Muon([nn.Parameter(torch.zeros(4, 8, 3, 3).transpose(0, 1))], 0.01, 0.0)


def test_a_noise_aware_clip_is_read_as_it_was_trained(tmp_path, monkeypatch):
    """Through GLIDE's names, 8 bits and the file."""
    monkeypatch.setattr("guidance_lab.experiments.train.export.WEIGHTS", tmp_path)
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    assert not shipped.has_noised_clip("shapes")
    network = noised_clip.untrained()
    export.write("noised_clip", export.in_8_bits(export.in_glides_names(network.state_dict())))
    assert shipped.has_noised_clip("shapes")
    read = load(*shipped.noised_clip_files("shapes"))
    assert read.image_size == 128
    ids = shapes_clip.tokens(["a red ball on white", "two pink fish on ice"])
    x = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for one, other in (
            (network.text(ids, shapes_clip.lengths(ids)), read.text(ids, shapes_clip.lengths(ids))),
            (network.image(x, 300), read.image(x, torch.tensor([300, 300]))),
        ):
            assert nn.functional.cosine_similarity(one, other).min() > 0.99


def test_8_bits_are_near(tmp_path, monkeypatch):
    monkeypatch.setattr("guidance_lab.experiments.train.export.WEIGHTS", tmp_path)
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    _, unet = untrained(SMALL)
    before = unet.state_dict()
    export.write("small", export.in_8_bits(before), {"unet": '{"width": 32, "mult": [1, 1, 2, 2]}'})
    after = shipped.load_model("small").model.diffusion_model.state_dict()
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert (after[key] - value).abs().max() <= 0.01 * value.abs().max() + 1e-6, key
