"""What works with what: the tests behind docs/compatibility.md, one cell each.

A cell says "works" where the result is that of a reference written without the pack, and otherwise holds the sentence
of the refusal, which has to be in REFUSED below.
"""

import math
import re
from functools import partial

import comfy.samplers
import pytest
import tiny_families
import tiny_joint
import tiny_networks
import torch
from caption_tools import SAYS, ChosenWords, guided
from clip_tools import QuadraticScorer, guide, one_evaluation
from compatibility_tools import (
    REL,
    RandomTexts,
    cell,  # noqa: F401
    core,
    far,
    refusal,
    second_evaluation,
    trace_sizes,
    with_hook_for_captions,
    with_separate_guide,
)
from pair_tools import pair, with_lora
from per_block_tools import conditioning
from tiny_families import FAMILIES
from weaker_tools import EVERY_METHOD

from guidance_lab.nodes.layers.carried import LayerPrompts, Stretch, carry
from guidance_lab.nodes.layers.cross_attention import layer_table, read_layer_prompts
from guidance_lab.nodes.layers.encode_texts import text_of

METHODS = {**EVERY_METHOD, "sliding_window": None, "weight_blend": None}
BLOCKS, ATTENTION = ("block_skip", "stochastic_block_skip", "token_shuffle"), ("identity_attention", "blurred_queries")
WAN_KINDS = tuple(name for name in FAMILIES if name.startswith("WAN"))
READ = ("WAN21_T2V", "WAN21_I2V", "WAN22_T2V", "WAN21_FunControl2V")  # Wan's plain network
# ComfyUI has no hook into the blocks of these; the second ones have true cross-attention, which patches reach.
UNHOOKED = ("PixArtAlpha", "HiDream", "Omnigen2", "Boogu", "Ideogram4", "Krea2", "ErnieImage", "PixelDiTT2I",
            "CosmosT2V", "CogVideoX_T2V")  # fmt: skip
UNHOOKED_CROSS = ("CosmosT2IPredict2", "Anima")
NO_HOOK, NOT_APART = "has no checked hook into the blocks", "image tokens inside the attention .* cannot be told apart"
NO_LAYERS, NO_GRADIENT = "A prompt per layer is not possible for", "A network on the way .* has no gradient"
# These tests look at a picture through the linear preview, and CogVideoX has none in ComfyUI.
PREVIEWED = tuple(name for name in FAMILIES if name != "CogVideoX_T2V")
# (table, row, family) → words of the refusal. What is not here has to work.
REFUSED: dict[tuple[str, str, str], str] = {
    **{("family", "Per-block prompts", name): NO_LAYERS
       for name in ("AuraFlow", "Flux2", "Lens", "HunyuanImage21", "HunyuanVideo", "HunyuanVideo15",
                    "ChromaRadiance", "LongCatImage", "ZImagePixelSpace", "HiDreamO1", "JoyImage", *UNHOOKED,
                    *(kind for kind in WAN_KINDS if kind not in READ))},
    **{("family", "CLIP Guidance, through model", name): NO_GRADIENT
       for name in ("CosmosT2IPredict2", "Anima", "JoyImage", "ErnieImage")},
    **{("weaker", method, name): NO_HOOK for method in BLOCKS
       for name in ("Lumina2", "ZImage", "ZImagePixelSpace", *UNHOOKED, *UNHOOKED_CROSS)},
    **{("weaker", method, name): NO_HOOK for method in ATTENTION for name in (*UNHOOKED, *UNHOOKED_CROSS)},
    **{("weaker", method, name): NOT_APART for method in ATTENTION
       for name in (*WAN_KINDS, "LTXV", "Lens", "HunyuanDiT", "Kandinsky5", "HiDreamO1", "JoyImage")},
    **{("weaker", "token_shuffle", name): "cannot be shuffled alone" for name in ("Kandinsky5", "HiDreamO1")},
    ("weaker", "sliding_window", "HiDreamO1"): "cannot be shown a part of its latent",
}  # fmt: skip


