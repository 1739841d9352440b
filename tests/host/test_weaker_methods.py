"""Weaker Version, block skip, higher sigma and blended weights, each against its own definition on real ComfyUI
networks.
"""

import contextlib

import pytest
import tiny_networks
import torch
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from weaker_tools import SIGMA, UNETS, hooked, predict, stages

from guidance_lab.guidance import weaker

# --- block skip
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNETS)
def test_unet_block_skip_is_the_stage_without_its_residual(networks, weaken, name):
    model = networks(name)
    weak = predict(weaken(model, "block_skip", blocks="input:4, middle:0, output:1-2"), name)
    chosen = stages(model, ("input", 4), ("middle", 0), ("output", 1), ("output", 2))
    with hooked(chosen, lambda stage: stage.register_forward_hook(lambda module, args, output: args[0])):
        assert torch.equal(weak, predict(model, name))


@contextlib.contextmanager
def without(network, shortened):
    """The network without some of its blocks: `shortened` is attribute → indices of the blocks that are taken out."""
    whole = {attribute: getattr(network, attribute) for attribute in shortened}
    try:
        for attribute, indices in shortened.items():
            setattr(
                network,
                attribute,
                torch.nn.ModuleList(block for i, block in enumerate(whole[attribute]) if i not in indices),
            )
        yield
    finally:
        for attribute, blocks in whole.items():
            setattr(network, attribute, blocks)


@pytest.mark.parametrize(
    "name, blocks, shortened",
    [
        ("Flux", "double:1-2, single:0", {"double_blocks": (1, 2), "single_blocks": (0,)}),
        ("SD3", "double:0, double:2", {"joint_blocks": (0, 2)}),
        ("AuraFlow", "double:1", {"double_layers": (1,)}),
        ("QwenImage", "double:1", {"transformer_blocks": (1,)}),
        ("WAN21_T2V", "double:0-1", {"blocks": (0, 1)}),
        ("HunyuanVideo", "double:1, single:3", {"double_blocks": (1,), "single_blocks": (3,)}),
        ("LTXV", "double:2", {"transformer_blocks": (2,)}),
    ],
)
def test_dit_block_skip_is_the_network_without_those_blocks(networks, weaken, name, blocks, shortened):
    model = networks(name)
    stock, weak = predict(model, name), predict(weaken(model, "block_skip", blocks=blocks), name)
    with without(model.model.diffusion_model, shortened):
        assert torch.equal(weak, predict(model, name))
    assert not torch.equal(weak, stock)


def test_chroma_block_skip_is_chromas_own_skip_list(networks, weaken, monkeypatch):
    model = networks("Chroma")
    weak = predict(weaken(model, "block_skip", blocks="double:1, single:0"), "Chroma")
    monkeypatch.setattr(model.model.diffusion_model, "skip_mmdit", [1])
    monkeypatch.setattr(model.model.diffusion_model, "skip_dit", [0])
    assert torch.equal(weak, predict(model, "Chroma"))


@pytest.mark.parametrize("name", ["SD15", "Flux"])
def test_stochastic_skip_is_drawn_by_seed_and_sigma(networks, weaken, name):
    model = networks(name)
    chosen = {"SD15": "input:1-2, input:4-5, middle:0, output:0-5", "Flux": "double:0-3, single:0-3"}[name]
    available = [tuple(part.split(":")) for part in chosen.replace(" ", "").split(",")]
    names = [(g, i) for g, r in available for i in range(int(r.split("-")[0]), int(r.split("-")[-1]) + 1)]

    def expected(seed, sigma):
        drawn = weaker.choose_blocks(names[1:-1], 0.3, weaker.step_generator(seed, sigma))
        text = ", ".join(f"{group}:{index}" for group, index in drawn)
        return predict(weaken(model, "block_skip", blocks=text), name, sigma)

    weak = weaken(model, "stochastic_block_skip", drop_fraction=0.3, seed=7)
    other = weaken(model, "stochastic_block_skip", drop_fraction=0.3, seed=8)
    for sigma in (0.9, 0.5, 0.9, 0.2):
        assert torch.equal(predict(weak, name, sigma), expected(7, sigma))
        assert torch.equal(predict(other, name, sigma), expected(8, sigma))
    sigmas = [step / 20 for step in range(1, 20)]
    assert any(not torch.equal(predict(weak, name, sigma), predict(other, name, sigma)) for sigma in sigmas)


# --- higher sigma
# -------------------------------------------------------------------------------------------------------


