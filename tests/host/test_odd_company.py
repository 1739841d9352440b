"""A graph with everything at once around a model pair: a batch, two masked regions of which one has a ControlNet
and hooks on a schedule, a LoRA on one side, and context windows over the batch on the other.
"""

import node_helpers
import pytest
import tiny_networks
import torch
from compatibility_tools import core
from odd_graph_tools import control_lora, far, hooked
from pair_tools import pair, with_lora

WEIGHT, ROWS = 1.8, 3


def regions():
    """The left half under one prompt with a ControlNet and a hook, the right half under another."""
    left = torch.zeros(1, 8, 6)
    left[..., :3] = 1
    hint = torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode(False):
        control = control_lora(tiny_networks.SD15).set_cond_hint(hint, 0.8, (0.0, 1.0))
    one = hooked(tiny_networks.build("SD15"), [(0.0, 1.0), (0.5, 0.0)])
    one = node_helpers.conditioning_set_values(one, {"control": control, "mask": left, "mask_strength": 1.0})
    other = tiny_networks.positive(4, tokens=9)
    return one + node_helpers.conditioning_set_values(other, {"mask": 1 - left, "mask_strength": 0.7})


def windows(model):
    """A clone that is evaluated in windows over the rows of the batch, as frames of AnimateDiff are. Rows are on their
    own in this network, so it is the calls that change.
    """
    settings = dict(context_length=2, context_overlap=1, context_schedule="standard_static", fuse_method="flat", dim=0)
    return core("nodes_context_windows", "ContextWindowsManualNode", model, **settings)


SIDES = {
    "LoRA on main, windows on the guide": (lambda model: with_lora(model, 7), windows),
    "windows on main, LoRA on the guide": (windows, lambda model: with_lora(model, 9)),
    "both on main": (lambda model: windows(with_lora(model, 7)), lambda model: model),
    "both on the guide": (lambda model: model, lambda model: windows(with_lora(model, 9))),
}


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("percent", [0.3, 0.7])
def test_everything_at_once(run_node, sides, percent):
    """C and B are those of stock runs of their own, on separate weights, before and after the hook ends."""
    on_main, on_guide = SIDES[sides]
    main, guide, stock, apart = (tiny_networks.build("SD15", seed) for seed in (0, 1, 0, 1))
    sigma = float(main.get_model_object("model_sampling").percent_to_sigma(percent))
    x = sigma * tiny_networks.noisy(main, ROWS)
    c, b = (tiny_networks.predict(model, x, sigma, regions()) for model in (on_main(stock), on_guide(apart)))
    paired = pair(run_node, on_main(main), on_guide(guide), WEIGHT)
    assert far(tiny_networks.predict(paired, x, sigma, regions()), c + (WEIGHT - 1) * (c - b)) < 1e-5
    assert far(b, c) > 1e-2
    assert torch.equal(
        tiny_networks.predict(pair(run_node, on_main(main), on_guide(guide), 1.0), x, sigma, regions()), c
    )
