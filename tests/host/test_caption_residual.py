"""Caption residual guidance in real sampling equals its formula done by hand; counts of captions, encodings and model
calls.
"""

import math
from functools import partial

import caption_tools
import comfy.model_management
import comfy.samplers
import pytest
import torch
from caption_tools import NEGATIVE, PROMPT, SAYS, STEPS, ByHand, ChosenWords, counted_encodings, encoded, together
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import BasicGuider, CFGGuider, DualCFGGuider
from comfy_extras.nodes_perpneg import PerpNegGuider
from pair_tools import CallCounter, pair, run_guider


@pytest.fixture
def guided(run_node, shapes):
    """`guided(captioner, …)` → the MODEL that the node gives."""
    return partial(caption_tools.guided, run_node, shapes)


@pytest.fixture
def conds(shapes):
    """(positive, negative) of the prompts of this file."""
    return encoded(shapes[1], PROMPT), encoded(shapes[1], NEGATIVE)


@pytest.fixture
def sample(sample):
    return partial(sample, steps=STEPS)


@pytest.mark.parametrize("cfg", [4.0, 1.0])
def test_it_is_the_formula(shapes, guided, conds, latent, sample, cfg):
    model, clip = shapes[:2]
    hand = ByHand(
        model,
        *conds,
        cfg,
        1.5,
        {1: encoded(clip, SAYS), 2: encoded(clip, "a red ball on white"), 3: encoded(clip, SAYS)},
    )
    captioner = ChosenWords(SAYS, "a red ball on white", SAYS)
    result = sample(guided(captioner), *conds, latent(seed=3), cfg=cfg)
    assert torch.equal(result, run_guider(hand, latent(seed=3), steps=STEPS))
    assert not torch.equal(result, sample(model, *conds, latent(seed=3), cfg=cfg))


def test_every_picture_of_a_batch_has_its_own_caption(shapes, guided, conds, latent, sample):
    model, clip = shapes[:2]
    says = [SAYS, "a yellow car on black"]
    result = sample(guided(ChosenWords(says)), *conds, latent(batch=2, seed=3))
    hand = ByHand(model, *conds, 4.0, 1.5, {1: together(clip, says)})
    assert torch.equal(result, run_guider(hand, latent(batch=2, seed=3), steps=STEPS))


def singles(shapes, guided, conds, latent, sample, says):
    """A batch of two beside two pictures drawn alone from the same noise: KSampler draws noise for a batch row by
    row.
    """
    start = latent(batch=2, seed=3)
    batch = sample(guided(ChosenWords(says)), *conds, start)
    first = sample(guided(ChosenWords(says[0])), *conds, {"samples": start["samples"][:1]})
    second = sample(guided(ChosenWords(says[1])), *conds, {"samples": start["samples"][1:], "batch_index": [1]})
    return batch, torch.cat([first, second])


LONG = "a red cube left of a blue ball and above a green star on white"


@pytest.mark.parametrize(
    "says",
    [[SAYS, "a yellow car on black"], [SAYS, PROMPT], [f"{LONG} {LONG}", SAYS]],
    ids=["two captions", "one is the prompt", "two lengths"],
)
def test_a_batch_of_two_is_two_singles(shapes, guided, conds, latent, sample, says):
    batch, alone = singles(shapes, guided, conds, latent, sample, says)
    assert torch.allclose(batch, alone, atol=1e-4)
    assert not torch.allclose(batch[:1], sample(shapes[0], *conds, latent(batch=2, seed=3))[:1], atol=1e-2)


@pytest.mark.parametrize(("every", "captions"), [(1, 5), (2, 3), (3, 2), (9, 1)])
def test_captions_encodings_and_model_calls(shapes, guided, conds, latent, sample, every, captions):
    """Six steps, of which all but the first are guided; three different captions in all."""
    counter = CallCounter(shapes[0])
    sample(counter.model, *conds, latent(), steps=6)
    stock_calls = counter.calls
    captioner = ChosenWords(SAYS, "a red ball on white", SAYS, "a blue car on gray", SAYS)
    with counted_encodings(shapes[1]) as encodings:
        sample(guided(captioner, model=counter.model, every=every), *conds, latent(), steps=6)
    assert len(captioner.shown) == math.ceil(5 / every) == captions
    assert len(encodings) == min(captions, 3 if captions > 3 else 2)
    assert counter.calls == 2 * stock_calls == 12
    assert counter.rows == [2] * 6 + [2] + [3] * 5


