"""Weaker Version on real ComfyUI networks: neutral settings, repeats, refusals, in the Model Pair, and as a queued
prompt.
"""

import execution
import nodes as comfy_nodes
import pytest
import tiny_networks
import torch
from run_async import run_async
from weaker_tools import EVERY_METHOD, JOINT, NEUTRAL, NODE, SIGMA, UNETS, predict


@pytest.mark.parametrize("method", NEUTRAL)
@pytest.mark.parametrize("name", ["SD15", "SDXL", "Flux", "SD3"])
def test_neutral_settings_give_the_same_model(networks, weaken, name, method):
    model = networks(name)
    weak = weaken(model, method, **NEUTRAL[method])
    assert not weak.wrappers and not weak.patches and not weak.model_options["transformer_options"]
    assert torch.equal(predict(weak, name), predict(model, name))


def test_neutral_blend_gives_the_same_model(tiny_model, tiny_model_b, weaken, sample, cond, latent):
    weak = weaken(tiny_model, "weight_blend", base_model=tiny_model_b, amount=0.0)
    assert not weak.patches
    assert torch.equal(sample(weak, cond(1), cond(2), latent(1)), sample(tiny_model, cond(1), cond(2), latent(1)))


@pytest.mark.parametrize("method", EVERY_METHOD)
@pytest.mark.parametrize("name", [*UNETS, *JOINT])
def test_effect_repeats_and_leaves_the_model_alone(networks, weaken, name, method):
    model = networks(name)
    stock = predict(model, name)
    weak = weaken(model, method, **EVERY_METHOD[method])
    runs = [predict(weak, name) for _ in range(3)]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])
    assert torch.isfinite(runs[0]).all()
    assert (runs[0] - stock).abs().max() > 1e-3
    assert torch.equal(predict(model, name), stock)
    assert not model.wrappers and not model.model_options["transformer_options"]
    assert weak.model is model.model, "a weakened model must share the weights of the model"


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_in_the_ksampler(networks, weaken, sample, latent, method):
    """Alone, at cfg 4, with a sampler that evaluates twice per step."""
    model = networks("SD15")

    def run(which):
        return sample(
            which, tiny_networks.positive(1), tiny_networks.positive(2), latent(2), steps=2, sampler_name="heun"
        )

    stock = run(model)
    weak = weaken(model, method, **EVERY_METHOD[method])
    first, second = run(weak), run(weak)
    assert torch.equal(first, second)
    assert torch.isfinite(first).all()
    assert not torch.allclose(first, stock, atol=1e-3)
    assert torch.equal(run(model), stock)


def test_patches_already_on_the_model_stay(networks, weaken):
    """A patch put on the model before weakening still acts, and two weakenings add up."""
    model = networks("SD15")
    once = weaken(model, "block_skip", blocks="middle:0")
    twice = weaken(once, "identity_attention", blocks="input:1")
    alone = weaken(model, "identity_attention", blocks="input:1")
    predictions = [predict(each, "SD15") for each in (model, once, twice, alone)]
    assert all(not torch.equal(a, b) for i, a in enumerate(predictions) for b in predictions[:i])


@pytest.mark.parametrize("method", ["stochastic_block_skip", "token_shuffle"])
@pytest.mark.parametrize("name", ["SD15", "Flux"])
def test_random_choices_are_one_for_the_whole_batch(networks, weaken, name, method):
    weak = weaken(networks(name), method, **EVERY_METHOD[method])
    x, positive = tiny_networks.noisy(weak, batch=3), tiny_networks.positive(1, name)
    together = tiny_networks.predict(weak, x, SIGMA, positive)
    alone = torch.cat([tiny_networks.predict(weak, one, SIGMA, positive) for one in x.split(1)])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("method", ["identity_attention", "blurred_queries", "token_shuffle"])
