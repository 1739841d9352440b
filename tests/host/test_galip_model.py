"""A GALIP generator under ComfyUI's memory management. Sizes and weights are tiny and random."""

import comfy.model_management
import pytest
import tiny_galip
import torch

from guidance_lab.galip import load_generator
from guidance_lab.nodes.galip import Galip


@pytest.fixture
def galip() -> Galip:
    return Galip(load_generator(tiny_galip.generator_weights(), sizes=tiny_galip.DIMS.sizes), "tiny")


@pytest.fixture
def inputs(generator):
    return torch.randn(3, tiny_galip.DIMS.nz, generator=generator), torch.randn(
        3, tiny_galip.DIMS.cond_dim, generator=generator
    )


def test_pictures_are_the_clamped_output_of_the_generator(galip, inputs):
    image = galip.draw(*inputs)
    with torch.no_grad():
        raw = galip.generator(*inputs)
    assert raw.abs().max() > 1  # else the clamp is not tested
    assert torch.equal(image, (raw.clamp(-1, 1) + 1).div(2).permute(0, 2, 3, 1))
    assert image.shape == (3, 32, 32, 3)


def test_comfyui_loads_and_unloads_it(galip, inputs):
    galip.draw(*inputs)
    assert galip.patcher in comfy.model_management.loaded_models()
    comfy.model_management.unload_all_models()
    assert galip.patcher not in comfy.model_management.loaded_models()
    first = galip.draw(*inputs)
    assert torch.equal(first, galip.draw(*inputs))


def test_a_broken_picture_is_an_error(galip, inputs):
    galip.generator.to_rgb[1].bias.data[0] = float("inf")
    with pytest.raises(
        ValueError, match="tiny gives pictures that are not finite in torch.float32; load it with precision"
    ):
        galip.draw(*inputs)
