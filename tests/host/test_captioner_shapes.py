"""The shipped Shapes captioner: a BLIP of transformers that describes fresh pictures exactly, also after the VAE."""

import comfy.model_management
import numpy as np
import pytest
import torch
from caption_tools import encoded, guided

from guidance_lab.shapes.render import render
from guidance_lab.shapes.world import random_scene


@pytest.fixture
def captioner(shapes):
    comfy.model_management.load_models_gpu(list(shapes[6].models))
    return shapes[6]


@pytest.mark.parametrize("through_vae", [False, True])
def test_it_says_exactly_what_is_drawn(shapes, captioner, through_vae):
    rng = np.random.default_rng(21)
    scenes = [random_scene(rng) for _ in range(100)]
    pixels = torch.from_numpy(np.stack([render(scene) for scene in scenes])).float() / 255
    if through_vae:
        with torch.inference_mode():
            pixels = shapes[2].decode(shapes[2].encode(pixels))
        comfy.model_management.load_models_gpu(list(captioner.models))
    captions = captioner.caption(pixels.movedim(-1, 1))
    right = [caption == scene.caption for caption, scene in zip(captions, scenes, strict=True)]
    assert np.mean(right) > 0.9


def test_making_the_node_draws_no_random_number(pack_nodes):
    before = torch.get_rng_state()
    pack_nodes["GuidanceLab_ShapesDemoModels"].PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED().result[6].models  # noqa: B018 (it builds)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_guides(run_node, shapes, sample, latent):
    """A picture that comes out wrong under CFG is described, and the description acts."""
    positive, negative = encoded(shapes[1], "a green star left of a red cube on white"), encoded(shapes[1], "")
    model = guided(
        run_node, shapes, shapes[6], decoder={"decoder": "vae", "vae": shapes[2]}, scale=3.0, start_percent=0.1
    )
    result = sample(model, positive, negative, latent(batch=4), steps=8, cfg=1.0)
    assert torch.isfinite(result).all()
    assert not torch.equal(result, sample(shapes[0], positive, negative, latent(batch=4), steps=8, cfg=1.0))