def test_a_block_replacement_of_another_pack_still_runs(networks, weaken, method):
    settings = {**EVERY_METHOD[method], "blocks": "double:1, single:1"}
    replaced = networks("Flux")
    calls = []

    def passing_on(args, extra):
        calls.append(1)
        return extra["original_block"](args)

    replaced.set_model_patch_replace(passing_on, "dit", "double_block", 1)
    replaced.set_model_patch_replace(passing_on, "dit", "single_block", 1)
    assert torch.equal(
        predict(weaken(replaced, method, **settings), "Flux"),
        predict(weaken(networks("Flux"), method, **settings), "Flux"),
    )
    assert len(calls) == 2


def test_skipping_a_stage_leaves_the_count_of_stages_alone(networks, weaken):
    """GLIGEN finds its layers by `transformer_index`."""
    seen = {}

    def counted(which):
        def patch(n, extra):
            seen.setdefault(which, {})[extra["block"], extra["block_index"]] = extra["transformer_index"]
            return n

        return patch

    stock, model = networks("SDXL"), networks("SDXL")
    stock.set_model_attn1_output_patch(counted("stock"))
    model.set_model_attn1_output_patch(counted("weak"))
    predict(stock, "SDXL")
    predict(weaken(model, "block_skip", blocks="input:4"), "SDXL")
    assert {block: index for block, index in seen["stock"].items() if block[0] != ("input", 4)} == seen["weak"]


# --- refusals
# -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["block_skip", "stochastic_block_skip", "identity_attention", "blurred_queries", "token_shuffle"]
)
def test_a_model_without_block_hooks_is_refused(networks, weaken, method):
    with pytest.raises(
        ValueError, match="no checked hook into the blocks of PixArtMS.*higher_sigma, weight_blend or sliding_window"
    ):
        weaken(networks("PixArtAlpha"), method, **EVERY_METHOD[method])


def test_a_model_without_block_hooks_can_be_told_a_higher_sigma(networks, weaken):
    model = networks("PixArtAlpha")
    assert not torch.equal(
        predict(weaken(model, "higher_sigma", sigma_shift=0.3), "PixArtAlpha"), predict(model, "PixArtAlpha")
    )


def test_a_video_unet_is_refused(weaken):
    """Its hooks act on the attention over time as well, which none of the papers damages."""
    temporal = dict(use_temporal_attention=True, extra_ff_mix_layer=True, merge_strategy="learned", merge_factor=0.5)
    video = tiny_networks.build("SD15", config={**tiny_networks.SD15, **temporal})
    with pytest.raises(ValueError, match="no checked hook into the blocks of UNetModel"):
        weaken(video, "token_shuffle", **EVERY_METHOD["token_shuffle"])


@pytest.mark.parametrize("method", ["identity_attention", "blurred_queries"])
@pytest.mark.parametrize("name", ["WAN21_T2V", "LTXV"])
def test_attention_of_unknown_layout_is_refused(networks, weaken, name, method):
    with pytest.raises(ValueError, match="cannot be told apart"):
        weaken(networks(name), method, **EVERY_METHOD[method])


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("SD15", "middle:1", r"no block 'middle:1'.*input:1-2, input:4-5, middle:0, output:0-5"),
        ("SD15", "output:5-3", "no block 'output:5-3'"),
        ("SDXL", "input:1", r"no block 'input:1'.*input:4-5, middle:0, output:0-2"),
        ("SD15", "double:0", "no block 'double:0'"),
        ("Flux", "double:9, single:0", r"no block 'double:9'.*double:0-3, single:0-3"),
        ("Flux", "7,8,9", "cannot read the block '7'"),
    ],
)
def test_unknown_blocks_are_refused_with_the_list(networks, weaken, name, text, message):
    with pytest.raises(ValueError, match=message):
        weaken(networks(name), "block_skip", blocks=text)


