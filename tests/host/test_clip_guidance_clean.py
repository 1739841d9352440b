"""Nothing stays behind and nothing else changes: weights, flags, random state, the samplers' tensors, memory
estimates.
"""

import comfy.model_management
import comfy.samplers
import pytest
import tiny_networks
import torch
from clip_tools import RGB, ConstantScorer, TinyCLIP, guide, one_evaluation, watched
from comfy.model_management import InterruptProcessingException
from pair_tools import CallCounter, pair
from tiny_vaes import kl_vae

GRADIENTS = pytest.mark.parametrize("gradient", ["x0", "through model"])


def build(inference: bool = True, name: str = "SD15", seed: int = 0):
    with torch.inference_mode(inference):
        return tiny_networks.build(name, seed)


@pytest.fixture(scope="module")
def _sd15():
    return build()


@pytest.fixture
def model(_sd15):
    return _sd15.clone()


@pytest.fixture
def prompts():
    return tiny_networks.positive(1), tiny_networks.positive(2)


START = {"samples": torch.zeros(1, 4, 8, 8)}


def state_of(*patchers):
    """The very objects that a module has for weights, and their numbers; the host's flag; the global random state."""
    weights = [
        (id(p), p.clone()) for patcher in patchers for p in [*patcher.model.parameters(), *patcher.model.buffers()]
    ]
    return (
        weights,
        comfy.model_management.in_training,
        torch.get_rng_state(),
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
    )


def unchanged(before, after):
    weights = all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(before[0], after[0], strict=True))
    return weights and before[1] == after[1] and torch.equal(before[2], after[2]) and before[3:] == after[3:]


@GRADIENTS
def test_weights_made_in_inference_mode_and_outside_give_the_same(prompts, sample, run_node, gradient):
    """Nodes run in inference mode, and so do loaders; a weight made there must not be saved for a backward pass, and is
    not.
    """
    outs = []
    for inference in (True, False):
        model, scorer = build(inference), TinyCLIP(inference)
        assert all(
            p.is_inference() == inference for p in [*model.model.parameters(), *scorer.models[0].model.parameters()]
        )
        outs.append(sample(guide(run_node, model, scorer, gradient=gradient), *prompts, START, steps=3))
        assert all(
            p.is_inference() == inference for p in [*model.model.parameters(), *scorer.models[0].model.parameters()]
        )
    assert torch.equal(*outs)


@GRADIENTS
def test_three_runs_are_one_and_stock_is_unchanged(model, prompts, sample, run_node, gradient):
    scorer = TinyCLIP(True)
    stock = sample(model, *prompts, START, steps=3)
    before = state_of(model, *scorer.models)
    guided = guide(run_node, model, scorer, gradient=gradient, crops=2)
    runs = [sample(guided, *prompts, START, steps=3) for _ in range(3)]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2]) and not torch.equal(runs[0], stock)
    assert torch.equal(sample(model, *prompts, START, steps=3), stock)
    assert unchanged(before, state_of(model, *scorer.models))


@GRADIENTS
def test_crops_leave_the_global_random_state_alone(model, prompts, sample, run_node, gradient):
    """An ancestral sampler draws on it in every step: with a shift of zero it must draw the same noise."""
    out = sample(
        guide(run_node, model, ConstantScorer(0.0), gradient=gradient, crops=5),
        *prompts,
        START,
        "euler_ancestral",
        steps=3,
    )
    drawn = torch.get_rng_state()
    stock = sample(model, *prompts, START, "euler_ancestral", steps=3)
    assert torch.equal(drawn, torch.get_rng_state())
    assert torch.equal(out, stock) if gradient == "x0" else (out - stock).abs().max() < 1e-3 * stock.abs().max()


def test_the_seed_of_the_crops_decides_them(model, prompts, sample, run_node):
    def run(**settings):
        return sample(
            guide(run_node, model, TinyCLIP(), crops=2, whole_view=False, **settings), *prompts, START, steps=2
        )

    assert torch.equal(run(seed=4), run(seed=4)) and not torch.equal(run(seed=4), run(seed=5))


class _Stop(Exception):
    pass


@GRADIENTS
@pytest.mark.parametrize(
    ("where", "error"), [("scorer", _Stop), ("model", _Stop), ("scorer", InterruptProcessingException)]
)
def test_an_error_in_mid_run_leaves_the_host_clean(model, prompts, sample, run_node, gradient, where, error):
    failing, calls = model.clone(), []

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise error("on purpose")

    class Failing(TinyCLIP):
        def score(self, view, step):
            fail()
            return super().score(view, step)

    if where == "model":
        failing.add_wrapper_with_key(
            "apply_model", "fail", lambda executor, *args, **kwargs: (fail(), executor(*args, **kwargs))[1]
        )
    scorer = Failing(True) if where == "scorer" else TinyCLIP(True)
    stock = sample(model, *prompts, START, steps=3)
    good = sample(guide(run_node, model, TinyCLIP(True), gradient=gradient), *prompts, START, steps=3)
    before = state_of(model, *scorer.models)
    with pytest.raises(error):
        sample(guide(run_node, failing, scorer, gradient=gradient), *prompts, START, steps=3)
    assert unchanged(before, state_of(model, *scorer.models))
    assert torch.equal(sample(model, *prompts, START, steps=3), stock)
    assert torch.equal(
        sample(guide(run_node, model, TinyCLIP(True), gradient=gradient), *prompts, START, steps=3), good
    )


