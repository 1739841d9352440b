"""Unusual graphs in pairs: whatever stands beside a model pair, C and B are those of stock runs on separate weights.

Each companion says what it does to the graph, and what stock ComfyUI has to be asked for in its place. Every step of a
sampling is held against stock predictions for exactly its x and sigma.
"""

from dataclasses import dataclass, field, replace
from itertools import combinations

import node_helpers
import pytest
import tiny_networks
import torch
from odd_graph_tools import control_lora, far, hooked, row_by_row, run, tiles, wrapped
from pair_tools import pair, with_lora
from per_block_tools import conditioning
from tiny_networks import positive

from guidance_lab.nodes.layers.cross_attention import layer_table, read_layer_prompts

WEIGHTS = (1.7, 2.2)


@dataclass(frozen=True)
class Graph:
    """What is wired, and (stock_*) what ComfyUI alone is asked for. `guides`: (weight, guide, stock guide)."""

    main: object
    stock_main: object
    guides: list
    text: list
    stock_text: list
    hooks: bool = False
    control: bool = False
    layers: bool = False
    wrapper: object = None
    notes: list = field(default_factory=list)


def stock(seed):
    return tiny_networks.build("SD15", seed)


def plain() -> Graph:
    return Graph(stock(0), stock(0), [(WEIGHTS[0], stock(1), stock(1))], positive(1), positive(1))


def second_pair(graph):
    return replace(graph, guides=[*graph.guides, (WEIGHTS[1], stock(2), stock(2))])


def lora_on_main(graph):
    return replace(graph, main=with_lora(graph.main, 7), stock_main=with_lora(graph.stock_main, 7))


def lora_on_the_guide(graph):
    (weight, guide, separate), *others = graph.guides
    return replace(graph, guides=[(weight, with_lora(guide, 9), with_lora(separate, 9)), *others])


def one_module(graph):
    """The guide is the main network with a LoRA, on one module."""
    (weight, _, _), *others = graph.guides
    return replace(graph, guides=[(weight, with_lora(graph.main, 11), with_lora(stock(0), 11)), *others])


COMPANIONS = {
    "row by row": lambda graph: replace(graph, wrapper=row_by_row),
    "tiles": lambda graph: replace(graph, wrapper=tiles(4, 2)),
    "layer prompts": lambda graph: replace(graph, layers=True),
    "ControlNet": lambda graph: replace(graph, control=True),
    "hooks": lambda graph: replace(graph, hooks=True),
    "second pair": second_pair,
    "LoRA on main": lora_on_main,
    "LoRA on the guide": lora_on_the_guide,
    "one module": one_module,
}
# The wrapper of tiles does not cut what a ControlNet adds, with or without the pack; and LoRA on the guide or on main
# would have to be part of the one module.
APART = [
    {"tiles", "ControlNet"},
    {"row by row", "tiles"},
    {"one module", "LoRA on main"},
    {"one module", "LoRA on the guide"},
]
FRAMES = [(0.0, 1.0), (0.5, 0.0)]


def with_control(text):
    hint = torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode(False):
        control = control_lora(tiny_networks.SD15).set_cond_hint(hint, 0.8, (0.0, 1.0))
    return node_helpers.conditioning_set_values(text, {"control": control})


def wired(graph: Graph, run_node):
    """(MODEL, CONDITIONING) of the graph."""
    model = graph.main if graph.wrapper is None else wrapped(graph.main, graph.wrapper)
    text = positive(3) if graph.layers else graph.text
    if graph.hooks:
        text = hooked(stock(0), FRAMES, 3 if graph.layers else 1)
    if graph.layers:  # every layer reads the other prompt, and the base, which nothing reads, is another again
        table = layer_table(model)
        base = positive(8)[0][0]
        text = conditioning(table, base, [text[0][0]], [0] * len(table), **text[0][1])
        model = read_layer_prompts(model)
    if graph.control:
        text = with_control(text)
    for weight, guide, _ in graph.guides:
        model = pair(run_node, model, guide, weight)
    return model, text


def asked(graph: Graph, x, sigma: float, half: float):
    """C and the combination of eq. 6, from stock predictions."""
    strength = 1.0 if sigma > half else 0.0

    def predicted(model, wrapper):
        if graph.hooks and strength:
            model = with_lora(model)
        text = positive(3) if graph.layers else graph.text
        if graph.control:
            # A ControlNet reads the base prompt, as the node's help says.
            text = with_control(text)
            if graph.layers:
                text = node_helpers.conditioning_set_values(text, {"cross_attn_controlnet": positive(8)[0][0]})
        return tiny_networks.predict(model if wrapper is None else wrapped(model, wrapper), x, sigma, text)

    c = predicted(graph.stock_main, graph.wrapper)
    return c, c + sum((weight - 1) * (c - predicted(separate, None)) for weight, _, separate in graph.guides)


@pytest.mark.parametrize(
    "names", [pair for pair in combinations(COMPANIONS, 2) if set(pair) not in APART], ids=" + ".join
)
def test_in_pairs(run_node, names):
    graph = plain()
    for name in names:
        graph = COMPANIONS[name](graph)
    model, text = wired(graph, run_node)
    _, seen = run(model, text, steps=3)
    half = float(graph.main.get_model_object("model_sampling").percent_to_sigma(0.5))
    assert len(seen) >= 3
    acts = []
    for x, sigma, denoised in seen:
        c, wanted = asked(graph, x, float(sigma), half)
        assert far(denoised, wanted) < 1e-5
        assert (denoised - wanted).norm() < 2e-3 * (wanted - c).norm()
        acts.append(far(c, wanted))
    assert max(acts) > 1e-3