@pytest.mark.parametrize("sampler_name", ["heun", "dpmpp_sde"])
def test_captions_follow_the_schedule_and_not_the_calls(guided, conds, latent, sample, sampler_name):
    """Samplers with two evaluations a step: one caption for each noise level, however often it is evaluated."""
    captioner = ChosenWords(SAYS)
    sample(guided(captioner), *conds, latent(), sampler_name)
    assert len(captioner.shown) in (STEPS - 1, STEPS)


def test_the_window(shapes, guided, conds, latent, sample):
    """Captions only inside it, and the first of them sees the estimate of the step before."""
    sigma = shapes[0].get_model_object("model_sampling").percent_to_sigma
    captioner = ChosenWords(SAYS)
    result = sample(guided(captioner, start_percent=0.4, end_percent=0.8), *conds, latent(seed=3), steps=8)
    sigmas = comfy.samplers.calculate_sigmas(shapes[0].get_model_object("model_sampling"), "normal", 8)
    inside = [i for i, s in enumerate(sigmas[:-1].tolist()) if sigma(0.8) <= s <= sigma(0.4)]
    assert 0 < len(inside) < 7 and len(captioner.shown) == len(inside)
    hand = ByHand(shapes[0], *conds, 4.0, 1.5, {inside[0]: encoded(shapes[1], SAYS), inside[-1] + 1: None})
    assert torch.equal(result, run_guider(hand, latent(seed=3), steps=8))


def test_it_is_linear_in_the_scale(guided, conds):
    """Of two steps only the last is guided, and the result is its estimate, D - b (D_b - D_c)."""

    def result(scale):
        guider = CFGGuider.execute(guided(ChosenWords(SAYS), scale=scale), *conds, 4.0)[0]
        return run_guider(guider, {"samples": torch.zeros(1, 4, 8, 8)}, sigmas=torch.tensor([14.0, 4.0, 0.0]))

    one = result(1.0)
    term = result(2.0) - one
    assert term.norm() > 1
    for scale in (0.0, 0.5, 4.0, 7.0):
        # Float32 rounds by the size of what is computed. (At 0 the network runs on two rows instead of three, and so
        # rounds otherwise.)
        guided_at = result(scale)
        assert (guided_at - one - (scale - 1) * term).norm() <= 1e-6 * guided_at.norm()


def test_the_captioner_sees_the_estimate(shapes, guided, conds, latent, sample):
    """A decoder of its own choice decodes what the last evaluation came to, in the VAE's own scale."""
    estimates = []
    model = shapes[0].clone()
    model.set_model_sampler_post_cfg_function(lambda args: estimates.append(args["denoised"]) or args["denoised"])
    captioner = ChosenWords(PROMPT)
    sample(guided(captioner, model=model, decoder={"decoder": "vae", "vae": shapes[2]}), *conds, latent(seed=3))
    assert len(captioner.shown) == STEPS - 1
    for shown, estimate in zip(captioner.shown, estimates, strict=False):
        with torch.inference_mode():
            decoded = shapes[2].decode(shapes[0].model.process_latent_out(estimate)).movedim(-1, 1)
        assert shown.shape == (1, 3, 64, 64)
        assert torch.allclose(shown.clamp(0, 1), decoded, atol=1e-4)