@pytest.fixture(scope="module")
def family():
    """`family(name)` → a fresh MODEL of that family; built once for this file."""
    built = {}

    def get(name):
        if name not in built:
            built[name] = tiny_families.build(name)
        return built[name].clone()

    return get


def setting(name, model, side=8):
    """x, sigma and a conditioning in the middle of the family's schedule."""
    sigma = tiny_families.sigma_at(model, 0.5)
    return tiny_families.noisy(name, model, sigma, side), sigma, tiny_families.text(name, 1)


def settled(say, key, column, action, reference_check):
    """The cell of an action that may be refused."""
    sentence = refusal(action)
    expected = REFUSED.get(key)
    assert (sentence is None) == (expected is None), sentence or f"{key} is not refused any more: take it out"
    assert sentence is None or re.search(expected, sentence), sentence
    if sentence is None:
        reference_check()
        say(key[0], key[1], column)
    else:
        assert "\n" not in sentence
        say(key[0], key[1], column, sentence)


@pytest.mark.parametrize("name", FAMILIES)
def test_model_pair_on_families(cell, run_node, family, name):  # noqa: F811
    model, other = family(name), tiny_families.build(name, seed=1)
    x, sigma, text = setting(name, model)
    paired = pair(run_node, model, other, weight=2.5)
    c, b = (tiny_networks.predict(each, x, sigma, text) for each in (model, other))
    assert far(tiny_networks.predict(paired, x, sigma, text), c + 1.5 * (c - b)) < REL and far(b, c) > 1e-2
    neutral = pair(run_node, model, other, weight=1.0)
    assert torch.equal(tiny_networks.predict(neutral, x, sigma, text), c)
    cell("family", "Autoguidance Model Pair", FAMILIES[name])


@pytest.mark.parametrize("gradient", ["x0 only", "through model"])
@pytest.mark.parametrize("name", PREVIEWED)
def test_clip_guidance_on_families(cell, run_node, family, name, gradient):  # noqa: F811
    """A step up the objective's hill: the score of the guided estimate is above that of the plain one."""
    model = family(name)
    x, sigma, text = setting(name, model)
    scorer = QuadraticScorer(side=8)
    guided = guide(run_node, model, scorer, size="exact", strength=1e-3, gradient=gradient, blend="x0")
    plain = one_evaluation(model, x, sigma, text)
    neutral = guide(run_node, model, scorer, size="exact", strength=0.0, gradient=gradient)
    assert torch.equal(one_evaluation(neutral, x, sigma, text), plain)

    def check():
        shifted = one_evaluation(guided, x, sigma, text)
        assert shifted.isfinite().all() and not torch.equal(plain, shifted)

    key = ("family", f"CLIP Guidance, {gradient}", name)
    settled(cell, key, FAMILIES[name], lambda: one_evaluation(guided, x, sigma, text), check)


@pytest.mark.parametrize("name", PREVIEWED)
def test_caption_residual_on_families(cell, run_node, family, name):  # noqa: F811
    """The second evaluation of a run, which is under the caption of the first, against its formula."""
    model = family(name)
    x, sigma, text = setting(name, model)
    sigmas = tiny_families.sigma_at(model, 0.3), sigma
    clip, says = RandomTexts(lambda seed: tiny_families.text(name, seed)), ChosenWords(SAYS)
    make = partial(guided, run_node, (model, clip), says)
    c, b = (second_evaluation(model, x, sigmas, each) for each in (text, clip.encode_from_tokens_scheduled(SAYS)))
    runs = [second_evaluation(make(scale=1.5), x, sigmas, text) for _ in range(3)]
    assert far(runs[0], c - 1.5 * (b - c)) < REL and far(b, c) > 1e-3 and len(says.shown) == 3
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])
    assert torch.equal(second_evaluation(make(scale=0.0), x, sigmas, text), c)
    assert torch.equal(second_evaluation(model, x, sigmas, text), c)
    cell("family", "Caption Residual Guidance", FAMILIES[name])


