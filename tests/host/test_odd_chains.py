"""Whole chains of guidances in one graph, each evaluation against stock predictions on separate weights: a pair and a
caption guidance on one MODEL in both orders, hooks with keyframes, a ControlNet on the guide alone, tiles, EasyCache.
"""

import node_helpers
import pytest
import tiny_networks
import torch
from caption_tools import SAYS, ChosenWords
from caption_tools import guided as with_captions
from compatibility_tools import RandomTexts
from odd_graph_tools import control_lora, far, hooked, row_by_row, run, tiles, wrapped
from pair_tools import pair, with_lora
from tiny_networks import positive

WEIGHT, SCALE = 1.7, 0.8


def stock(seed):
    return tiny_networks.build("SD15", seed)


def with_control(text, seed=5):
    hint = torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode(False):
        control = control_lora(tiny_networks.SD15).set_cond_hint(hint, 0.8, (0.0, 1.0))
    return node_helpers.conditioning_set_values(text, {"control": control})


@pytest.mark.parametrize("order", ["pair first", "captions first"])
@pytest.mark.parametrize("wrapper", [None, "row by row", "tiles"])
@pytest.mark.parametrize("lora", ["main", "guide", "guide of one module"])
def test_a_pair_and_captions_on_one_model(run_node, order, wrapper, lora):
    """D = C + (w - 1)(C - B) - s (P - C), P under the caption: none of the two sees what the other adds."""
    main, apart = stock(0), stock(0)
    guide, guide_apart = (with_lora(main, 9), with_lora(stock(0), 9)) if "one module" in lora else (stock(1), stock(1))
    if lora == "main":
        main, apart = with_lora(main, 7), with_lora(apart, 7)
    if lora == "guide":
        guide, guide_apart = with_lora(guide, 9), with_lora(guide_apart, 9)
    if wrapper is not None:
        function = row_by_row if wrapper == "row by row" else tiles(4, 2)
        main, apart = wrapped(main, function), wrapped(apart, function)
    clip = RandomTexts(positive)

    def captions(model):
        return with_captions(run_node, (model, clip), ChosenWords(SAYS), scale=SCALE)

    def guided(model):
        return pair(run_node, model, guide, WEIGHT)

    model = captions(guided(main)) if order == "pair first" else guided(captions(main))
    _, seen = run(model, positive(1), steps=4)
    caption = clip.encode_from_tokens_scheduled(SAYS)
    for step, (x, sigma, denoised) in enumerate(seen):
        c, p = (tiny_networks.predict(apart, x, float(sigma), text) for text in (positive(1), caption))
        b = tiny_networks.predict(guide_apart, x, float(sigma), positive(1))
        wanted = c + (WEIGHT - 1) * (c - b) - (SCALE * (p - c) if step else 0)
        assert far(denoised, wanted) < 1e-5
        assert (denoised - wanted).norm() < 2e-3 * (wanted - c).norm()


@pytest.mark.parametrize("one_module", [False, True])
def test_a_controlnet_and_hooks_on_the_guide_alone(run_node, one_module):
    """The guide's own positive has a ControlNet and a LoRA that ends half-way; the model's has the same LoRA from
    half-way on, and a LoRA on its MODEL.
    """
    main = stock(0)
    guide = main if one_module else stock(1)
    after, before = [(0.0, 0.0), (0.5, 1.0)], [(0.0, 1.0), (0.5, 0.0)]
    of_guide = with_control(hooked(stock(0), before, 3))
    model = pair(run_node, with_lora(main, 7), guide, WEIGHT, guide_positive=of_guide)
    _, seen = run(model, hooked(stock(0), after, 1), steps=4)
    half = float(main.get_model_object("model_sampling").percent_to_sigma(0.5))
    sides = set()
    for x, sigma, denoised in seen:
        late = float(sigma) <= half
        sides.add(late)
        c_model, b_model = with_lora(stock(0), 7), stock(0 if one_module else 1)
        c_model, b_model = (with_lora(c_model), b_model) if late else (c_model, with_lora(b_model))
        c = tiny_networks.predict(c_model, x, float(sigma), positive(1))
        b = tiny_networks.predict(b_model, x, float(sigma), with_control(positive(3)))
        assert far(denoised, c + (WEIGHT - 1) * (c - b)) < 1e-5
    assert sides == {False, True}