@pytest.mark.parametrize(
    "sampler_name", ["euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "lcm", "uni_pc", "euler_cfg_pp", "ddim"]
)
def test_samplers(shapes, guided, conds, latent, sample, sampler_name):
    result = sample(guided(ChosenWords(SAYS), every=2), *conds, latent(seed=3), sampler_name, cfg=2.0)
    assert torch.isfinite(result).all()
    assert not torch.allclose(result, sample(shapes[0], *conds, latent(seed=3), sampler_name, cfg=2.0), atol=1e-2)


def test_guiders(shapes, guided, conds, latent, sample):
    positive, negative = conds
    model = guided(ChosenWords(SAYS))
    expected = {cfg: sample(model, positive, negative, latent(seed=3), cfg=cfg) for cfg in (1.0, 4.0)}
    guiders = {1.0: BasicGuider.execute(model, positive)[0], 4.0: CFGGuider.execute(model, positive, negative, 4.0)[0]}
    for cfg, guider in guiders.items():
        assert torch.equal(run_guider(guider, latent(seed=3), steps=STEPS), expected[cfg])
    empty = encoded(shapes[1], "")
    for make in (
        lambda model: DualCFGGuider.execute(model, positive, empty, negative, 2.0, 4.0, "regular")[0],
        lambda model: DualCFGGuider.execute(model, positive, empty, negative, 2.0, 4.0, "nested")[0],
        lambda model: PerpNegGuider.execute(model, positive, negative, empty, 4.0, 0.5)[0],
    ):
        result = run_guider(make(model), latent(seed=3), steps=STEPS)
        assert torch.isfinite(result).all()
        assert not torch.allclose(result, run_guider(make(shapes[0]), latent(seed=3), steps=STEPS), atol=1e-2)


def test_a_guider_without_a_positive_is_told_so(guided, latent, conds):
    guider = ByHand(guided(ChosenWords(SAYS)), *conds, 1.0, 0.0, {})
    guider.original_conds = {"only": guider.original_conds["positive"]}
    with pytest.raises(RuntimeError, match=r"no positive conditioning \(only only\)"):
        run_guider(guider, latent())


def test_attention_patches_see_a_caption_as_a_positive(shapes, guided, conds, latent, sample):
    """IP-Adapter and its like look up [for the positive, for the negative][i] for every row, and know no third."""
    seen = []
    model = shapes[0].clone()

    def look(q, k, v, extra):
        seen.append(list(extra["cond_or_uncond"]))
        return q, k, v

    model.set_model_attn2_patch(look)
    sample(guided(ChosenWords(SAYS), model=model), *conds, latent())
    assert {len(rows) for rows in seen} == {2, 3}
    assert {tuple(sorted(rows)) for rows in seen} == {(0, 1), (0, 0, 1)}


def test_a_model_whose_calls_go_another_way_gets_a_call_of_its_own(shapes, guided, conds, latent, sample):
    """A `sampler_calc_cond_batch_function` that predicts the two conds it was given one by one, past the host's
    wrappers.
    """
    model = shapes[0].clone()

    def one_by_one(args):
        rest = args["model"], args["input"], args["sigma"], args["model_options"]
        return [_one(cond, *rest) for cond in args["conds"]]

    def _one(cond, model, x, sigma, options):
        # Past the wrapper of the host's calls, as a function does that runs the network itself.
        return comfy.samplers._calc_cond_batch(model, [cond], x, sigma, options)[0]

    model.set_model_sampler_calc_cond_batch_function(one_by_one)
    result = sample(guided(ChosenWords(SAYS), model=model), *conds, latent(seed=3))
    assert torch.allclose(result, sample(guided(ChosenWords(SAYS)), *conds, latent(seed=3)), atol=1e-4)


def test_it_adds_to_other_guidances(shapes, guided, conds, latent, sample, run_node):
    small = run_node("GuidanceLab_ShapesDemoModels")[4]
    ag_first = guided(ChosenWords(SAYS), model=pair(run_node, shapes[0], small))
    ag_last = pair(run_node, guided(ChosenWords(SAYS)), small)
    assert torch.allclose(sample(ag_first, *conds, latent(seed=3)), sample(ag_last, *conds, latent(seed=3)), atol=1e-3)
    twice = guided(ChosenWords(SAYS), model=guided(ChosenWords(SAYS), scale=0.5), scale=1.0)
    assert torch.allclose(
        sample(twice, *conds, latent(seed=3)), sample(guided(ChosenWords(SAYS)), *conds, latent(seed=3)), atol=1e-4
    )


def test_nothing_is_loaded_or_unloaded_in_mid_run(shapes, guided, conds, latent, sample):
    """Model, CLIP, VAE and captioner are loaded in one call before the first step, and stay."""
    calls, held = [], []
    load = comfy.model_management.load_models_gpu

    def counted(models, *args, **kwargs):
        calls.append([m.model for m in models])
        return load(models, *args, **kwargs)

    model = shapes[0].clone()

    def watch(executor, *args, **kwargs):
        held.append([id(loaded.model) for loaded in comfy.model_management.current_loaded_models])
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", watch)
    guide = guided(ChosenWords(SAYS, "a red ball on white"), model=model, decoder={"decoder": "vae", "vae": shapes[2]})
    comfy.model_management.unload_all_models()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.model_management, "load_models_gpu", counted)
        sample(guide, *conds, latent())
    assert len(calls) == 1
    assert {shapes[0].model, shapes[1].cond_stage_model, shapes[2].first_stage_model} <= set(calls[0])
    assert len(held) == STEPS and all(now == held[0] for now in held)
