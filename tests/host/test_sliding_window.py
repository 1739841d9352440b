"""Weaker Version, sliding_window: the mean of stock predictions of the windows, on pictures and videos."""

import comfy.cldm.cldm
import comfy.controlnet
import comfy.ops
import node_helpers
import pytest
import tiny_networks
import torch
from tiny_networks import positive
from weaker_tools import SIGMA

from guidance_lab.guidance.windows import crop, windows

SETTINGS = dict(window=0.5, overlap=0.5)
BOXES = windows(32, 24, **{"share": 0.5, "overlap": 0.5})


def by_hand(x, predict):
    """The mean of predict(crop of x) over the boxes."""
    total, count = torch.zeros_like(x), torch.zeros(x.shape[-2:])
    for box in BOXES:
        crop(total, box).add_(predict(box))
        crop(count, box).add_(1)
    return total / count


def given(name, box=None, **more):
    return node_helpers.conditioning_set_values(positive(1, name), more) if more else positive(1, name)


@pytest.mark.parametrize("name", ["SD15", "SDXL", "Flux", "AuraFlow", "QwenImage", "WAN21_T2V"])
def test_the_mean_of_the_windows(networks, weaken, name):
    model, calls = networks(name), []
    counting = model.model.diffusion_model.register_forward_pre_hook(lambda *_: calls.append(1))
    x = tiny_networks.noisy(model, 2, 32, 24)
    weak = tiny_networks.predict(weaken(model, "sliding_window", **SETTINGS), x, SIGMA, sized(name))
    counting.remove()
    assert len(BOXES) == len(calls) == 6
    whole = tiny_networks.predict(model, x, SIGMA, sized(name))
    parts = by_hand(x, lambda box: tiny_networks.predict(model, crop(x, box), SIGMA, sized(name)))
    assert torch.allclose(weak, parts, atol=2e-5)
    assert not torch.allclose(weak, whole, atol=1e-3)


def sized(name):
    """SDXL is told the size of the whole picture, also for a window."""
    return given(name, width=192, height=256) if name == "SDXL" else given(name)


@pytest.mark.parametrize("settings", [dict(window=1.0, overlap=0.5), dict(window=0.9, overlap=0.0)])
def test_one_window_over_all_is_the_model(networks, weaken, settings):
    model = networks("SD15")
    x = tiny_networks.noisy(model, 1, 8, 8)
    weak = weaken(model, "sliding_window", **settings)
    assert torch.equal(*(tiny_networks.predict(m, x, SIGMA, positive(1)) for m in (weak, model)))


def test_what_belongs_to_a_place_is_cropped(weaken):
    """An inpainting model gets mask and picture concatenated to its input."""
    config = {**tiny_networks.SD15, "in_channels": 9}
    model = tiny_networks.build("SD15", 3, config)
    model.model.concat_keys = ("mask", "masked_image")
    generator = torch.Generator().manual_seed(5)
    picture, mask = torch.randn(1, 4, 32, 24, generator=generator), torch.ones(1, 1, 32, 24)
    mask[..., :10, 5:] = 0

    def conditioning(box=(0, 0, 32, 24)):
        return given("SD15", concat_latent_image=crop(picture, box), concat_mask=crop(mask, box))

    x = tiny_networks.noisy(model, 1, 32, 24)
    weak = tiny_networks.predict(weaken(model, "sliding_window", **SETTINGS), x, SIGMA, conditioning())
    parts = by_hand(x, lambda box: tiny_networks.predict(model, crop(x, box), SIGMA, conditioning(box)))
    assert torch.allclose(weak, parts, atol=2e-5)


class Recorded(comfy.controlnet.ControlBase):
    """A ControlNet that adds given numbers to layers of the network, or a box of them."""

    def __init__(self, layers, box=None):
        super().__init__()
        self.layers, self.box = layers, box

    def get_control(self, x, t, cond, batched_number, options):
        def part(value):
            if value is None or self.box is None:
                return value
            scale = 32 // value.shape[-2]
            return crop(value, tuple(n // scale for n in self.box))

        return {name: [part(value) for value in values] for name, values in self.layers.items()}

    def copy(self):
        return Recorded(self.layers, self.box)


def test_what_a_controlnet_adds_is_cropped(networks, weaken):
    model = networks("SD15")
    generator = torch.Generator().manual_seed(6)
    layers = {
        "middle": [torch.randn(1, 64, 16, 12, generator=generator)],
        "output": [torch.randn(1, 32, 32, 24, generator=generator), None],
    }

    def conditioning(box=None):
        return given("SD15", control=Recorded(layers, box))

    x = tiny_networks.noisy(model, 1, 32, 24)
    weak = tiny_networks.predict(weaken(model, "sliding_window", **SETTINGS), x, SIGMA, conditioning())
    parts = by_hand(x, lambda box: tiny_networks.predict(model, crop(x, box), SIGMA, conditioning(box)))
    assert torch.allclose(weak, parts, atol=2e-5)
    assert not torch.allclose(
        weak, tiny_networks.predict(weaken(model, "sliding_window", **SETTINGS), x, SIGMA, given("SD15")), atol=1e-3
    )


def test_a_latent_without_height_and_width_is_refused(networks, weaken):
    model = weaken(networks("SD15"), "sliding_window", **SETTINGS)
    with pytest.raises(ValueError, match="no height and width"):
        tiny_networks.predict(model, torch.zeros(1, 4, 16), SIGMA, positive(1))


def test_as_the_guide_of_the_model_pair(networks, weaken, run_node):
    model = networks("SD15")
    weak = weaken(model, "sliding_window", **SETTINGS)
    x = tiny_networks.noisy(model, 1, 32, 24)
    pair = run_node("GuidanceLab_AutoguidanceModelPair", model=model, guide_model=weak, weight=3.0)[0]
    main, guide = (tiny_networks.predict(m, x, SIGMA, positive(1)) for m in (model, weak))
    assert torch.allclose(tiny_networks.predict(pair, x, SIGMA, positive(1)), main + 2.0 * (main - guide), atol=1e-5)


def test_settings_out_of_range(networks, weaken):
    with pytest.raises(ValueError, match="window share"):
        weaken(networks("SD15"), "sliding_window", window=0.0, overlap=0.5)