@pytest.mark.parametrize("name", FAMILIES)
def test_trace_on_families(cell, run_node, family, name):  # noqa: F811
    """Bit for bit stock at cfg 3, and the size of CFG's term as it is computed from separate predictions."""
    model = family(name)
    x, sigma, text = setting(name, model)
    other = tiny_families.text(name, 2)
    traced, trace = run_node("GuidanceLab_GuidanceTrace", model=model)
    stock = one_evaluation(model, x, sigma, text, other, cfg=3.0)
    assert torch.equal(one_evaluation(traced, x, sigma, text, other, cfg=3.0), stock)
    c, u = (tiny_networks.predict(model, x, sigma, each) for each in (text, other))
    (size,) = trace_sizes(run_node, trace)["CFG"]
    assert size == pytest.approx(float(2 * (c - u).norm() / c.norm()), rel=1e-2) and size > 0
    cell("family", "Guidance Trace", FAMILIES[name])


@pytest.mark.parametrize("name", FAMILIES)
def test_layer_prompts_on_families(cell, family, name):  # noqa: F811
    # ComfyUI tells an SD3 by a key that the other tests' small one leaves out.
    model = tiny_joint.build(name) if name == "SD3" else family(name)
    x, sigma, text = setting(name, model)
    other = tiny_families.text(name, 2)

    def check():
        table = layer_table(model)
        own = text_of(other[0])
        prompts = LayerPrompts(table, text[0][0], (own,), (Stretch(1.0, (0,) * len(table)),))
        everywhere = [carry(text[0], prompts)]
        companions = {key: value for key, value in own.items() if key != "cross_attn"}
        whole = [[other[0][0], {**text[0][1], **companions}]]
        expected = tiny_families.with_vector_of(
            model, text, whole, lambda at: tiny_networks.predict(model, x, sigma, at)
        )
        plain = tiny_networks.predict(model, x, sigma, text)
        reading = read_layer_prompts(model)
        assert far(tiny_networks.predict(reading, x, sigma, everywhere), expected) < 1e-5
        assert far(plain, expected) > 1e-3
        assert torch.equal(tiny_networks.predict(reading, x, sigma, text), plain)

    key = ("family", "Per-block prompts", name)
    settled(cell, key, FAMILIES[name], lambda: layer_table(model), check)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
def test_weaker_version_on_families(cell, weaken, family, name, method):  # noqa: F811
    model = family(name)
    x, sigma, text = setting(name, model, 16)  # two windows a side
    if method == "weight_blend":
        settings = dict(base_model=tiny_families.build(name, seed=1), amount=0.5)
    elif method == "sliding_window":
        settings = dict(window=0.5, overlap=0.5)
    else:
        settings = METHODS[method]

    def check():
        plain = tiny_networks.predict(model, x, sigma, text)
        weak = weaken(model, method, **settings)
        once, twice = (tiny_networks.predict(weak, x, sigma, text) for _ in range(2))
        assert torch.equal(once, twice) and once.isfinite().all() and far(once, plain) > 1e-4
        assert torch.equal(tiny_networks.predict(model, x, sigma, text), plain)

    key = ("weaker", method, name)
    settled(cell, key, FAMILIES[name], lambda: weaken(model, method, **settings), check)


