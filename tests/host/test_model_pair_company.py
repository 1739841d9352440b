"""The pair among other nodes: a main model split over devices, dual guiders, context windows, ModelSampling nodes."""

import logging

import comfy.model_management
import comfy.multigpu
import comfy.samplers
import pytest
import tiny_networks
import torch
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import BasicGuider, CFGGuider, DualCFGGuider, DualModelGuider
from comfy_extras.nodes_fresca import FreSca
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete, ModelSamplingSD3
from comfy_extras.nodes_tcfg import TCFG
from pair_tools import CallCounter, pair, with_attention_patch, with_lora
from tiny_networks import positive

from guidance_lab.nodes.host import driver
from guidance_lab.nodes.host.models import models_loaded_with

WEIGHT = 1.7
SIGMA = 5.0


def far(a, b):
    """How far a is from b, as a share of b."""
    return ((a - b).norm() / b.norm()).item()


def evaluate(guider, x, sigma=SIGMA):
    """The guider's prediction at exactly this x and sigma, out of the middle of a real sampling run."""
    seen = []

    def once(wrapped, noise, sigmas, extra_args, callback, disable):
        seen.append(wrapped(x, sigmas[0] * x.new_ones([x.shape[0]]), **extra_args))
        return seen[0]

    with torch.inference_mode():
        sampler = comfy.samplers.KSAMPLER(once)
        zeros = torch.zeros_like(x)
        guider.sample(zeros, zeros, sampler, torch.tensor([sigma, sigma / 2]), seed=0, disable_pbar=True)
    return seen[0]


def predict(model, conditioning, x, sigma=SIGMA):
    return evaluate(BasicGuider.execute(model, conditioning)[0], x, sigma)


@pytest.fixture
def models(networks):
    return networks("SD15"), tiny_networks.build("SD15", 2)


@pytest.fixture
def x():
    return 3 * torch.randn(1, 4, 8, 6, generator=torch.Generator().manual_seed(0))


# --- MULTIGPU CFG Split, with two CPU devices


def build(seed):
    return tiny_networks.build("SD15", seed)


def loadable(seed):
    """A MODEL that can be loaded again, as one of a core loader."""
    model = build(seed)
    model.cached_patcher_init = (lambda number, disable_dynamic=False: build(number), (seed,))
    return model


@pytest.fixture
def split(monkeypatch):
    """`split(model)` → what the node MULTIGPU CFG Split gives on a machine with two devices."""
    devices = [torch.device("cpu"), torch.device("cpu", 0)]
    monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda exclude_current=False: devices)
    monkeypatch.setattr(comfy.model_management, "set_torch_device", lambda device: None)
    return lambda model: comfy.multigpu.create_multigpu_deepclones(model, 2, reuse_loaded=True)


