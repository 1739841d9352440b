"""Weaker Version, weight_blend: every weight of every architecture, against a network whose weights were averaged."""

import pytest
import tiny_families
import tiny_networks
import torch
from pair_tools import pair
from weaker_tools import predict

WHOLE = ("SD15", "SD3", "Flux", "AuraFlow", "PixArtAlpha", "WAN21_T2V", "LTXV", "ZImage")


def averaged(name, share):
    """The architecture with weights (1 - share) x seed 1 + share x seed 2, written into the module."""
    models = [tiny_families.build(name, seed) for seed in (1, 2)]
    first, second = (model.model.diffusion_model for model in models)
    with torch.inference_mode(False), torch.no_grad():
        pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
        for (_, weight), (_, other) in pairs:
            if weight.is_floating_point():
                weight.lerp_(other, share)
    return models[0]


@pytest.mark.parametrize(
    ("name", "amount"), [*((name, 0.3) for name in tiny_families.FAMILIES), *((name, 1.0) for name in WHOLE)]
)
def test_every_weight_is_blended(weaken, name, amount):
    model, base = (tiny_families.build(name, seed) for seed in (1, 2))
    sigma, text = tiny_families.sigma_at(model, 0.5), tiny_families.text(name, 1)
    x = tiny_families.noisy(name, model, sigma)

    def predicted(model):
        return tiny_networks.predict(model, x, sigma, text)

    before = predicted(model), predicted(base)
    # HiDream-O1 keeps keys of a prompt in the module, with the weights of then, with or without the pack.
    getattr(model.model.diffusion_model, "clear_kv_cache", lambda: None)()
    weak = predicted(weaken(model, "weight_blend", base_model=base, amount=amount))
    getattr(model.model.diffusion_model, "clear_kv_cache", lambda: None)()
    wanted = predicted(averaged(name, amount))
    scale = wanted.abs().max()
    assert (weak - wanted).abs().max() <= 2e-5 * scale
    assert (weak - before[0]).abs().max() > 1e-4 * scale
    assert torch.equal(predicted(model), before[0]) and torch.equal(predicted(base), before[1])


@pytest.mark.parametrize("name", ["WAN21_T2V", "ZImage"])
def test_a_blend_of_a_blend(weaken, name):
    model, base = (tiny_networks.build(name, seed) for seed in (1, 2))
    half = weaken(model, "weight_blend", base_model=base, amount=0.5)
    weak = predict(weaken(half, "weight_blend", base_model=base, amount=0.5), name)
    wanted = predict(averaged(name, 0.75), name)
    assert (weak - wanted).abs().max() <= 2e-5 * wanted.abs().max()


@pytest.mark.parametrize("name", ["WAN21_T2V", "LTXV"])
def test_as_the_guide_of_the_model_pair(weaken, run_node, name):
    model, base = (tiny_networks.build(name, seed) for seed in (1, 2))
    weak = weaken(model, "weight_blend", base_model=base, amount=0.5)
    main, guide = predict(model, name), predict(averaged(name, 0.5), name)
    guided = predict(pair(run_node, model, weak, 1.7), name)
    wanted = main + 0.7 * (main - guide)
    assert (guided - wanted).abs().max() <= 2e-5 * wanted.abs().max()
    assert torch.equal(predict(model, name), main)