def test_blend_of_another_architecture_is_refused(networks, weaken):
    with pytest.raises(
        ValueError, match="not the same architecture.*weights differ in name or shape, first diffusion_model"
    ):
        weaken(networks("SD15"), "weight_blend", base_model=networks("SDXL"), amount=0.5)


def test_unknown_method_gets_a_sentence(networks, run_node):
    """ComfyUI leaves the input out when the saved option does not exist."""
    with pytest.raises(ValueError, match="does not know this method: choose one of block_skip, stochastic_block_skip"):
        run_node(NODE, model=networks("SD15"))


def test_every_option_says_where_it_comes_from(pack_nodes):
    method = next(i for i in pack_nodes[NODE].GET_SCHEMA().inputs if i.id == "method")
    for option in method.options:
        tooltips = " ".join(setting.tooltip or "" for setting in option.inputs)
        assert all(setting.tooltip for setting in option.inputs)
        assert "arXiv" in tooltips or option.key == "block_skip"


# --- in the pair
# --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EVERY_METHOD)
@pytest.mark.parametrize("name", ["SD15", "Flux"])
def test_as_the_guide_of_the_model_pair(networks, weaken, run_node, name, method):
    """D = M + (w - 1)(M - B) with B the weak model's own prediction, on the one module that both share."""
    model = networks(name)
    weak = weaken(model, method, **EVERY_METHOD[method])
    pair = run_node(
        "GuidanceLab_AutoguidanceModelPair",
        model=model,
        guide_model=weak,
        weight=1.7,
        start_percent=0.0,
        end_percent=1.0,
    )[0]
    main, guide = predict(model, name), predict(weak, name)
    assert torch.equal(predict(pair, name), main + (1.7 - 1.0) * (main - guide))
    assert torch.equal(predict(model, name), main)


def test_blend_as_the_guide_of_the_model_pair(weaken, run_node):
    model, base = (tiny_networks.build("SD15", seed) for seed in (1, 2))
    weak = weaken(model, "weight_blend", base_model=base, amount=0.5)
    pair = run_node(
        "GuidanceLab_AutoguidanceModelPair",
        model=model,
        guide_model=weak,
        weight=1.7,
        start_percent=0.0,
        end_percent=1.0,
    )[0]
    main, guide = predict(model, "SD15"), predict(weak, "SD15")
    assert not torch.allclose(main, guide, atol=1e-3)
    assert torch.allclose(predict(pair, "SD15"), main + 0.7 * (main - guide), atol=1e-5)


# --- as a queued prompt
# -------------------------------------------------------------------------------------------------


def queue_errors(pack_nodes, monkeypatch, **inputs) -> str:
    """What ComfyUI answers when the prompt is queued; empty when it is accepted."""
    monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, NODE, pack_nodes[NODE])
    prompt = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "some.safetensors"}},
        "2": {"class_type": NODE, "inputs": {"model": ["1", 0], **inputs}},
    }
    monkeypatch.setattr(comfy_nodes.CheckpointLoaderSimple, "INPUT_TYPES", classmethod(lambda s: {"required": {}}))
    valid, errors, _ = run_async(execution.validate_inputs("prompt", prompt, "2", {}))
    assert valid != bool(errors)
    return " ".join(error["details"] for error in errors)


def test_prompts_are_checked_when_queued(pack_nodes, monkeypatch):
    def errors(**inputs):
        return queue_errors(pack_nodes, monkeypatch, **inputs)

    assert errors(method="block_skip", **{"method.blocks": "default"}) == ""
    assert errors(method="weight_blend", **{"method.base_model": ["1", 0], "method.amount": 0.5}) == ""
    assert errors(method="higher_sigma", **{"method.sigma_shift": 0.1}) == ""
    assert "sigma_shift" in errors(method="higher_sigma")
    assert "method.sigma_shift" in errors(method="higher_sigma", **{"method.sigma_shift": 7.0})
    assert "base_model" in errors(method="weight_blend", **{"method.amount": 0.5})
