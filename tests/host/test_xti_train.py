"""XTI Train as a node: it learns, it is textual inversion when shared, it can be repeated, resumed and interrupted, and
leaves no trace.
"""

import re
from dataclasses import replace

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import pytest
import safetensors
import torch
import xti_tools as tools
from xti_tools import CAPTION, latents, opened, outside_inference, train

from guidance_lab import xti
from guidance_lab.nodes.layers.learned_tokens import word_rows
from guidance_lab.nodes.layers.xti_files import xti_files
from guidance_lab.shapes import shipped
from guidance_lab.shapes.render import render
from guidance_lab.shapes.world import Scene, Thing
from guidance_lab.xti.layers import named_table
from guidance_lab.xti.losses import reconstruction_loss
from guidance_lab.xti.training import draw

SD1 = named_table("sd1")
KOHYA = "IN01 IN02 IN04 IN05 IN07 IN08 MID OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11"


@pytest.fixture
def model():
    return tools.sixteen_layers()


@pytest.fixture
def clip():
    return tools.sd1_clip()


@pytest.fixture(scope="module")
def shapes():
    """(model, clip, vae) that ship with the pack, loaded as a node loads them."""
    with torch.inference_mode():
        return shipped.load_model("main"), shipped.load_clip(), shipped.load_vae()


