"""Per-layer contexts against independent passes of the same network: the right text at the right layer, exactly."""

import pytest
import tiny_networks
import torch
from per_block_tools import attentions, conditioning, contexts_by_hook

from guidance_lab.nodes.layers.cross_attention import LayerPrompts, Stretch, carry, layer_table, read_layer_prompts

SIGMA = 3.0


def contexts(count, tokens=5, width=24, seed=10):
    return [torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(seed + i)) for i in range(count)]


@pytest.fixture
def unet():
    return tiny_networks.build("SD15")


@pytest.fixture
def base():
    return tiny_networks.positive(seed=1)


def per_layer(model, base, texts, choice=None):
    table = layer_table(model)
    choice = range(len(table)) if choice is None else choice
    cond = conditioning(table, base[0][0], texts, choice, **base[0][1])
    return tiny_networks.predict(read_layer_prompts(model), tiny_networks.noisy(model), SIGMA, cond)


def test_one_context_for_all_layers_is_the_plain_prompt(unet, base):
    """The base context is unused then: zeros there change nothing."""
    x = tiny_networks.noisy(unet)
    plain = tiny_networks.predict(unet, x, SIGMA, base)
    assert torch.equal(per_layer(unet, base, [base[0][0]], [0] * 11), plain)
    zeros = [[torch.zeros_like(base[0][0]), base[0][1]]]
    assert torch.equal(per_layer(unet, zeros, [base[0][0]], [0] * 11), plain)


@pytest.mark.parametrize("name", ["SD15", "SDXL"])
def test_each_layer_reads_its_own_context(name):
    model = tiny_networks.build(name)
    base = tiny_networks.positive(seed=1, name=name)
    table = layer_table(model, per_block=True)
    texts = contexts(len(table))
    cond = conditioning(table, base[0][0], texts, range(len(table)), **base[0][1])
    x = tiny_networks.noisy(model)
    ours = tiny_networks.predict(read_layer_prompts(model), x, SIGMA, cond)
    modules = [module for _, module in attentions(model.model.diffusion_model)]
    assert len(modules) == len(table)
    with contexts_by_hook(modules, texts):
        reference = tiny_networks.predict(model, x, SIGMA, base)
    assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()
    # diffusers lists a UNet's modules down, up, middle: by that order most layers get another layer's text.
    naive = [i for i, layer in enumerate(table.layers) if layer.direction != "mid"]
    naive += [i for i, layer in enumerate(table.layers) if layer.direction == "mid"]
    with contexts_by_hook([modules[i] for i in naive], texts):
        wrong = tiny_networks.predict(model, x, SIGMA, base)
    assert (ours - wrong).abs().max() > 1e-3 * reference.abs().max()


def test_every_layer_matters(unet, base):
    plain = tiny_networks.predict(unet, tiny_networks.noisy(unet), SIGMA, base)
    for layer in range(11):
        one = per_layer(unet, base, contexts(1), [0 if i == layer else None for i in range(11)])
        assert not torch.equal(one, plain), layer


def test_a_step_on_a_border_belongs_to_the_earlier_stretch(unet, base):
    """And the noise level decides which stretch it is, not a count of steps."""
    (early, late), table = contexts(2), layer_table(unet)
    whole = LayerPrompts(
        table,
        base[0][0],
        ({"cross_attn": early}, {"cross_attn": late}),
        (Stretch(0.5, (0,) * 11), Stretch(1.0, (1,) * 11)),
    )
    cond = [carry(base[0], whole)]
    border = float(unet.model.model_sampling.percent_to_sigma(0.5))
    x = tiny_networks.noisy(unet)
    for sigma, context in ((border * 1.01, early), (border, early), (border * 0.99, late), (border * 0.1, late)):
        expected = tiny_networks.predict(unet, x, sigma, [[context, base[0][1]]])
        assert torch.equal(tiny_networks.predict(read_layer_prompts(unet), x, sigma, cond), expected), sigma