# name → (module, class, settings, whether it changes what post-CFG hooks are told)
CORE_NODES = {
    "FreeU V2": ("nodes_freelunch", "FreeU_V2", {}, False),
    "HyperTile": ("nodes_hypertile", "HyperTile", {"tile_size": 64, "swap_size": 1}, False),
    "Patch Model Add Downscale": ("nodes_model_downscale", "PatchModelAddDownscale", {"block_number": 2}, False),
    "Cross Attention Multiply": ("nodes_attention_multiply", "UNetCrossAttentionMultiply", {"k": 1.3}, False),
    "RescaleCFG": ("nodes_model_advanced", "RescaleCFG", {}, False),
    "RenormCFG": ("nodes_lumina2", "RenormCFG", {"cfg_trunc": 100.0, "renorm_cfg": 1.0}, False),
    "CFGZeroStar": ("nodes_cfg", "CFGZeroStar", {}, False),
    "CFGNorm": ("nodes_cfg", "CFGNorm", {"strength": 0.7}, False),
    "Mahiro": ("nodes_mahiro", "Mahiro", {}, False),
    "APG": ("nodes_apg", "APG", {}, True),
    "TCFG": ("nodes_tcfg", "TCFG", {}, True),
    "FreSca": ("nodes_fresca", "FreSca", {"scale_high": 1.5}, True),
    "Epsilon Scaling": ("nodes_eps", "EpsilonScaling", {"scaling_factor": 1.01}, False),
    "Perturbed-Attention Guidance": ("nodes_pag", "PerturbedAttentionGuidance", {}, False),
    "Differential Diffusion": ("nodes_differential_diffusion", "DifferentialDiffusion", {}, False),
}


def node_of_core(name):
    """(what puts the node behind a MODEL, whether it changes what post-CFG hooks are told)."""
    if name == "LoRA":
        return with_lora, False
    module, kind, settings, own_c = CORE_NODES[name]
    return lambda model: core(module, kind, model, **settings), own_c


@pytest.mark.parametrize("where", ["before", "after", "on the guide"])
@pytest.mark.parametrize("name", [*CORE_NODES, "LoRA"])
def test_model_pair_beside_core_nodes(cell, run_node, networks, sample, latent, name, where):  # noqa: F811
    """At cfg 3, three steps, against the same graph with a guidance made of core's own post-CFG hook."""
    beside, own_c = node_of_core(name)
    main, other = networks("SD15"), tiny_networks.build("SD15", seed=1)
    apart = tiny_networks.build("SD15", seed=1)

    def run(make, bad):
        if where == "before":
            model = make(beside(main), bad)
        elif where == "after":
            model = beside(make(main, bad))
        else:
            model = make(main, beside(bad))
        return sample(model, tiny_networks.positive(1), tiny_networks.positive(2), latent(1), steps=3, cfg=3.0)

    ours = run(lambda model, bad: pair(run_node, model, bad, weight=2.0), other)
    theirs = run(lambda model, bad: with_separate_guide(model, bad, 2.0, own_c and where != "on the guide"), apart)
    assert far(ours, theirs) < 1e-3
    without = sample(beside(main), tiny_networks.positive(1), tiny_networks.positive(2), latent(1), steps=3, cfg=3.0)
    assert far(ours, without) > 1e-3
    cell("core nodes, Autoguidance Model Pair", name, where)


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("name", [*CORE_NODES, "LoRA"])
def test_layer_prompts_beside_core_nodes(cell, networks, sample, latent, name, where):  # noqa: F811
    """Another prompt in all layers is that prompt, with the node as without."""
    beside, _ = node_of_core(name)
    main = networks("SD15")
    table = layer_table(main)
    base, other = tiny_networks.positive(1)[0], tiny_networks.positive(3)[0]
    everywhere = conditioning(table, base[0], [other[0]], [0] * len(table), **other[1])
    model = read_layer_prompts(beside(main)) if where == "before" else beside(read_layer_prompts(main))
    negative = tiny_networks.positive(2)
    ours = sample(model, everywhere, negative, latent(1), steps=3, cfg=3.0)
    theirs = sample(beside(main), [other], negative, latent(1), steps=3, cfg=3.0)
    assert far(ours, theirs) < 1e-4
    assert far(theirs, sample(beside(main), [base], negative, latent(1), steps=3, cfg=3.0)) > 1e-3
    cell("core nodes, per-block prompts", name, where)


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("name", [*CORE_NODES, "LoRA"])
def test_caption_residual_beside_core_nodes(cell, run_node, networks, sample, latent, name, where):  # noqa: F811
    """At cfg 3, three steps, of which the last two are under a caption, against core's own post-CFG hook."""
    beside, own_c = node_of_core(name)
    main, clip = networks("SD15"), RandomTexts(tiny_networks.positive)
    caption = clip.encode_from_tokens_scheduled(SAYS)

    def run(make):
        model = make(beside(main)) if where == "before" else beside(make(main))
        return sample(model, tiny_networks.positive(1), tiny_networks.positive(2), latent(1), steps=3, cfg=3.0)

    def ours(scale):
        return run(lambda model: guided(run_node, (model, clip), ChosenWords(SAYS), scale=scale))

    stock = run(lambda model: model)
    drawn = [ours(0.5) for _ in range(3)]
    assert far(drawn[0], run(lambda model: with_hook_for_captions(model, caption, 0.5, own_c))) < 1e-3
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2]) and far(drawn[0], stock) > 1e-3
    assert torch.equal(ours(0.0), stock) and torch.equal(run(lambda model: model), stock)
    cell("core nodes, Caption Residual Guidance", name, where)


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("name", [*CORE_NODES, "LoRA"])
def test_trace_beside_core_nodes(cell, run_node, networks, sample, latent, name, where):  # noqa: F811
    beside, _ = node_of_core(name)
    main, traces = networks("SD15"), []

    def traced(model):
        model, trace = run_node("GuidanceLab_GuidanceTrace", model=model)
        traces.append(trace)
        return model

    conds = tiny_networks.positive(1), tiny_networks.positive(2), latent(1)
    model = traced(beside(main)) if where == "before" else beside(traced(main))
    drawn, stock = (sample(each, *conds, steps=3, cfg=3.0) for each in (model, beside(main)))
    assert torch.equal(drawn, stock)
    sizes = trace_sizes(run_node, traces[0])
    assert len(sizes["CFG"]) == 3 and all(size > 0 for size in sizes["CFG"])
    assert all(math.isfinite(size) for each in sizes.values() for size in each)
    cell("core nodes, Guidance Trace", name, where)


