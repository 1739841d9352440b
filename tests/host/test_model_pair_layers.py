"""A conditioning with a prompt per layer: the guide of a pair reads the same layers as the model."""

import pytest
import tiny_networks
import torch
from pair_tools import pair, with_attention_patch
from per_block_tools import conditioning

from guidance_lab.nodes.layers.cross_attention import layer_table, read_layer_prompts

WEIGHT = 1.7
SIGMA = 0.6


class Case:
    """A tiny UNet, a positive of which each layer reads its own text, and the same without them."""

    def __init__(self):
        self.model = tiny_networks.build("SD15")
        table = layer_table(self.model)
        base, *layers = (tiny_networks.positive(seed)[0][0] for seed in range(len(table) + 1))
        self.positive = conditioning(table, base, layers, range(len(table)))
        self.plain = [[base, {}]]


def far(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("order", ["layers first", "layers last"])
@pytest.mark.parametrize("guide_is", ["another", "weaker"])
def test_model_and_guide_read_the_same_layers(run_node, order, guide_is):
    """Reference: each of the two by itself, reading the layer prompts."""
    case = Case()
    x = tiny_networks.noisy(case.model, 1, 16, 16)
    guide = tiny_networks.build("SD15", seed=9) if guide_is == "another" else with_attention_patch(case.model)
    c, b = (tiny_networks.predict(read_layer_prompts(model), x, SIGMA, case.positive) for model in (case.model, guide))
    if order == "layers first":
        model = pair(run_node, read_layer_prompts(case.model), guide, WEIGHT)
    else:
        model = read_layer_prompts(pair(run_node, case.model, guide, WEIGHT))
    guided = tiny_networks.predict(model, x, SIGMA, case.positive)
    assert far(guided, c + (WEIGHT - 1.0) * (c - b)) < 1e-5
    base_only = tiny_networks.predict(guide, x, SIGMA, case.plain)
    assert far(c + (WEIGHT - 1.0) * (c - base_only), guided) > 1e-3


def test_without_layer_prompts_nothing_changes(run_node):
    case = Case()
    x = tiny_networks.noisy(case.model, 1, 16, 16)
    guide = tiny_networks.build("SD15", seed=9)
    plain = tiny_networks.predict(pair(run_node, case.model, guide, WEIGHT), x, SIGMA, case.plain)
    read = pair(run_node, read_layer_prompts(case.model), guide, WEIGHT)
    assert torch.equal(tiny_networks.predict(read, x, SIGMA, case.plain), plain)
