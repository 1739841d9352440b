"""The Shapes GLIDE that comes with the pack: listed by the loader, read as a file would be, and able to draw."""

import comfy.sd
import numpy as np
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from glide_host import encode, sample

from guidance_lab.experiments.evidence.glide import edges
from guidance_lab.experiments.glide.first_world.clip import FirstScorer
from guidance_lab.experiments.glide.first_world.read import judge, read
from guidance_lab.experiments.glide.first_world.render import render
from guidance_lab.experiments.glide.first_world.world import OBJECTS, parse
from guidance_lab.experiments.glide.sampling import edits, to_bytes
from guidance_lab.glide import load, tokenize
from guidance_lab.nodes.glide.run_state import SHIPPED
from guidance_lab.shapes import shipped

LABELS = {name: label for label, name in SHIPPED.items()}


@pytest.fixture
def loaded(run_node):
    return lambda name: run_node("GuidanceLab_GLIDELoader", file=LABELS[name], precision="fp32")


def noise(batch: int, size: int) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def right(scenes: list, pictures: np.ndarray, key: str) -> float:
    return float(np.mean([judge(scene, read(picture))[key] for scene, picture in zip(scenes, pictures, strict=True)]))


def test_all_three_are_listed(pack_nodes):
    options = pack_nodes["GuidanceLab_GLIDELoader"].INPUT_TYPES()["required"]["file"][1]["options"]
    assert options[-3:] == list(SHIPPED)


@pytest.mark.parametrize("name", shipped.GLIDE)
def test_they_are_read_as_the_library_reads_them(name, loaded):
    model, clip, vae = loaded(name)
    assert isinstance(model, ModelPatcher) and isinstance(clip, comfy.sd.CLIP) and isinstance(vae, comfy.sd.VAE)
    library = load(shipped.glide_weights(name), group_channels=shipped.GLIDE_GROUP_CHANNELS)
    xf_proj, xf_out = library.text(*tokenize(["a red ball on white"], library.config.text_ctx))
    ((context, extra),) = encode(clip, "a red ball on white")
    assert torch.allclose(context, xf_out, atol=1e-4) and torch.allclose(extra["pooled_output"], xf_proj, atol=1e-3)
    remade = model.cached_patcher_init[0](*model.cached_patcher_init[1])
    for key, value in remade.model.diffusion_model.state_dict().items():
        assert torch.equal(value, model.model.diffusion_model.state_dict()[key])


def test_base_is_the_inpainting_network_with_nothing_known():
    networks = (
        load(shipped.glide_weights(name), group_channels=shipped.GLIDE_GROUP_CHANNELS) for name in ("base", "inpaint")
    )
    x, t = noise(2, 64), torch.tensor([999, 300])
    base, inpaint = (network(x, t, *tokenize(["a red ball on white", ""], 32)) for network in networks)
    assert torch.allclose(base, inpaint, atol=1e-5) and base.std() > 0.1


def test_a_word_that_shapes_does_not_have_says_nothing(loaded):
    clip = loaded("base")[1]
    dog, cat, car = (encode(clip, f"a {word} on white")[0][0] for word in ("dog", "cat", "car"))
    assert torch.equal(dog, cat) and not torch.equal(dog, car)


def test_the_base_network_draws_what_is_asked_for(loaded):
    scenes = [parse(f"a {colour} {name} on white") for name in OBJECTS for colour in ("red", "green", "blue")]
    model, clip, _ = loaded("base")
    rows = [encode(clip, scene.caption)[0] for scene in scenes]
    positive = [[torch.cat([row[0] for row in rows]), rows[0][1] | {
        "pooled_output": torch.cat([row[1]["pooled_output"] for row in rows])}]]  # fmt: skip
    latent = {"samples": torch.zeros(len(scenes), 3, 64, 64)}
    out, _ = sample(model, positive, encode(clip, ""), latent, noise(len(scenes), 64), "25", 3.0)
    assert right(scenes, to_bytes(out), "object") > 0.5 and right(scenes, to_bytes(out), "background") > 0.5


def test_the_clean_clip_of_the_evidence_knows_these_pictures():
    captions = [f"a {colour} {name} on white" for name in OBJECTS for colour in ("red", "green", "blue")]
    x = torch.from_numpy(np.stack([render(parse(caption)) for caption in captions])).movedim(-1, 1).float() / 255
    scorer = FirstScorer()
    with torch.no_grad():
        images = torch.nn.functional.normalize(scorer.embed_pictures(x), dim=-1)
        texts = torch.nn.functional.normalize(scorer.embed_lines(captions), dim=-1)
    assert ((images @ texts.T).argmax(1) == torch.arange(len(captions))).float().mean() > 0.9


def test_inpainting_keeps_what_is_known_and_draws_the_rest(loaded, run_node):
    model, clip, _ = loaded("inpaint")
    wanted, before, masks = edits(8)
    found = []
    for i, scene in enumerate(wanted):
        positive, negative, latent, _ = run_node(
            "GuidanceLab_GLIDEInpaint", positive=encode(clip, scene.caption), negative=encode(clip, ""),
            image=(before[i : i + 1].movedim(1, -1) + 1) / 2, mask=1 - masks[i], width=64, height=64,
        )  # fmt: skip
        out, _ = sample(model, positive, negative, latent, noise(1, 64), "25", 3.0)
        assert ((out - before[i]) * masks[i]).abs().max() < 0.01
        found.append(right([scene], to_bytes(out), "object"))
    assert np.mean(found) > 0.7


def test_the_upsampler_is_nearer_than_plain_enlargement_where_there_is_detail(loaded, run_node):
    model, clip, _ = loaded("upsample")
    scenes = [parse(caption) for caption in ("a red striped lizard on sand", "a blue dotted house on gray")]
    low, high = (np.stack([render(scene, size=size) for scene in scenes]) for size in (64, 128))
    ours = []
    for scene, picture in zip(scenes, torch.from_numpy(low).float() / 255, strict=True):
        positive, latent = run_node(
            "GuidanceLab_GLIDEUpsample", conditioning=encode(clip, scene.caption), image=picture[None], width=128,
            height=128,
        )  # fmt: skip
        out, _ = sample(model, positive, positive, latent, noise(1, 128), "fast27", 1.0, method="ddim")
        ours.append(to_bytes(out))
    x = torch.from_numpy(low).movedim(-1, 1).float() / 127.5 - 1
    plain = to_bytes(torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear"))
    detail = edges(high)
    error, of_plain = (
        np.abs(made.astype(int) - high)[detail].mean() for made in (np.concatenate(ours), plain)
    )  # fmt: skip
    assert error < of_plain
