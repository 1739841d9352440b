"""Autoguidance Model Pair against eq. 6 written out in a guider, and against what stock ComfyUI nodes give."""

from functools import partial

import comfy.hooks
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import CFGGuider, DualModelGuider
from pair_tools import STEPS, PaperGuider, pair, run_guider

pytestmark = pytest.mark.side(4)

SAMPLERS = ["euler", "heun", "dpm_2", "dpmpp_2m", "dpmpp_sde"]


@pytest.fixture
def sample(sample):
    return partial(sample, steps=STEPS)


def paper(main, guide, w_u, w_c, positive, negative):
    guider = PaperGuider(main, guide, w_u, w_c)
    guider.set_conds(positive, negative)
    return guider


def close(a, b):
    """Equal but for the rounding of formulas whose terms are added in another order."""
    return (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("sampler_name", SAMPLERS)
def test_equals_equation_6_in_ksampler(tiny_model, tiny_model_b, cond, latent, sample, run_node, sampler_name):
    positive, negative, start = cond(1), cond(2), latent(batch=2)
    guided = sample(pair(run_node, tiny_model, tiny_model_b, 1.7), positive, negative, start, sampler_name, cfg=3.0)
    assert torch.equal(
        guided, run_guider(paper(tiny_model, tiny_model_b, 3.0, 1.7, positive, negative), start, sampler_name)
    )
    assert not torch.equal(guided, sample(tiny_model, positive, negative, start, sampler_name, cfg=3.0))


def test_equals_equation_3_at_cfg_1(tiny_model, tiny_model_b, cond, latent, sample, run_node):
    positive, negative, start = cond(1), cond(2), latent(seed=3)
    guided = sample(pair(run_node, tiny_model, tiny_model_b, 2.5), positive, negative, start, cfg=1.0)
    assert torch.equal(guided, run_guider(paper(tiny_model, tiny_model_b, 1.0, 2.5, positive, negative), start))


@pytest.mark.parametrize("kind", ["CFGGuider", "BasicGuider"])
def test_the_same_under_the_guiders_of_samplercustomadvanced(tiny_model, tiny_model_b, cond, latent, run_node, kind):
    from comfy_extras.nodes_custom_sampler import BasicGuider

    positive, negative, start = cond(1), cond(2), latent()
    model = pair(run_node, tiny_model, tiny_model_b, 1.7)
    cfg = 3.0 if kind == "CFGGuider" else 1.0
    guider = (
        CFGGuider.execute(model, positive, negative, cfg)[0]
        if kind == "CFGGuider"
        else BasicGuider.execute(model, positive)[0]
    )
    assert torch.equal(
        run_guider(guider, start), run_guider(paper(tiny_model, tiny_model_b, cfg, 1.7, positive, negative), start)
    )


def test_weight_0_samples_from_the_guide(tiny_model, tiny_model_b, cond, latent, sample, run_node):
    positive, negative, start = cond(1), cond(2), latent()
    guided = sample(pair(run_node, tiny_model, tiny_model_b, 0.0), positive, negative, start, cfg=1.0)
    assert close(guided, sample(tiny_model_b, positive, negative, start, cfg=1.0))


def test_equals_cores_dual_model_guider_on_two_modules(tiny_model, tiny_model_b, cond, latent, sample, run_node):
    positive, start = cond(1), latent()
    guided = sample(pair(run_node, tiny_model, tiny_model_b, 2.2), positive, positive, start, cfg=1.0)
    dual = DualModelGuider.execute(tiny_model, positive, 2.2, tiny_model_b, positive)[0]
    assert close(guided, run_guider(dual, start))


def test_equals_stock_cfg_with_the_guides_weights_hooked_on_the_negative(
    tiny_model, tiny_model_b, cond, latent, sample, run_node
):
    """The stock route without custom code: negative = positive with 'Create Hook Model as LoRA' of the guide's
    weights.
    """
    positive, start = cond(1), latent()
    guided = sample(pair(run_node, tiny_model, tiny_model_b, 2.2), positive, positive, start, cfg=1.0)
    hooks = comfy.hooks.create_hook_model_as_lora(
        comfy.hooks.get_patch_weights_from_model(tiny_model_b), None, 1.0, 0.0
    )
    negative = comfy.hooks.set_hooks_for_conditioning(positive, hooks)
    assert close(guided, run_guider(CFGGuider.execute(tiny_model, positive, negative, 2.2)[0], start))


def test_two_pairs_on_one_model_add_up(tiny_model, tiny_model_b, cond, latent, sample, run_node):
    """Chained, each term is measured from the main model's own prediction: (w1 - 1) + (w2 - 1) of one guide is one
    weight.
    """
    positive, negative, start = cond(1), cond(2), latent()
    twice = pair(run_node, pair(run_node, tiny_model, tiny_model_b, 1.4), tiny_model_b, 1.3)
    once = pair(run_node, tiny_model, tiny_model_b, 1.7)
    assert close(sample(twice, positive, negative, start), sample(once, positive, negative, start))


def test_pre_cfg_hooks_do_not_change_what_the_guide_is_compared_with(tiny_model, tiny_model_b, cond, latent, run_node):
    """APG hands a changed conditional prediction to CFG; the term is measured from the model's own one, the CFG leg
    keeps APG.
    """
    from comfy_extras.nodes_apg import APG

    positive, negative, start = cond(1), cond(2), latent()
    seen = {}

    def spy(name):
        def post_cfg(args):
            seen[name] = args["denoised"]
            seen["cond"] = args["cond_denoised"]
            return args["denoised"]

        return post_cfg

    model = APG.execute(tiny_model, 0.5, 2.0, 0.0)[0]
    model.set_model_sampler_post_cfg_function(spy("before"))
    model = pair(run_node, model, tiny_model_b, 1.7)
    model.set_model_sampler_post_cfg_function(spy("after"))
    one_step = torch.tensor([5.0, 0.0])
    run_guider(CFGGuider.execute(model, positive, negative, 3.0)[0], start, sigmas=one_step)
    added = seen["after"] - seen["before"]
    main = run_guider(CFGGuider.execute(tiny_model, positive, negative, 1.0)[0], start, sigmas=one_step)
    guide = run_guider(CFGGuider.execute(tiny_model_b, positive, negative, 1.0)[0], start, sigmas=one_step)
    scale = tiny_model.model.latent_format.scale_factor
    assert close(added, 0.7 * (main - guide) * scale)
    assert not close(seen["cond"], main * scale)  # APG had changed it