def networks_run(guider, x, watched):
    """The guider's prediction, and how often each of the networks (name → module) ran for it."""
    counts = dict.fromkeys(watched, 0)

    def count(name):
        def hook(*_):
            counts[name] += 1

        return hook

    handles = [network.register_forward_pre_hook(count(name)) for name, network in watched.items()]
    try:
        return evaluate(guider, x), counts
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("guide_is", ["split", "plain", "not loadable", "weaker", "with lora"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_main_model_that_is_split_over_devices(split, run_node, x, guide_is, when):
    """The rows of the main model run on both of its modules, the guide on its own alone, whatever it carries."""
    main = loadable(1)
    first = split(main) if when == "before" else main
    guide = {
        "split": lambda: split(loadable(2)),
        "plain": lambda: loadable(2),
        "not loadable": lambda: build(2),
        "weaker": lambda: with_attention_patch(first),
        "with lora": lambda: with_lora(first),
    }[guide_is]()
    model = pair(run_node, first, guide, WEIGHT)
    if when == "after":
        model = split(model)
    clone = model.get_additional_models_with_key("multigpu")[0]
    assert clone.model is not main.model
    watched = {"main": main.model.diffusion_model, "its clone": clone.model.diffusion_model}
    guider = CFGGuider.execute(model, positive(1), positive(2), 3.0)[0]
    guided, counts = networks_run(guider, x, watched)
    c, u = predict(build(1), positive(1), x), predict(build(1), positive(2), x)
    alone = {"weaker": lambda: with_attention_patch(build(1)), "with lora": lambda: with_lora(build(1))}
    b = predict(alone.get(guide_is, lambda: build(2))(), positive(1), x)
    assert far(guided, u + 3.0 * (c - u) + (WEIGHT - 1.0) * (c - b)) < 1e-5
    assert not clone.additional_models  # the guide is not copied to the other device
    assert counts == {"main": 2 if guide_is == "weaker" else 1, "its clone": 1}
    assert torch.equal(evaluate(guider, x), guided)


# --- guiders


@pytest.mark.parametrize(("cfg1", "cfg2"), [(1.0, 1.0), (1.5, 1.0), (1.0, 2.5), (1.5, 2.5)])
@pytest.mark.parametrize("style", ["regular", "nested"])
def test_dual_cfg_at_every_pair_of_strengths(models, run_node, x, cfg1, cfg2, style):
    """The term belongs to the prediction that is handed on: cond2 in regular style, where there is one; else cond1."""
    main, guide = models

    def guider(model):
        return DualCFGGuider.execute(model, positive(1), positive(2), positive(3), cfg1, cfg2, style)[0]

    which = 1 if style == "nested" or cfg1 == cfg2 == 1.0 else 2
    difference = predict(main, positive(which), x) - predict(guide, positive(which), x)
    scale = cfg2 if style == "nested" else 1.0
    guided = evaluate(guider(pair(run_node, main, guide, WEIGHT)), x)
    assert far(guided, evaluate(guider(main), x) + (WEIGHT - 1.0) * scale * difference) < 1e-5


@pytest.fixture
def said(caplog, monkeypatch):
    """What is said on a node of the canvas; all of it has to be in the log too."""
    said = []

    def show(text, node_id):
        assert text in caplog.text
        said.append(text)

    monkeypatch.setattr(driver, "show_on_node", show)
    with caplog.at_level(logging.WARNING):
        yield said


def test_a_pair_that_never_ran_says_so(models, run_node, x, said):
    main, guide = models
    model = pair(run_node, main, guide, WEIGHT)
    evaluate(CFGGuider.execute(model, positive(1), positive(2), 3.0)[0], x)
    assert said == []
    evaluate(DualModelGuider.execute(model, positive(1), 1.0, guide, positive(2))[0], x)
    (word,) = said
    assert word.startswith("Autoguidance did nothing in this run, as Guider_DualModel asked no post-CFG function")


def test_a_sampler_that_asks_the_model_itself_is_told_so(models, run_node, x, said):
    """Past the guider: the model runs, and nobody asks for what comes after CFG."""
    main, guide = models
    guider = CFGGuider.execute(pair(run_node, main, guide, WEIGHT), positive(1), positive(2), 3.0)[0]

    def sampler(wrapped, noise, sigmas, extra_args, callback, disable):
        model, options = wrapped.inner_model.inner_model, extra_args["model_options"]
        conds = [wrapped.inner_model.conds["positive"]]
        return comfy.samplers.calc_cond_batch(model, conds, noise, sigmas[:1], options)[0]

    with torch.inference_mode():
        zeros = torch.zeros_like(x)
        guider.sample(x, zeros, comfy.samplers.KSAMPLER(sampler), torch.tensor([1.0, 0.5]), disable_pbar=True)
    (word,) = said
    assert "asked no post-CFG function" in word


def test_a_window_that_no_step_lies_in_is_said(models, run_node, x, said):
    main, guide = models
    model = pair(run_node, main, guide, WEIGHT, end_percent=0.01)
    plain = evaluate(CFGGuider.execute(main, positive(1), positive(2), 3.0)[0], x)
    assert torch.equal(evaluate(CFGGuider.execute(model, positive(1), positive(2), 3.0)[0], x), plain)
    (word,) = said
    assert word.startswith("Autoguidance did nothing in this run, as no step of this sampling lies in its window")


# --- context windows


@pytest.mark.parametrize("hook", [None, "APG", "TCFG", "FreSca"])
def test_context_windows_with_a_pre_cfg_hook(run_node, hook):
    """C is the model's own prediction, put together from its windows, before the hook changes it."""
    main, guide = (tiny_networks.build("WAN21_T2V", seed) for seed in (1, 2))
    x = torch.randn(1, 16, 6, 8, 6, generator=torch.Generator().manual_seed(0))
    add = {
        None: lambda model: model,
        "APG": lambda model: APG.execute(model, 0.5, 2.0, 0.0)[0],
        "TCFG": lambda model: TCFG.execute(model)[0],
        "FreSca": lambda model: FreSca.execute(model, 0.5, 2.0, 3)[0],
    }[hook]

    def windows(model):
        return ContextWindowsManualNode.execute(model, 4, 2, "standard_static", 1, False, "pyramid", 2, False)[0]

    def at_cfg(model):
        return evaluate(CFGGuider.execute(model, positive(1), positive(2), 3.0)[0], x, 0.6)

    c, b = (predict(windows(model), positive(1), x, 0.6) for model in (main, guide))
    assert far(c, predict(main, positive(1), x, 0.6)) > 1e-3
    wanted = at_cfg(add(windows(main))) + (WEIGHT - 1.0) * (c - b)
    for model in (
        pair(run_node, add(windows(main)), windows(guide), WEIGHT),
        add(pair(run_node, windows(main), windows(guide), WEIGHT)),
    ):
        assert far(at_cfg(model), wanted) < 1e-5


# --- ModelSampling nodes


def discrete(kind, zsnr=False):
    return lambda model: ModelSamplingDiscrete().patch(model, kind, zsnr)[0]


CHANGES = {"v_prediction": discrete("v_prediction"), "zsnr": discrete("eps", True), "lcm": discrete("lcm")}
GUIDES = {"weaker": with_attention_patch, "with lora": with_lora}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("guide_is", [*GUIDES, "another"])
@pytest.mark.parametrize("side", ["main", "after the pair", "guide"])
def test_a_sampling_node_on_one_side_of_one_network_is_refused(networks, run_node, x, change, guide_is, side):
    """A network has one prediction type: read as another on one side, C - B says nothing. Of two networks it can be
    right (an eps guide for a v model), so there it is said.
    """
    main, change_of = networks("SD15"), CHANGES[change]
    guide = GUIDES[guide_is](main) if guide_is in GUIDES else tiny_networks.build("SD15", 2)
    legal = guide_is == "another" and change == "v_prediction"

    def attempt():
        model = pair(
            run_node, change_of(main) if side == "main" else main, change_of(guide) if side == "guide" else guide
        )
        return predict(change_of(model) if side == "after the pair" else model, positive(1), x)

    if not legal:
        with pytest.raises(ValueError, match="ModelSampling"):
            attempt()
        return
    c = predict(main if side == "guide" else change_of(main), positive(1), x)
    b = predict(change_of(guide) if side == "guide" else guide, positive(1), x)
    assert far(attempt(), c + (c - b)) < 1e-5


def test_another_prediction_type_of_another_network_is_said(networks, run_node, x, caplog):
    with caplog.at_level(logging.WARNING):
        predict(
            discrete("v_prediction")(pair(run_node, networks("SD15"), tiny_networks.build("SD15", 2))), positive(1), x
        )
    assert "V_PREDICTION" in caplog.text and "ModelSampling" in caplog.text


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("guide_is", GUIDES)
def test_equal_sampling_nodes_on_both_sides(networks, run_node, x, change, guide_is):
    main, change_of = networks("SD15"), CHANGES[change]
    guide = GUIDES[guide_is](main)
    model = pair(run_node, change_of(main), change_of(guide))
    c, b = (predict(change_of(patch), positive(1), x) for patch in (main, GUIDES[guide_is](main)))
    assert far(predict(model, positive(1), x), c + (c - b)) < 1e-5
    assert len(models_loaded_with(model)) == (0 if guide_is == "weaker" else 1)  # no second copy of equal weights


def test_a_shift_after_the_pair_is_refused_unless_it_is_on_both(run_node):
    main = tiny_networks.build("SD3", 1)
    x = tiny_networks.noisy(main, 1)
    weak = with_lora(main, part="attn.qkv.weight")
    with pytest.raises(ValueError, match="ModelSampling"):
        predict(ModelSamplingSD3().patch(pair(run_node, main, weak), 6.0)[0], positive(1), x, 0.5)
    both = pair(run_node, *(ModelSamplingSD3().patch(model, 6.0)[0] for model in (main, weak)))
    assert torch.isfinite(predict(both, positive(1), x, 0.5)).all()


# --- copies of weights, and models that others bring along


def test_a_lora_guide_in_two_pairs_is_copied_once(networks, run_node, x):
    main = networks("SD15")
    guide = with_lora(main)
    chained = pair(run_node, pair(run_node, main, guide, 1.3), guide, 1.4)
    branch = pair(run_node, main, guide.clone(), 2.0)
    assert len({other.model for model in (chained, branch) for other in models_loaded_with(model)}) == 1
    c, b = predict(main, positive(1), x), predict(with_lora(tiny_networks.build("SD15")), positive(1), x)
    for model, strength in ((chained, 0.7), (branch, 1.0), (chained, 0.7)):
        assert far(predict(model, positive(1), x), c + strength * (c - b)) < 1e-5


def test_the_copy_serves_a_guide_with_another_patch(networks, run_node, x):
    """One copied module, and each guide with its own options on it."""
    main = networks("SD15")
    plain = with_lora(main)
    patched = with_attention_patch(plain)
    chained = pair(run_node, pair(run_node, main, plain, 1.3), patched, 1.4)
    assert len({other.model for other in models_loaded_with(chained)}) == 1
    own = tiny_networks.build("SD15")
    c, b1 = predict(main, positive(1), x), predict(with_lora(own), positive(1), x)
    b2 = predict(with_attention_patch(with_lora(own)), positive(1), x)
    assert far(predict(chained, positive(1), x), c + 0.3 * (c - b1) + 0.4 * (c - b2)) < 1e-5


@pytest.mark.parametrize("shared", [False, True])
def test_models_that_the_guide_brings_along_are_loaded(networks, run_node, x, monkeypatch, shared):
    """PuLID and others put a network beside the model and use it from a patch."""
    main = networks("SD15")
    along, deeper = (tiny_networks.build("SD15", seed) for seed in (7, 8))
    along.set_additional_models("deeper", [deeper])
    guide = with_attention_patch(main if shared else tiny_networks.build("SD15", 2))
    guide.set_additional_models("face", [along])
    loads, load = [], comfy.model_management.load_models_gpu

    def spy(models, *args, **kwargs):
        loads.append({patcher.model for patcher in models})
        return load(models, *args, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", spy)
    predict(pair(run_node, main, guide, WEIGHT), positive(1), x)
    assert loads == [{main.model, guide.model, along.model, deeper.model}]


# --- the same model on both sides


def test_guides_that_differ_by_nothing_that_acts_are_warned_about(networks, run_node, x, caplog):
    """Seen when the node runs where that can be told from outside, else when the run has shown it."""
    main = networks("SD15")

    def with_patch_that_does_nothing(model):
        patched = model.clone()
        patched.set_model_input_block_patch(lambda h, options: h)
        return patched

    def warned(guide):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            predict(pair(run_node, main, guide, WEIGHT), positive(1), x)
        return "same" in caplog.text

    assert warned(main.clone())
    assert warned(with_lora(main, strength=0.0))
    assert warned(with_patch_that_does_nothing(main))
    assert not warned(with_attention_patch(main))
    assert not warned(tiny_networks.build("SD15", 2))


def test_the_guide_is_evaluated_once_per_step(networks, run_node, x):
    counted = CallCounter(tiny_networks.build("SD15", 2))
    predict(pair(run_node, networks("SD15"), counted.model, WEIGHT), positive(1), x)
    assert counted.calls == 1
