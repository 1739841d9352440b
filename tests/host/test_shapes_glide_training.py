"""Training of GLIDE on Shapes: its fast layers, its loss, its data, and the files that it leaves."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from guidance_lab.experiments.glide import data, export, network, reading, sampling, train
from guidance_lab.experiments.glide.first_world.read import judge, read
from guidance_lab.experiments.glide.first_world.render import render
from guidance_lab.experiments.glide.first_world.world import Scene, random_scene
from guidance_lab.experiments.glide.loss import NOISY_END, SHARES, HybridLoss, noise_of, timesteps
from guidance_lab.experiments.train.export import in_8_bits
from guidance_lab.experiments.training import initialize
from guidance_lab.glide import load, tokenize
from guidance_lab.glide.diffusion import Schedule
from guidance_lab.glide.tokenizer import encode
from guidance_lab.shapes import shipped


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / a.norm()).item()


def drawing(name: str) -> nn.Module:
    """A network whose silent last layers are not silent."""
    model = network.untrained(network.CONFIGS[name])
    with torch.no_grad():
        for index, (key, p) in enumerate(model.named_parameters()):
            if not p.any():
                p.copy_(0.05 * seeded(*p.shape, seed=index))
            assert p.any(), key
    return model.eval()


def test_the_fast_group_norm_is_pytorchs():
    ours, theirs = network.GroupNorm(32, 64), nn.GroupNorm(32, 64)
    for norm in (ours, theirs):
        norm.weight.data, norm.bias.data = seeded(64, seed=1), seeded(64, seed=2)
    results = []
    for norm in (ours, theirs):
        x = (seeded(3, 64, 6, 5, seed=3) + 2).to(memory_format=torch.channels_last).requires_grad_()
        out = norm(x)
        (out * seeded(3, 64, 6, 5, seed=4)).sum().backward()
        results.append((out, x.grad, norm.weight.grad, norm.bias.grad))
    for mine, other in zip(*results, strict=True):
        assert torch.allclose(mine, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", shipped.GLIDE)
def test_what_is_shipped_draws_as_what_was_trained(name, tmp_path, monkeypatch):
    """From the small embedding of the training to GPT-2's, through 8 bits and the file; base out of inpaint's."""
    file = shipped.GLIDE[name]
    model = drawing(file.removeprefix("glide_"))
    captions = ["a red striped ball left of a cyan cube on sand", "lizard", ""]
    monkeypatch.setattr("guidance_lab.experiments.train.export.WEIGHTS", tmp_path)
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    export.write(file, in_8_bits(export.released(model.state_dict())))
    assert (tmp_path / f"{file}.safetensors").stat().st_size < 3.7e6
    library = load(shipped.glide_weights(name), group_channels=shipped.GLIDE_GROUP_CHANNELS)
    assert library.config.variant == network.CONFIGS[name].variant and library.config.vocabulary == 50257
    x, t = seeded(3, 3, 16, 16), torch.tensor([20, 500, 999])
    around = {"upsample": {"low_res": x}, "inpaint": {"inpaint_image": x, "inpaint_mask": (x[:, :1] > 0).float()}}
    with torch.no_grad():
        texts = network.words(captions), tokenize(captions, network.TEXT_CTX)
        mine, other = (part.text(*text) for part, text in zip((model, library), texts, strict=True))
        for a, b in zip(mine, other, strict=True):
            assert relative(a, b) < 0.05 < relative(a, a.roll(1, 0)), "another text than the training's"
        out = [part(x, t, *text, **around.get(name, {})) for part, text in zip((model, library), texts, strict=True)]
    assert relative(*out) < 0.05


def test_all_words_of_the_world_are_known_and_short():
    rng = np.random.default_rng(0)
    captions = {data.prompt(random_scene(rng), rng)[0] for _ in range(300)} | {"ball", "black", "above"}
    _, mask = network.words(sorted(captions))
    assert mask.sum(1).max() < network.TEXT_CTX, "no caption is cut"
    with pytest.raises(KeyError):
        network.words(["a corgi"])


def test_the_bound_trains_the_variance_alone_and_is_the_divergence():
    schedule, loss_of = Schedule("squaredcos_cap_v2"), HybridLoss("squaredcos_cap_v2")
    i, x0, noise, v = 400, seeded(1, 3, 4, 4).clamp(-1, 1), seeded(1, 3, 4, 4, seed=1), seeded(1, 3, 4, 4, seed=2)
    t = torch.tensor([i])
    x = loss_of.noised(x0, t, noise)
    out = torch.cat([noise + 0.1 * seeded(1, 3, 4, 4, seed=3), v], 1).requires_grad_()
    loss, parts = loss_of(out, x, x0, t, noise)
    guess = schedule.x0(x, out[:, :3].detach(), i).clamp(-1, 1)
    true = torch.distributions.Normal(
        schedule.posterior_mean(x, x0, i), torch.full_like(x, schedule.log_posterior[i] / 2).exp()
    )
    step = torch.distributions.Normal(schedule.posterior_mean(x, guess, i), (0.5 * schedule.log_variance(v, i)).exp())
    bound = torch.distributions.kl_divergence(true, step).mean() / np.log(2)
    assert parts["bound"] == pytest.approx(bound.item(), rel=1e-4)
    loss.backward()
    weight = (1 - schedule.abar[i]) / schedule.abar[i]
    plain = 2 * max(1, weight) * (out[:, :3] - noise) / noise.numel()
    assert torch.allclose(out.grad[:, :3], plain.detach(), rtol=1e-3), "the bound moved the mean"
    assert out.grad[:, 3:].abs().max() > 0


def test_the_noisy_end_weighs_no_more_than_its_limit():
    loss_of, zero = HybridLoss("squaredcos_cap_v2"), torch.zeros(1, 6, 2, 2)
    _, parts = loss_of(zero, zero[:, :3], zero[:, :3], torch.tensor([999]), torch.ones(1, 3, 2, 2))
    assert parts["loss"] == NOISY_END and parts["eps"] == 1


def test_inpainting_begins_as_the_base_network():
    base, inpaint = drawing("base"), network.untrained(network.CONFIGS["inpaint"])
    inpaint.load_state_dict(train.with_inputs(base.state_dict(), 4))
    x, t, words = seeded(2, 3, 16, 16), torch.tensor([10, 900]), network.words(["a red ball on white", ""])
    with torch.no_grad():
        out = inpaint(x, t, *words, inpaint_image=x, inpaint_mask=torch.ones(2, 1, 16, 16))
        assert torch.allclose(out, base(x, t, *words), atol=1e-5)


def test_a_large_render_is_the_same_picture():
    rng = np.random.default_rng(1)
    for _ in range(5):
        scene = random_scene(rng)
        small, large = render(scene), render(scene, size=128)
        halved = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
        assert large.shape == (128, 128, 3) and np.abs(halved - small).max() <= 1
    assert np.array_equal(render(scene, size=64), render(scene))


def test_crops_to_enlarge_show_the_same_place():
    scenes = [data.scene(i) for i in range(4)]
    large, low = data.crops_to_enlarge(scenes, 64, np.random.default_rng(0))
    assert large.shape == low.shape == (4, 3, 64, 64)
    assert (large - low).abs().mean() < 0.05 < (large - low.roll(1, 0)).abs().mean()
    assert (large - low).abs().max() > 0.2, "nothing is to be added"


def test_masks_leave_something_to_learn():
    scenes = [data.scene(i) for i in range(400)]
    masks = data.known(scenes, 64, np.random.default_rng(0))
    assert masks.shape == (400, 1, 64, 64) and set(masks.unique().tolist()) == {0.0, 1.0}
    shares = masks.mean((1, 2, 3))
    assert 0.4 < (shares == 0).float().mean() < 0.6 and (shares == 1).sum() == 0 and shares.max() > 0.8
    half = data.known(scenes, 32, np.random.default_rng(0))
    assert (torch.nn.functional.avg_pool2d(masks, 2) - half).abs().mean() < 0.02, "another place at another size"


def test_the_square_around_a_thing_holds_all_of_it():
    for scene in (data.scene(i) for i in range(40)):
        bare = render(Scene((), scene.background, ""))
        for thing in scene.things:
            alone = render(Scene((thing,), scene.background, "")).astype(int)
            alone[data.around(thing, 1)] = bare[data.around(thing, 1)]
            assert (np.abs(alone - bare).max(-1) > 24).mean() < 0.01


def test_an_edit_asks_for_something_else_inside_the_mask_only():
    wanted, before, masks = sampling.edits(20)
    after = data.pictures(wanted)
    assert torch.equal(after * masks, before * masks)
    for scene, old, new in zip(wanted, before, after, strict=True):
        assert judge(scene, read(sampling.to_bytes(new[None])[0]))["all"] == 1
        assert judge(scene, read(sampling.to_bytes(old[None])[0]))["all"] == 0


def test_every_network_trains_and_goes_on(tmp_path, monkeypatch):
    for module in (train, export):
        monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
        monkeypatch.setattr(module, "CHECKPOINT", tmp_path / "checkpoint")
    monkeypatch.setattr("guidance_lab.experiments.training.RUNS", tmp_path / "runs")

    def run(main, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["", *arguments])
        main()

    threads = torch.get_num_threads()
    for name in network.CONFIGS:
        run(train.main, name, "--batch", "2", "--samples", "2", "--small", "2", "--look", "1000")
        run(train.main, name, "--batch", "2", "--samples", "4", "--small", "2", "--look", "1000")
    torch.set_num_threads(threads)
    run(export.main)
    for name in network.CONFIGS:
        weights, samples = train.trained(name)
        kept, seen = train.kept(name, tmp_path / "checkpoint")
        assert seen == samples == 4 and kept.keys() == weights.keys()
        assert all(torch.allclose(kept[key], weights[key], atol=1e-3) for key in kept)
        (tmp_path / "runs" / f"glide-{name}" / "last.pt").unlink()
    (tmp_path / "checkpoint" / "base.jsonl").write_text("the curve so far\n")
    run(train.main, "base", "--batch", "2", "--samples", "4", "--look", "1000")
    assert train.trained("base")[1] == 4, "the weights of the checkpoint were not taken"
    assert (tmp_path / "runs" / "glide-base" / "log.jsonl").read_text() == "the curve so far\n"


def test_each_part_of_the_timesteps_has_its_share():
    t = timesteps(40_000, np.random.default_rng(0))
    assert t.min() == 0 and t.max() == 999
    uniform = 1 - sum(share for *_, share in SHARES)
    assert uniform > 0
    for first, end, share in SHARES:
        inside = (t >= first) & (t < end)
        assert abs(inside.mean() - (share + uniform * (end - first) / 1000)) < 0.01
        assert abs(t[inside].mean() - (first + end - 1) / 2) < 3
    assert abs((timesteps(40_000, np.random.default_rng(0), ()) >= 940).mean() - 0.06) < 0.01


def test_offset_noise_hides_the_mean_of_each_channel():
    shape = torch.Size((400, 3, 64, 64))
    plain, hidden = (noise_of(shape, k, torch.Generator().manual_seed(0)).mean((2, 3)) for k in (0.0, 0.1))
    assert abs(plain.std() - 1 / 64) < 0.002  # all that hides a mean otherwise
    assert abs(hidden.std() - (0.1**2 + 1 / 64**2) ** 0.5) < 0.01


def test_nouns_are_found_in_the_tokens():
    scenes = [data.scene(i) for i in range(100)]
    for scene in scenes:
        for caption in (scene.caption, scene.caption.removeprefix("a ")):
            positions = reading.noun_positions(caption, scene)
            assert positions == sorted(set(positions)), "two nouns in one place"
            for thing, at in zip(scene.things, positions, strict=True):
                tokens = encode(caption)
                rest = caption[: caption.index(thing.name)]
                assert at < len(tokens) and len(encode(rest.rstrip())) <= at
                *_, last = encode(f" {thing.name}")
                assert tokens[at] == last


def test_the_text_transformer_learns_what_a_caption_says():
    config = network.CONFIGS["base"]
    model, heads = network.untrained(config), reading.heads_for(config)
    initialize(heads, seed=0)
    learned = nn.ModuleList([model.text_encoder, heads])
    optimizer = torch.optim.AdamW(learned.parameters(), 3e-3)

    def loss(step: int, bare: bool = False) -> tuple[torch.Tensor, float]:
        rng = np.random.default_rng([1, step])
        drawn = [data.scene(1000 * step + i) for i in range(48)]
        prompts = [(scene.caption, set()) if bare else data.prompt(scene, rng) for scene in drawn]
        return reading.reading_loss(heads, model.text(*network.words([p for p, _ in prompts])), drawn, prompts)

    before = loss(999, bare=True)[1]
    for step in range(100):
        optimizer.zero_grad()
        loss(step)[0].backward()
        optimizer.step()
    assert loss(999, bare=True)[1] > 2 * before
    assert all(p.grad is None for p in model.unet.parameters())


def test_empty_prompts_teach_no_reading():
    config = network.CONFIGS["base"]
    model, heads = drawing("base"), reading.heads_for(config)
    initialize(heads, seed=0)
    scenes = [data.scene(i) for i in range(3)]
    prompts = [(scenes[0].caption, set()), ("", None), (scenes[2].caption, set())]
    text = model.text(*network.words([prompt for prompt, _ in prompts]))
    some = reading.reading_loss(heads, text, scenes, prompts)
    kept = [value[[0, 2]] for value in text]
    assert torch.allclose(some[0], reading.reading_loss(heads, kept, scenes[::2], prompts[::2])[0])
    assert reading.reading_loss(heads, text, scenes, [("", None)] * 3)[0] == 0
