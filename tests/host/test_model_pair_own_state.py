"""The guide has its own of what a model cannot share: ControlNets, hook keyframes, step caches, video caches.

Reference everywhere: C and B from two separate runs of the stock guider, each with things of its own.
"""

import copy
import logging

import comfy.cldm.cldm
import comfy.cldm.dit_embedder
import comfy.controlnet
import comfy.hooks
import comfy.k_diffusion.sampling
import comfy.ldm.qwen_image.controlnet
import comfy.model_base
import comfy.ops
import comfy.samplers
import node_helpers
import pytest
import tiny_networks
import torch
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from odd_graph_tools import control_lora, far, hooked, noise, run
from pair_tools import CallCounter, pair, with_lora
from tiny_networks import filled, positive

from guidance_lab.guidance.windows import crop, mean_of_windows, windows

SIGMA = 0.6
WEIGHT = 1.7


def expected(main, guide, conditioning, guide_conditioning, x):
    c = tiny_networks.predict(main, x, SIGMA, conditioning)
    b = tiny_networks.predict(guide, x, SIGMA, guide_conditioning)
    return c, c + (WEIGHT - 1.0) * (c - b)


# --- ControlNets


def sd35_control(_):
    network = comfy.cldm.dit_embedder.ControlNetEmbedder(
        img_size=None, patch_size=2, in_chans=16, attention_head_dim=64, num_attention_heads=2, adm_in_channels=8,
        num_layers=2, main_model_double=2, double_y_emb=False, device="cpu", dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    return comfy.controlnet.ControlNetSD35(filled(network, 4), compression_ratio=1, load_device=torch.device("cpu"))


def qwen_control(_):
    network = comfy.ldm.qwen_image.controlnet.QwenImageFunControlNetModel(
        control_in_features=132, inner_dim=64, num_attention_heads=4, attention_head_dim=16, num_control_blocks=2,
        main_model_double=4, injection_layers=(0, 2), dtype=torch.float32, device="cpu",
        operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    return comfy.controlnet.QwenFunControlNet(filled(network, 4), compression_ratio=1, load_device=torch.device("cpu"))


CONTROLS = {
    "SD15": (control_lora, (1, 3, 64, 48)),
    "SD3": (sd35_control, (1, 16, 8, 6)),
    "QwenImage": (qwen_control, (1, 16, 8, 6)),
}


@pytest.fixture(params=CONTROLS)
def controlled(request):
    """(main, guide, a function that gives the positive with a ControlNet of its own)"""
    name = request.param
    make, size = CONTROLS[name]
    with torch.inference_mode(False):
        models = [tiny_networks.build(name, seed) for seed in (1, 2)]
    hint = torch.rand(size, generator=torch.Generator().manual_seed(5))

    def given(link=False):
        with torch.inference_mode(False):
            control = make(tiny_networks.CONFIGS[name]).set_cond_hint(hint, 0.8, (0.0, 1.0))
        if link:
            control.set_previous_controlnet(given()[0][1]["control"])
        return node_helpers.conditioning_set_values(positive(1, name), {"control": control})

    return *models, given, name


@pytest.mark.parametrize("link", [False, True])
def test_a_controlnet_that_takes_weights_of_its_model(controlled, run_node, link):
    main, guide, given, name = controlled
    x = noise(main)
    c, wanted = expected(main, guide, given(link), given(link), x)
    assert far(c, tiny_networks.predict(main, x, SIGMA, positive(1, name))) > 1e-3  # the ControlNet acts
    conditioning = given(link)
    assert far(tiny_networks.predict(pair(run_node, main, guide, WEIGHT), x, SIGMA, conditioning), wanted) < 1e-6
    # An empty window leaves the model alone, with the same ControlNet, and so does the run after it.
    window = dict(start_percent=1.0, end_percent=1.0)
    off = pair(run_node, main, guide, WEIGHT, **window)
    assert torch.equal(tiny_networks.predict(off, x, SIGMA, conditioning), c)
    assert torch.equal(tiny_networks.predict(main, x, SIGMA, conditioning), c)


def test_a_hint_is_encoded_once_for_both_models(run_node):
    """The VAE of a ControlNet on latents is loaded in the middle of sampling, so a second time would cost."""
    main, guide = (tiny_networks.build("SD3", seed) for seed in (1, 2))
    encoded = []

    class VAE:
        def spacial_compression_encode(self):
            return 8

        def encode(self, pixels):
            encoded.append(pixels.shape)
            return torch.ones(1, 16, 8, 6)

    with torch.inference_mode(False):
        control = sd35_control(None).set_cond_hint(torch.rand(1, 3, 64, 48), 0.8, (0.0, 1.0))
    control.vae = VAE()
    conditioning = node_helpers.conditioning_set_values(positive(1, "SD3"), {"control": control})
    tiny_networks.predict(pair(run_node, main, guide, WEIGHT), noise(main), SIGMA, conditioning)
    assert len(encoded) == 1


# --- LoRA hooks with keyframes


@pytest.mark.parametrize("one_module", [False, True])
def test_hook_keyframes_reach_the_guide(networks, run_node, one_module):
    """Strength 1 for half the way, then 0: equal to the guide with that LoRA, then without."""
    main = networks("SD15")
    guide = with_lora(main, 9) if one_module else tiny_networks.build("SD15", 2)
    frames = [(0.0, 1.0), (0.5, 0.0)]
    _, seen = run(pair(run_node, main, guide, WEIGHT), hooked(main, frames), steps=6)
    half = float(main.get_model_object("model_sampling").percent_to_sigma(0.5))
    assert {float(sigma) > half for _, sigma, _ in seen} == {True, False}
    for x, sigma, denoised in seen:
        strength = 1.0 if float(sigma) > half else 0.0
        c, b = (
            tiny_networks.predict(
                with_lora(model, strength=strength) if strength else model, x, float(sigma), positive(1)
            )
            for model in (main, guide)
        )
        assert far(denoised, c + (WEIGHT - 1.0) * (c - b)) < 1e-5


# --- EasyCache


def test_easycache_on_the_guide_skips_steps_and_keeps_nothing(networks, run_node):
    main = networks("SD15")
    cached = EasyCacheNode.execute(tiny_networks.build("SD15", 2), 3.0, 0.0, 1.0, False)[0]
    holder = cached.model_options["transformer_options"]["easycache"]
    calls = []
    cached.model.diffusion_model.out.register_forward_pre_hook(lambda *_: calls.append(1))
    model = pair(run_node, main, cached, WEIGHT)
    results = [run(model, positive(1), steps=8)[0] for _ in range(2)]
    assert torch.equal(*results)
    assert 2 <= len(calls) < 2 * 8  # the guide's own network ran in some steps of each run only
    assert holder.uuid_cache_diffs == {} and holder.x_prev_subsampled is None


def replayed(model, seen, part=lambda x: x):
    """The stock predictions of one sampling of the MODEL at each x and sigma that another sampling has seen."""
    predictions = []

    def sampler(wrapped, noise, sigmas, extra_args, callback, disable):
        predictions.extend(wrapped(part(x), sigma, **extra_args) for x, sigma, _ in seen)
        return predictions[-1]

    sigmas = torch.tensor([*(float(sigma) for _, sigma, _ in seen), 0.0])
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive(1), positive(1))
    guider.set_cfg(1.0)
    with torch.inference_mode():
        zeros = torch.zeros_like(part(seen[0][0]))
        guider.sample(zeros, zeros, comfy.samplers.KSAMPLER(sampler), sigmas, disable_pbar=True)
    return predictions


def easycached(model, threshold=3.0):
    return EasyCacheNode.execute(model, threshold, 0.0, 1.0, False)[0]


@pytest.mark.parametrize("on_main", [False, True])
def test_easycache_on_the_guide_is_that_of_its_own_sampling(networks, run_node, on_main):
    """Also where the main model has another one."""
    main = networks("SD15")
    main = easycached(main, 0.3) if on_main else main
    guide, apart = (easycached(tiny_networks.build("SD15", 2)) for _ in range(2))
    _, seen = run(pair(run_node, main, guide, WEIGHT), positive(1), steps=8)
    reference = easycached(tiny_networks.build("SD15"), 0.3) if on_main else main
    for (*_, denoised), c, b in zip(seen, replayed(reference, seen), replayed(apart, seen), strict=True):
        assert far(denoised, c + (WEIGHT - 1.0) * (c - b)) < 1e-5
    whole = replayed(tiny_networks.build("SD15", 2), seen)
    assert far(replayed(apart, seen)[-1], whole[-1]) > 1e-3  # it has skipped


def test_lazycache_on_the_guide_does_nothing_and_is_said(networks, run_node, caplog):
    main, guide = networks("SD15"), tiny_networks.build("SD15", 2)
    results = []
    for each in (guide, LazyCacheNode.execute(guide, 3.0, 0.0, 1.0, False)[0]):
        with caplog.at_level(logging.WARNING):
            results.append(run(pair(run_node, main, each, WEIGHT), positive(1), steps=6)[0])
        assert ("LazyCache" in caplog.text) == (each is not guide)
    assert torch.equal(*results)


def test_easycache_keeps_each_window_apart(networks, run_node, weaken):
    """All windows skip a step together; here every step that can be."""
    always = 1e6
    main, sides = networks("SD15"), dict(height=32, width=24)
    guide = weaken(easycached(tiny_networks.build("SD15", 2), always), "sliding_window", window=0.5, overlap=0.5)
    x = noise(main, **sides)
    _, seen = run(pair(run_node, main, guide, WEIGHT), positive(1), steps=6, x=x)
    boxes = windows(32, 24, 0.5, 0.5)
    apart = easycached(tiny_networks.build("SD15", 2), always)
    parts = [replayed(apart, seen, lambda x, at=box: crop(x, at)) for box in boxes]
    for step, ((*_, denoised), c) in enumerate(zip(seen, replayed(main, seen), strict=True)):
        b = mean_of_windows(denoised, boxes, lambda box, step=step: parts[boxes.index(box)][step])
        assert far(denoised, c + (WEIGHT - 1.0) * (c - b)) < 1e-5


# --- SamplerARVideo


def causal_wan(seed):
    config = {k: v for k, v in tiny_networks.WAN.items()}
    supported = comfy.supported_models.WAN21_CausalAR_T2V({**config, "dtype": torch.float32})
    return tiny_networks.fill(supported.get_model({}, ""), seed)


def ar_sampler(frames=1):
    return comfy.samplers.ksampler("ar_video", {"num_frame_per_block": frames})


@pytest.fixture
def video():
    return torch.randn(1, 16, 3, 8, 6, generator=torch.Generator().manual_seed(0))


def test_an_identical_guide_under_the_autoregressive_sampler_changes_nothing(run_node, video):
    main = causal_wan(1)
    twin = causal_wan(1)
    plain = run(main, positive(1), sampler=ar_sampler(), x=video)[0]
    guided = run(pair(run_node, main, twin, 2.0), positive(1), sampler=ar_sampler(), x=video)[0]
    assert far(guided, plain) < 1e-6


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("end_percent", [1.0, 0.5])
def test_the_guide_sees_the_finished_blocks_under_the_autoregressive_sampler(run_node, video, frames, end_percent):
    """Reference: the guide's own caches, filled by hand with the finished blocks of the guided run."""
    main, guide = causal_wan(1), causal_wan(2)
    _, seen = run(
        pair(run_node, main, guide, WEIGHT, end_percent=end_percent), positive(1), sampler=ar_sampler(frames), x=video
    )
    bound = float(main.get_model_object("model_sampling").percent_to_sigma(end_percent))
    caches = {id(model): None for model in (main, guide)}

    def state(model, start):
        network = model.model.diffusion_model
        if caches[id(model)] is None:
            caches[id(model)] = (
                network.init_kv_caches(1, 3 * 4 * 3, torch.device("cpu"), torch.float32),
                network.init_crossattn_caches(1, torch.device("cpu"), torch.float32),
            )
        kv, cross = caches[id(model)]
        for cache in kv:
            cache["end"] = start * 12
        return {"start_frame": start, "kv_caches": kv, "crossattn_caches": cross}

    def by_hand(model, x, sigma, start):
        placed = model.clone()
        placed.model_options["transformer_options"]["ar_state"] = state(model, start)
        return tiny_networks.predict(placed, x, float(sigma), positive(1))

    start, compared = 0, 0
    for x, sigma, denoised in seen:
        c, b = (by_hand(model, x, sigma, start) for model in (main, guide))
        if float(sigma) == 0.0:
            start += x.shape[2]
            continue
        wanted = c + (WEIGHT - 1.0) * (c - b) if float(sigma) >= bound - 1e-6 else c
        assert far(denoised, wanted) < 1e-5
        compared += 1
    assert compared >= 6


def test_a_guide_without_blocks_is_refused_under_the_autoregressive_sampler(run_node, video):
    models = causal_wan(1), tiny_networks.build("WAN21_T2V", 2)
    main, guide = (ModelSamplingSD3().patch(model, 5.0)[0] for model in models)
    with pytest.raises(ValueError, match="SamplerARVideo.*same autoregressive family"):
        run(pair(run_node, main, guide, WEIGHT), positive(1), sampler=ar_sampler(), x=video)


def test_models_are_counted_as_before(networks, run_node):
    counted = CallCounter(tiny_networks.build("SD15", 2))
    run(pair(run_node, networks("SD15"), counted.model, WEIGHT), positive(1), steps=3)
    assert counted.calls == 3
    assert copy.copy(counted.rows) == [1] * 3