@pytest.mark.parametrize("name", comfy.samplers.KSampler.SAMPLERS)
def test_model_pair_with_samplers(cell, run_node, networks, sample, latent, name):  # noqa: F811
    main, other = networks("SD15"), tiny_networks.build("SD15", seed=1)
    apart = tiny_networks.build("SD15", seed=1)
    conds = tiny_networks.positive(1), tiny_networks.positive(2), latent(1)

    def run(model):
        return sample(model, *conds, steps=4, cfg=2.0, sampler_name=name)

    stock = run(main)
    assert torch.equal(run(pair(run_node, main, other, weight=1.0)), stock)
    ours, theirs = run(pair(run_node, main, other, weight=1.2)), run(with_separate_guide(main, apart, 1.2))
    assert torch.equal(torch.isfinite(ours), torch.isfinite(theirs))
    assert far(ours, theirs) < 2e-3 and not torch.equal(ours, stock)
    assert torch.equal(run(main), stock)
    cell("samplers", name, "Autoguidance Model Pair")


@pytest.mark.parametrize("name", comfy.samplers.KSampler.SCHEDULERS)
def test_model_pair_with_schedulers(cell, run_node, networks, sample, latent, name):  # noqa: F811
    main, other = networks("SD15"), tiny_networks.build("SD15", seed=1)
    apart = tiny_networks.build("SD15", seed=1)
    conds = tiny_networks.positive(1), tiny_networks.positive(2), latent(1)
    results = [
        sample(model, *conds, steps=4, cfg=2.0, scheduler=name)
        for model in (pair(run_node, main, other, weight=1.5), with_separate_guide(main, apart, 1.5), main)
    ]
    assert far(results[0], results[1]) < 1e-3 and far(results[0], results[2]) > 1e-3
    cell("schedulers", name, "Autoguidance Model Pair")