@GRADIENTS
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_samplers_get_tensors_without_a_graph(model, prompts, run_node, gradient, cfg):
    """cfg_pp samplers keep the negative's prediction for the next step, which would keep the whole graph alive."""
    seen = {}

    def cfg_pp(args):
        seen.update(args)
        return args["denoised"]

    def sampler_function(wrapped, noise, sigmas, extra_args, callback, disable):
        options = comfy.samplers.comfy.model_patcher.set_model_options_post_cfg_function(
            extra_args["model_options"].copy(), cfg_pp, disable_cfg1_optimization=True
        )
        seen["out"] = wrapped(noise, sigmas[0] * noise.new_ones(1), model_options=options, seed=0, denoise_mask=None)
        return seen["out"]

    guider = comfy.samplers.CFGGuider(guide(run_node, model, TinyCLIP(), gradient=gradient))
    guider.set_conds(*prompts)
    guider.set_cfg(cfg)
    with torch.inference_mode():
        sampler = comfy.samplers.KSAMPLER(sampler_function)
        guider.sample(
            torch.randn(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), sampler, torch.tensor([3.0, 0.0]), disable_pbar=True
        )
    for name in ("out", "uncond_denoised", "cond_denoised"):
        assert not seen[name].requires_grad and seen[name].grad_fn is None, name


@GRADIENTS
def test_everything_is_loaded_in_one_call_and_nothing_in_mid_run(
    model, prompts, sample, run_node, monkeypatch, gradient
):
    vae, scorer = kl_vae(), TinyCLIP(True)
    guided = guide(run_node, model, scorer, gradient=gradient, decoder={"decoder": "vae_crop", "vae": vae})
    load, loads = comfy.model_management.load_models_gpu, []

    def spy(models, *args, **kwargs):
        loads.append({id(m.model) for m in models})
        return load(models, *args, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", spy)
    sample(guided, *prompts, START, steps=2)
    assert loads == [{id(model.model), id(vae.first_stage_model), id(scorer.models[0].model)}]


def test_the_memory_of_the_gradient_is_asked_for(model, prompts, sample, run_node, monkeypatch):
    load, asked = comfy.model_management.load_models_gpu, []

    def spy(models, memory_required=0, **kwargs):
        asked.append(memory_required)
        return load(models, memory_required=memory_required, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", spy)
    factor = model.model.memory_usage_factor
    for settings in (dict(strength=0.0), dict(), dict(gradient="through model")):
        sample(guide(run_node, model, TinyCLIP(), **settings), *prompts, START, steps=1)
    assert asked[0] < asked[1] - 500 * 2**20 and asked[1] < asked[2]
    assert model.model.memory_usage_factor == factor


def test_through_model_differentiates_the_guide_of_autoguidance_too(prompts, run_node):
    """D = CFG + (w - 1)(C - B): the gradient goes back through C, U and B, and the pair's own evaluation is made
    once.
    """
    main, guide_counter = build(), CallCounter(build(seed=1))
    plain = pair(run_node, main, guide_counter.model, 1.7)
    x = 3.0 * tiny_networks.noisy(main, batch=1, height=8, width=8)
    direction = tiny_networks.noisy(main, batch=1, height=8, width=8, seed=9)
    from clip_tools import QuadraticScorer

    from guidance_lab.guidance.crops import whole_view
    from guidance_lab.nodes.host.decode import make_decoder

    scorer, decoder = QuadraticScorer(side=8), make_decoder(RGB, main)

    def score(at):
        return (
            scorer.score(whole_view(decoder.decode(one_evaluation(plain, at, 3.0, *prompts, cfg=3.0)), 8), None)
            .double()
            .item()
        )

    unguided = one_evaluation(plain, x, 3.0, *prompts, cfg=3.0)
    for order in ("before", "after"):
        settings = dict(size="exact", strength=1.0, gradient="through model", blend="x0")
        both = guide(run_node, plain, scorer, **settings) if order == "before" else None
        both = both or pair(run_node, guide(run_node, main, scorer, **settings), guide_counter.model, 1.7)
        traced, watch = watched(both)
        calls = guide_counter.calls
        gradient = (one_evaluation(traced, x, 3.0, *prompts, cfg=3.0) - unguided) / 9
        assert guide_counter.calls == calls + 1
        assert [term.name for step in watch.steps for term in step.terms] == ["Autoguidance", "CLIP guidance"]
        step = 1e-2
        difference = (score(x + step * direction) - score(x - step * direction)) / (2 * step)
        assert (gradient * direction).sum().item() == pytest.approx(difference, rel=1e-2)
