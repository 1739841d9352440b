"""The shipped noise-aware CLIP of Shapes, read as GLIDE's files are: it tells things and colours in noise that its
timestep names.
"""

import numpy as np
import pytest
import torch
from caption_tools import encoded

from guidance_lab.experiments.glide.first_world import render as first_render
from guidance_lab.experiments.glide.first_world import world as first_world
from guidance_lab.experiments.glide.first_world.world import OBJECTS
from guidance_lab.experiments.train.noised_clip import noised
from guidance_lab.guidance.glide import cosine_alpha_bars
from guidance_lab.guidance.noised_clip import load
from guidance_lab.nodes.clip_guidance.objectives.noised import SHAPES, SHAPES_128, SHIPPED
from guidance_lab.shapes import render, shipped, world
from guidance_lab.shapes.clip import lengths, tokens
from guidance_lab.shapes.models import LATENT

EDITIONS = {"glide": (first_world, first_render), "shapes": (world, render)}


def pictures(editions, captions: list[str]) -> torch.Tensor:
    world, drawn = editions
    rows = [torch.tensor(drawn.render(world.parse(caption))).permute(2, 0, 1) for caption in captions]
    return torch.stack(rows).float() / 127.5 - 1


@pytest.mark.parametrize("timestep", [0, 300, 600])
@pytest.mark.parametrize("name", EDITIONS)
def test_it_tells_things_in_noise(name, timestep):
    captions = [f"a {colour} {thing} on white" for thing in OBJECTS for colour in ("red", "green", "blue")]
    clip, ids = load(*shipped.noised_clip_files(name)), tokens(captions)
    with torch.no_grad():
        shown = noised(pictures(EDITIONS[name], captions), cosine_alpha_bars()[timestep])
        images = clip.image(shown, torch.full((len(shown),), timestep))
        texts = clip.text(ids, lengths(ids))
    # Chance is one in eighteen.
    assert ((images @ texts.T).argmax(1) == torch.arange(len(captions))).float().mean() > 0.6
    assert np.allclose(images.norm(dim=-1), 1.0, atol=1e-5)


def _node(run_node, text: str, file: str = SHAPES, **inputs):
    files = {"image_encoder": file, "text_encoder": file}
    return run_node("GuidanceLab_ObjectiveNoisedCLIP", **(files | {"text": text, "weight": 1.0} | inputs))[0]


def test_the_node_lists_it_and_reads_it_as_the_library_does(pack_nodes, run_node):
    inputs = pack_nodes["GuidanceLab_ObjectiveNoisedCLIP"].INPUT_TYPES()["required"]
    listed = [name for name, kind in SHIPPED.items() if shipped.has_noised_clip(kind)]
    assert SHAPES in listed
    for name in ("image_encoder", "text_encoder"):
        assert inputs[name][1]["options"][-len(listed) :] == listed
    lines = ["a red ball on white", "a blue cube left of a green star on sand"]
    ((_, scorer),) = _node(run_node, "\n".join(lines), looks_at={"looks_at": "sample"}).parts
    clip, ids = load(*shipped.noised_clip_files("glide")), tokens(lines)
    with torch.no_grad():
        mean = clip.text(ids, lengths(ids)).mean(0, keepdim=True)
        assert torch.allclose(scorer.target, mean / mean.norm(), atol=1e-6)
        picture = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        expected = 100 * (clip.image(picture, torch.tensor([400])) @ scorer.target.T)[0, 0]
        assert abs(scorer._compare(picture, 400) - expected) < 1e-3


@pytest.mark.parametrize("half", ["image_encoder", "text_encoder"])
def test_half_of_it_beside_a_file_is_refused(half, run_node):
    with pytest.raises(ValueError, match="choose it in both lists of Objective: Noised CLIP, or in none") as caught:
        _node(run_node, "a red ball", looks_at={"looks_at": "sample"}, **{half: "clip_image_enc.pt"})
    assert "\n" not in str(caught.value)


def test_it_guides_the_shapes_model_towards_its_text(shapes, run_node, sample, latent):
    aim = _node(
        run_node, "a green star on black", SHAPES_128, looks_at={"looks_at": "estimate", "timestep": 250, "draws": 2}
    )
    positive, negative = encoded(shapes[1], "a red cube on white"), encoded(shapes[1], "")

    def drawn(strength):
        model = run_node(
            "GuidanceLab_CLIPGuidance", model=shapes[0], objective=aim, decoder={"decoder": "vae", "vae": shapes[2]},
            crops=0, strength=strength, start_percent=0.0, end_percent=1.0,
        )[0]  # fmt: skip
        return sample(model, positive, negative, latent(h=LATENT, w=LATENT), steps=6, cfg=1.0)

    def score(samples):
        with torch.no_grad():
            picture = 2 * shapes[2].decode(samples).movedim(-1, 1) - 1
            return clip.image(picture, torch.tensor([0])) @ clip.text(ids, lengths(ids)).T

    clip, ids = load(*shipped.noised_clip_files("shapes")), tokens(["a green star on black"])
    stock = sample(shapes[0], positive, negative, latent(h=LATENT, w=LATENT), steps=6, cfg=1.0)
    assert torch.equal(drawn(0.0), stock)
    towards, away = drawn(0.5), drawn(-0.5)
    assert score(towards) > score(stock) + 0.01 and score(away) < score(stock)
    assert torch.equal(drawn(0.5), towards) and torch.equal(drawn(0.5), towards)
    assert torch.equal(sample(shapes[0], positive, negative, latent(h=LATENT, w=LATENT), steps=6, cfg=1.0), stock)