def network_output(model, x_in, t, name):
    """The bare network, without any of ComfyUI's scaling or conversion."""
    context, options = tiny_networks.positive(1, name)[0]
    context = context.expand(x_in.shape[0], -1, -1)
    extra = {"y": options["pooled_output"].expand(x_in.shape[0], -1)} if name in ("Flux", "SD3") else {}
    if name == "Flux":
        extra["guidance"] = torch.tensor([3.5])
    with torch.inference_mode():
        return model.model.diffusion_model(x_in, t, context=context, transformer_options={}, **extra)


@pytest.mark.parametrize("sigma", [0.05, 1.0, 10.0])
@pytest.mark.parametrize("prediction", ["eps", "v_prediction"])
def test_higher_sigma_shifts_only_the_timestep_eps_and_v(networks, weaken, sigma, prediction):
    model = ModelSamplingDiscrete().patch(networks("SD15"), prediction, False)[0]
    weak = predict(weaken(model, "higher_sigma", sigma_shift=0.2), "SD15", sigma)
    x = tiny_networks.noisy(model)
    shifted = model.get_model_object("model_sampling").timestep(torch.tensor([sigma * 1.2] * 2)).float()
    out = network_output(model, x / (sigma**2 + 1) ** 0.5, shifted, "SD15")
    x0 = x - sigma * out if prediction == "eps" else x / (sigma**2 + 1) - out * sigma / (sigma**2 + 1) ** 0.5
    assert torch.allclose(weak, x0, atol=2e-5 * max(1.0, sigma))
    assert (weak - predict(model, "SD15", sigma)).abs().max() > 1e-3 * sigma


@pytest.mark.parametrize("name", ["Flux", "SD3"])
def test_higher_sigma_shifts_only_the_timestep_flow(networks, weaken, name):
    model = networks(name)
    weak = predict(weaken(model, "higher_sigma", sigma_shift=0.1), name)
    x = tiny_networks.noisy(model)
    timestep = model.get_model_object("model_sampling").timestep(torch.tensor([SIGMA * 1.1] * 2))
    x0 = x - SIGMA * network_output(model, x, timestep, name)
    assert torch.allclose(weak, x0, atol=2e-5)
    assert (weak - predict(model, name)).abs().max() > 1e-3


def test_higher_sigma_stops_at_the_highest_one(networks, weaken):
    """At sigma_max there is no higher noise level that the network knows: the prediction is the model's own, bit for
    bit.
    """
    model = networks("Flux")
    weak = weaken(model, "higher_sigma", sigma_shift=0.5)
    assert torch.equal(predict(weak, "Flux", 1.0), predict(model, "Flux", 1.0))
    assert not torch.equal(predict(weak, "Flux", 0.99), predict(model, "Flux", 0.99))


# --- weights
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [0.25, 1.0])
def test_blend_is_the_merged_checkpoint(weaken, amount):
    model, base, merged = (tiny_networks.build("SD15", seed) for seed in (1, 2, 3))
    with torch.no_grad():
        for target, a, b in zip(*(m.model.diffusion_model.parameters() for m in (merged, model, base)), strict=True):
            target.copy_((1 - amount) * a + amount * b)
    stock, stock_base = predict(model, "SD15"), predict(base, "SD15")
    weak = weaken(model, "weight_blend", base_model=base, amount=amount)
    assert torch.allclose(predict(weak, "SD15"), predict(merged, "SD15"), atol=1e-5)
    assert torch.equal(predict(model, "SD15"), stock)
    assert torch.equal(predict(base, "SD15"), stock_base)
    if amount == 1.0:
        assert torch.allclose(predict(weak, "SD15"), stock_base, atol=1e-5)


def test_blend_keeps_a_lora_on_the_base_and_on_the_model(weaken):
    """Patches of either side take part: θ_B = (1 − a)·(θ_M + ΔM) + a·(θ_base + Δbase)."""
    model, base, merged = (tiny_networks.build("SD15", seed) for seed in (1, 2, 3))
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    shape = model.model_state_dict()[key].shape
    on_model, on_base = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (4, 5))
    with torch.no_grad():
        for target, a, b in zip(*(m.model.diffusion_model.parameters() for m in (merged, model, base)), strict=True):
            target.copy_(0.5 * a + 0.5 * b)
        merged.model_state_dict()[key].add_(0.5 * on_model + 0.5 * on_base)
    model.add_patches({key: ("diff", (on_model,))})
    base.add_patches({key: ("diff", (on_base,))})
    weak = weaken(model, "weight_blend", base_model=base, amount=0.5)
    assert torch.allclose(predict(weak, "SD15"), predict(merged, "SD15"), atol=1e-5)
