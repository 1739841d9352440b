"""Weaker Version's block methods on transformers in which ComfyUI can replace blocks, each against the same network
with these blocks taken out by hand.
"""

import contextlib
from operator import attrgetter

import pytest
import tiny_transformers
import torch
from tiny_transformers import TRANSFORMERS

from guidance_lab.guidance import weaker
from guidance_lab.nodes.autoguidance import perturb
from guidance_lab.nodes.autoguidance.weaker_methods import token_shuffle
from guidance_lab.nodes.host.blocks import dit_layout, list_blocks


def far(a, b):
    return ((a - b).norm() / b.norm()).item()


IMAGE_AND_TEXT = ("AsymmDiTJoint", "Hunyuan3Dv2", "JoyImageTransformer3DModel")
TEXT_AND_IMAGE = ("MageFlowTransformer2DModel", "LensTransformer2DModel")


@contextlib.contextmanager
def taken_out(modules, name):
    """The network whose given blocks give out what they are given."""

    def forward(*args, **kwargs):
        given = [kwargs[key] for key in ("hidden_states", "img", "x", "vid") if key in kwargs]
        image = given[0] if given else args[0]
        if name == "HiDreamO1Transformer":
            return image, None
        if name == "NaDiT":
            return image, kwargs["txt"], kwargs["vid_shape"], kwargs["txt_shape"]
        if name not in IMAGE_AND_TEXT + TEXT_AND_IMAGE:
            return image
        text = kwargs.get("encoder_hidden_states", kwargs.get("txt"))
        text = args[2] if text is None else text  # AsymmDiTJoint: x, c, y
        return (image, text) if name in IMAGE_AND_TEXT else (text, image)

    for module in modules:
        module.forward = forward
    try:
        yield
    finally:
        for module in modules:
            del module.forward


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_block_skip(name):
    network, call = tiny_transformers.build(name)
    layout, available = dit_layout(network), list_blocks(network)
    chosen = available[1:3]
    whole = tiny_transformers.run(network, call)
    skipped = tiny_transformers.run(network, call, perturb.skip_dit_blocks({}, layout, chosen))
    modules = [attrgetter(layout.groups[group])(network)[index] for group, index in chosen]
    with taken_out(modules, name):
        by_hand = tiny_transformers.run(network, call)
    assert torch.isfinite(whole).all() and far(skipped, whole) > 1e-3
    assert far(skipped, by_hand) < 1e-5
    assert torch.equal(tiny_transformers.run(network, call), whole)


class Holder:
    """What the method asks of a MODEL."""

    def __init__(self, network):
        self.network = network

    def get_model_object(self, _):
        return self.network


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_token_shuffle(name):
    """The update of a block is scrambled; with the tokens left in order it is the block itself. It is refused where
    image tokens are not alone.
    """
    network, call = tiny_transformers.build(name)
    layout, available = dit_layout(network), list_blocks(network)
    if not layout.shuffles:
        with pytest.raises(ValueError, match="cannot be shuffled alone"):
            token_shuffle(Holder(network), "default", 1)
        return

    def shuffled(order):
        return tiny_transformers.run(network, call, perturb.shuffle_dit_tokens({}, layout, available[1:2], order))

    whole = tiny_transformers.run(network, call)
    generator = weaker.step_generator(3, 0.6)
    assert far(shuffled(lambda count, device: torch.arange(count)), whole) < 1e-5
    assert far(shuffled(lambda count, device: weaker.token_order(count, generator, device)), whole) > 1e-4