@pytest.fixture
def output(tmp_path, monkeypatch):
    """The output folder of this test."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


def same(a, b) -> bool:
    return all(torch.equal(a.layers[name], b.layers[name]) for name in a.layers)


def at_fixed_draws(shapes, learned, pictures, draws=6) -> float:
    """The reconstruction loss of an XTI on fixed noise: what training lowers, without its luck."""
    model, clip, vae = shapes
    with outside_inference(), opened(model, clip, "a {} on white") as network, torch.no_grad():
        clean = model.model.process_latent_in(pictures).clone()
        contexts = network.encode(0, list(learned.layers.values()))
        losses = []
        for step in range(draws):
            drawn = draw(99, step, 1, clean, 1000, 4)
            prediction, scale = network.predict(clean[drawn.pictures], drawn.noise, drawn.levels, contexts)
            losses.append(reconstruction_loss(prediction, clean[drawn.pictures], scale).item())
    return float(np.mean(losses))


def test_one_picture_is_learned(shapes, run_node):
    """In Shapes, from another word, in a few steps; the weights were made in inference mode, as in every workflow."""
    model, clip, vae = shapes
    pixels = torch.tensor(render(Scene((Thing("car", 0.0, "dotted"),), "white"))).float()[None] / 255
    own = {"captions": "own lines", "lines": "a {} on white"}
    options = dict(
        images=pixels, vae=vae, init_word="cube", captions=own, batch=4, pictures_at_once=4, learning_rate=0.01
    )
    learned, plot = train(run_node, model, clip, steps=25, **options)
    start, _ = train(run_node, model, clip, steps=1, **{**options, "learning_rate": 1e-6})
    with torch.inference_mode():
        encoded = vae.encode(pixels)
    before, after = (at_fixed_draws(shapes, each, encoded) for each in (start, learned))
    assert after < 0.5 * before
    assert plot.shape == (1, 640, 1024, 3) and plot.min() == 0 and plot.max() == 1


def test_a_shared_token_is_textual_inversion_exactly(model, clip, run_node):
    """The same as the plain loop of textual inversion with ComfyUI's own context and no layers in it, bit for bit."""
    learned, _ = train(run_node, model, clip, steps=3, shared=True, seed=7)
    assert learned.shared
    clean = model.model.process_latent_in(latents()["samples"])
    sampling = model.model.model_sampling
    with outside_inference(), opened(model, clip) as network, torch.enable_grad():
        row = word_rows(clip, "cat", 1).requires_grad_()
        optimizer = torch.optim.AdamW([row], lr=5e-3, weight_decay=0.0)
        for step in range(3):
            drawn = draw(7, step, 1, clean, len(sampling.sigmas), 3)
            sigma = sampling.sigmas[drawn.levels]
            x = clean[drawn.pictures] + sigma[:, None, None, None] * drawn.noise
            context = network.encode(0, [row])
            prediction = model.model.apply_model(
                x, sigma, c_crossattn=context.expand(3, -1, -1), transformer_options=network.options
            )
            loss = ((prediction - clean[drawn.pictures]) / sigma[:, None, None, None]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert torch.equal(learned.layers["MID"], row.detach())


def test_every_layer_learns_for_itself(model, clip, run_node):
    learned, _ = train(run_node, model, clip)
    rows = list(learned.layers.values())
    assert all(not torch.equal(rows[i], rows[j]) for i in range(16) for j in range(i))
    assert learned.table.names == SD1.names and learned.source == "trained" and learned.metadata["steps"] == "2"
    assert "guidance" not in str(learned.metadata) and learned.metadata["init_word"] == "cat"


def test_three_runs_are_the_same_and_touch_no_global_random_state(model, clip, run_node):
    state = torch.get_rng_state()
    first, *others = (train(run_node, model, clip, seed=3)[0] for _ in range(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(same(first, other) for other in others)
    assert not same(first, train(run_node, model, clip, seed=4)[0])


def test_parts_of_a_batch_are_the_batch(model, clip, run_node):
    whole, parts = (
        train(run_node, model, clip, steps=1, learning_rate=0.1, batch=4, pictures_at_once=n)[0] for n in (4, 2)
    )
    close = [torch.isclose(whole.layers[name], parts.layers[name], atol=2e-3).float().mean() for name in SD1.names]
    assert (
        min(close) > 0.9
    )  # the first step of Adam is the sign of the gradient, which noise turns where it is near zero


def test_the_saved_file_has_kohyas_keys_and_shapes(clip, sd15_model, run_node, output):
    """On the SD1.5-layout checkpoint, whose weights are half precision and made by ComfyUI's loader; a CLIP-L of the
    real width.
    """
    learned, _ = train(run_node, sd15_model, tools.sd1_clip(768, heads=12), steps=1, batch=1, vectors=2)
    run_node("GuidanceLab_XTISave", xti=learned, filename_prefix="xti/mine", dtype="float32")
    (path,) = (output / "xti").iterdir()
    with safetensors.safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == KOHYA.split()
        tensors = [file.get_tensor(key) for key in file.keys()]
    assert all(tensor.shape == (2, 768) and tensor.dtype == torch.float32 for tensor in tensors)
    loaded = xti.load(path)
    assert same(loaded, learned) and loaded.source == "kohya" and loaded.metadata["steps"] == "1"


def test_resuming_goes_on_as_if_it_had_not_stopped(model, clip, run_node):
    """With Adam's memory: the same draws and the same steps as one run, bit for bit."""
    first, _ = train(run_node, model, clip, steps=2, vectors=2)
    second, _ = train(run_node, model, clip, steps=2, resume=first, init_word="ignored", vectors=7)
    assert second.metadata["steps"] == "4" and second.metadata["init_word"] == "cat"
    assert all(rows.shape == (2, 24) for rows in second.layers.values())
    assert same(second, train(run_node, model, clip, steps=4, vectors=2)[0])


def test_adams_memory_is_for_the_rows_it_was_made_with(model, clip, run_node, output):
    """Changed rows, and files of XTI Save, which are for use, begin with Adam's first step: one learning rate long."""
    first, _ = train(run_node, model, clip, steps=2)
    run_node("GuidanceLab_XTISave", xti=first, filename_prefix="xti/mine", dtype="float32")
    (path,) = (output / "xti").iterdir()
    assert path.stat().st_size < 16 * 24 * 4 + 3000
    changed = replace(first, layers={name: rows + 1e-3 for name, rows in first.layers.items()})
    damaged = replace(first, metadata={**first.metadata, "adam": first.metadata["adam"][:-7]})
    odd = replace(xti.load(path), metadata={"steps": "12.5"})
    for start in (changed, damaged, xti.load(path), odd):
        again, _ = train(run_node, model, clip, steps=1, resume=start)
        moved = torch.cat([(again.layers[name] - start.layers[name]).abs() for name in SD1.names])
        assert moved.median() == pytest.approx(5e-3, rel=1e-2) and moved.max() < 5.1e-3
    assert again.metadata["steps"] == "1"


def test_a_textual_inversion_can_go_on_as_xti(model, clip, run_node):
    inversion, _ = train(run_node, model, clip, shared=True)
    again, _ = train(run_node, model, clip, shared=True, steps=1, resume=inversion)
    apart, _ = train(run_node, model, clip, steps=1, resume=inversion)
    assert again.shared and not apart.shared


def test_previews_and_progress_are_shown(shapes, run_node, monkeypatch):
    model, clip, vae = shapes
    reports = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *report, node_id=None: reports.append(report))
    options = dict(
        latents=latents(1), init_word="car", captions={"captions": "own lines", "lines": "a {} on white"}, batch=1
    )
    learned, _ = train(run_node, model, clip, steps=5, preview_every=2, vae=vae, **options)
    shown = [(value, preview) for value, _, preview in reports if preview is not None]
    assert [value for value, _ in shown] == [2, 4, 5]
    kind, picture, size = shown[0][1]
    assert kind == "JPEG" and picture.size == (64, 64) and size >= 64 and np.asarray(picture).std() > 5
    assert reports[-1][:2] == (5, 5)
    reports.clear()
    without, _ = train(run_node, model, clip, steps=5, preview_every=0, vae=vae, **options)
    assert all(preview is None for *_, preview in reports)
    assert same(learned, without)


def interrupt_at(step: int, monkeypatch):
    """Presses ComfyUI's interrupt button when the progress bar shows this step."""

    def press(value, total, preview, node_id=None):
        if value == step:
            comfy.model_management.interrupt_current_processing(True)

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", press)


def test_an_interrupt_keeps_what_is_learned(model, clip, run_node, output, monkeypatch):
    interrupt_at(1, monkeypatch)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(run_node, model, clip, steps=50, seed=3)
    (path,) = (output / "xti").iterdir()
    assert re.fullmatch(r"interrupted_\d+_\.safetensors", path.name)
    kept = xti.load(path)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", None)
    assert kept.metadata["steps"] == "1" and same(kept, train(run_node, model, clip, steps=1, seed=3)[0])
    assert path.name in xti_files()


@pytest.mark.parametrize("kind", ["memory", "other", "loss"])
def test_every_early_end_keeps_what_is_learned(model, clip, run_node, output, kind):
    """Out of memory, an error in the network, a loss that is no number: in the third step of many."""
    calls = []

    def fail(module, args, out):
        calls.append(1)
        if len(calls) > 2:
            if kind == "memory":
                raise torch.cuda.OutOfMemoryError("no memory left")
            if kind == "other":
                raise RuntimeError("something else")
            return out * torch.nan
        return out

    handle = model.model.diffusion_model.register_forward_hook(fail)
    expected = {"memory": "no memory left", "other": "something else", "loss": "what 2 steps learned is in .*interrupt"}
    options = dict(seed=3, batch=1, latents=latents(3, 16))
    try:
        with pytest.raises(Exception, match=expected[kind]):
            train(run_node, model, clip, steps=50, **options)
    finally:
        handle.remove()
    (path,) = (output / "xti").iterdir()
    kept = xti.load(path)
    assert kept.metadata["steps"] == "2" and same(kept, train(run_node, model, clip, steps=2, **options)[0])
    again, _ = train(run_node, model, clip, steps=1, resume=kept, **options)
    assert same(again, train(run_node, model, clip, steps=3, **options)[0])


def test_memory_that_runs_out_halves_the_pictures_at_once(model, clip, run_node):
    """As if they had been few from the start."""
    rows = []

    def fail(module, args, out):
        rows.append(len(args[0]))
        if len(args[0]) > 2:
            raise torch.cuda.OutOfMemoryError("no memory left")

    handle = model.model.diffusion_model.register_forward_hook(fail)
    options = dict(steps=2, batch=5, latents=latents(3, 16))
    learned, _ = train(run_node, model, clip, pictures_at_once=5, **options)
    handle.remove()
    assert rows == [5, 2, 2, 1, 2, 2, 1]
    assert same(learned, train(run_node, model, clip, pictures_at_once=2, **options)[0])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_latents_that_are_no_numbers_are_named(model, clip, run_node, value):
    with pytest.raises(ValueError, match="latents that it got: they hold NaN or infinite numbers"):
        train(run_node, model, clip, latents={"samples": torch.full((1, 4, 8, 8), value)})


def test_norm_decay_goes_at_most_the_whole_way(model, clip, run_node):
    with pytest.raises(ValueError, match="Norm decay goes at most the whole way"):
        train(run_node, model, clip, regulariser={"regulariser": "norm decay", "weight": 1.5, "target": 0.0})


def test_an_interrupt_before_the_first_step_saves_nothing(model, clip, run_node, output):
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(run_node, model, clip)
    assert not list(output.iterdir())


@pytest.mark.parametrize("ending", ["success", "error", "interrupt"])
def test_the_host_is_left_as_it_was(shapes, run_node, sample, latent, output, monkeypatch, ending):
    model, clip, vae = shapes

    def stock():
        with torch.inference_mode():
            positive, negative = (
                clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a red cube on white", "")
            )
            return positive[0][0], sample(model, positive, negative, latent(1), steps=2)

    def parts():
        modules = [*model.model.modules(), *clip.cond_stage_model.modules()]
        tensors = [t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
        return [(id(t), t.requires_grad, t.grad) for t in tensors], [len(m._forward_pre_hooks) for m in modules]

    before, parts_before, options = stock(), parts(), str(model.model_options)
    given = dict(init_word="car", captions={"captions": "own lines", "lines": "a {} on white"}, batch=1, steps=3)
    if ending == "success":
        train(run_node, model, clip, **given)
    elif ending == "error":
        with pytest.raises(ValueError, match="no longer a finite number at step 1"):
            train(run_node, model, clip, latents={"samples": torch.full((1, 4, 8, 8), 1e30)}, **given)
    else:
        interrupt_at(1, monkeypatch)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            train(run_node, model, clip, **given)
        monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", None)
    assert parts() == parts_before and str(model.model_options) == options
    assert model.model.current_patcher is None and torch.is_grad_enabled()
    assert all(torch.equal(a, b) for a, b in zip(stock(), before, strict=True))


@pytest.mark.parametrize(("regulariser", "pulled"), [
    ({"regulariser": "norm", "weight": 30.0, "target": 0.0}, True),
    ({"regulariser": "norm decay", "weight": 0.5, "target": 0.0}, True),
    ({"regulariser": "density", "weight": 0.01, "bandwidth": 0.0}, True),
    ({"regulariser": "density", "weight": 0.0, "bandwidth": 0.0}, False),
])  # fmt: skip
def test_regularisers_pull_back_to_the_words(model, clip, run_node, regulariser, pulled):
    """The tokens begin twice as long as the word, and the words' norms are what the regularisers know."""
    start, _ = train(run_node, model, clip, steps=1, learning_rate=1e-6)
    far = xti.XTI(start.table, {name: 2 * rows for name, rows in start.layers.items()}, "far", start.encoders)
    norms = []
    for options in (tools.WITHOUT, regulariser):
        learned, _ = train(run_node, model, clip, steps=5, batch=2, learning_rate=0.02, resume=far, regulariser=options)
        norms.append(torch.cat(list(learned.layers.values())).norm(dim=1).mean())
    assert (norms[1] < 0.95 * norms[0]) == pulled
    assert pulled or norms[0] == norms[1]


def test_captions_are_drawn_from_all_lines(model, clip, run_node, monkeypatch):
    lines = {"captions": "own lines", "lines": "a photo of {}\n\n  a {} and a {} \n"}
    both, _ = train(run_node, model, clip, captions=lines, steps=4)
    one, _ = train(run_node, model, clip, captions=CAPTION, steps=4)
    assert not same(both, one)
    for name in ("object", "style"):
        train(run_node, model, clip, captions={"captions": name}, steps=1)
