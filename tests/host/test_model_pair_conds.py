"""What a conditioning or a latent can carry reaches the guide as it reaches the main model; guiders with two
positives.
"""

from functools import partial

import comfy.cldm.cldm
import comfy.controlnet
import comfy.hooks
import comfy.model_management
import comfy.nested_tensor
import comfy.ops
import comfy.sampler_helpers
import node_helpers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import CFGGuider, DualCFGGuider
from comfy_extras.nodes_perpneg import PerpNegGuider
from pair_tools import STEPS, PaperGuider, pair, run_guider, with_attention_patch, with_lora


@pytest.fixture
def sample(sample):
    return partial(sample, steps=STEPS)


@pytest.fixture
def check(tiny_model, tiny_model_b, latent, sample, run_node):
    """Asserts that the pair equals eq. 6 and differs from the same with `other` conds, so that the feature did act."""

    def run(positive, negative, start=None, other=None, **options):
        start = start or latent(seed=7)
        guider = PaperGuider(tiny_model, tiny_model_b, 3.0, 1.7)
        guider.set_conds(positive, negative)
        model = pair(run_node, tiny_model, tiny_model_b, 1.7)
        result = sample(model, positive, negative, start, cfg=3.0)
        mask = start.get("noise_mask")
        assert torch.equal(result, run_guider(guider, start, denoise_mask=mask))
        if other is not None:
            assert not torch.equal(result, sample(model, *other, start, cfg=3.0))

    return run


def values(conditioning, **options):
    return node_helpers.conditioning_set_values(conditioning, options)


def test_several_positives_of_different_lengths(check, cond):
    check(cond(1) + cond(3, tokens=154), cond(2), other=(cond(1), cond(2)))


def test_areas_on_one_side_only(check, cond):
    """The host gives the other side a cond of the same area; the guide must see the positive that results from that."""
    area = values(cond(3), area=(4, 4, 2, 2), strength=0.8)
    check(cond(1) + area, cond(2), other=(cond(1), cond(2)))
    check(cond(1), cond(2) + area, other=(cond(1), cond(2)))


def test_masks(check, cond):
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:6, :4] = 1.0
    check(values(cond(1), mask=mask, mask_strength=0.9) + cond(3), cond(2), other=(cond(1) + cond(3), cond(2)))


def test_timestep_ranges(check, cond):
    parts = values(cond(1), start_percent=0.0, end_percent=0.5) + values(cond(3), start_percent=0.5, end_percent=1.0)
    check(parts, cond(2), other=(cond(1), cond(2)))


def test_inpainting_with_a_batch(check, cond, latent):
    start = latent(batch=2, seed=3)
    start["noise_mask"] = torch.zeros(1, 1, 64, 64)
    start["noise_mask"][..., :32] = 1.0
    check(cond(1), cond(2), start)


def test_img2img(tiny_model, tiny_model_b, cond, latent, sample, run_node):
    from comfy.samplers import calculate_sigmas

    start = latent(seed=3)
    guided = sample(
        pair(run_node, tiny_model, tiny_model_b, 1.7), cond(1), cond(2), start, steps=2, denoise=0.5, cfg=3.0
    )
    guider = PaperGuider(tiny_model, tiny_model_b, 3.0, 1.7)
    guider.set_conds(cond(1), cond(2))
    sigmas = calculate_sigmas(tiny_model.get_model_object("model_sampling"), "normal", 4)[-3:]
    assert torch.equal(guided, run_guider(guider, start, sigmas=sigmas))


@pytest.fixture
def control():
    """A small ControlNet with random weights and a random hint."""
    with torch.inference_mode(False):
        network = comfy.cldm.cldm.ControlNet(
            image_size=32, in_channels=4, hint_channels=3, model_channels=320, channel_mult=[1], num_res_blocks=[1],
            num_heads=8,
            transformer_depth=[1], transformer_depth_middle=1, context_dim=768, use_spatial_transformer=True,
            legacy=False,
            operations=comfy.ops.disable_weight_init, dtype=torch.float32,
        ).requires_grad_(False)  # fmt: skip
        generator = torch.Generator().manual_seed(8)
        for parameter in network.parameters():
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    control = comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"), manual_cast_dtype=None)
    return control.set_cond_hint(torch.rand(1, 3, 64, 64, generator=generator), 1.0, (0.0, 1.0))


def test_controlnet(check, cond, control):
    """One ControlNet object steers both models, in one run and evaluated for each."""
    positive = values(cond(1), control=control, control_apply_to_uncond=True)
    check(positive, cond(2), other=(cond(1), cond(2)))


def test_a_controlnet_on_the_guides_own_positive(
    tiny_model, tiny_model_b, cond, control, latent, sample, run_node, monkeypatch, paper_with_guide_positive
):
    """It is in no conds of the guider, so the host would not load it."""
    own = values(cond(1), control=control)
    loads = []
    load = comfy.model_management.load_models_gpu

    def spy(models, *args, **kwargs):
        loads.append({patcher.model for patcher in models})
        return load(models, *args, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", spy)
    result = sample(
        pair(run_node, tiny_model, tiny_model_b, 1.7, guide_positive=own), cond(1), cond(2), latent(), cfg=3.0
    )
    assert loads == [{tiny_model.model, tiny_model_b.model, control.control_model}]
    assert torch.equal(result, paper_with_guide_positive(tiny_model, tiny_model_b, own))
    assert not torch.equal(
        result, sample(pair(run_node, tiny_model, tiny_model_b, 1.7), cond(1), cond(2), latent(), cfg=3.0)
    )


def test_nested_latents(tiny_model, tiny_model_b, cond, run_node):
    """Video with sound is sampled as one flat pack of several latents; the guide's conds are told their shapes."""
    told = []

    def shrinking(model, factor):
        patched = model.clone()
        patched.set_model_unet_function_wrapper(lambda _, args: args["input"] * factor)
        return patched

    def shapes_told(model):
        def extra_conds(**given):
            told.append(given["latent_shapes"])
            return {}

        patched = shrinking(model, 0.25)
        patched.add_object_patch("extra_conds", extra_conds)
        return patched

    sigmas = torch.tensor([2.0, 0.0])
    parts = [torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 6)]
    nested = {"samples": comfy.nested_tensor.NestedTensor(parts)}
    model = pair(run_node, shrinking(tiny_model, 0.5), shapes_told(tiny_model_b), 3.0)
    result = run_guider(CFGGuider.execute(model, cond(1), cond(2), 1.0)[0], nested, sigmas=sigmas)
    plain = run_guider(CFGGuider.execute(shrinking(tiny_model, 0.5), cond(1), cond(2), 1.0)[0], nested, sigmas=sigmas)
    for part, plain_part in zip(result.unbind(), plain.unbind(), strict=True):
        assert torch.allclose(part, 2 * plain_part)  # D = 0.5 x + 2 (0.5 x - 0.25 x)
    assert told and all([tuple(shape) for shape in shapes] == [part.shape for part in parts] for shapes in told)


@pytest.fixture
def lora_hook():
    """`lora_hook(model_with_lora)` → a hook group with the same weight patches, as 'Create Hook LoRA' makes it."""

    def make(lora):
        hook = comfy.hooks.WeightHook(strength_model=1.0)
        hook.weights = {key: patches[0][1] for key, patches in lora.patches.items()}
        hook.need_weight_init = False
        hooks = comfy.hooks.HookGroup()
        hooks.add(hook)
        return hooks

    return make


@pytest.mark.parametrize("one_module", [False, True])
def test_hooks_on_the_positive_act_on_both_models(
    tiny_model, tiny_model_b, cond, latent, sample, run_node, lora_hook, one_module
):
    """A LoRA hook on the positive equals that LoRA loaded on both models (at cfg 1, where only the positive counts)."""
    lora = with_lora(tiny_model)
    positive = comfy.hooks.set_hooks_for_conditioning(cond(1), lora_hook(lora))
    guide = with_attention_patch(tiny_model) if one_module else tiny_model_b
    guide_lora = with_attention_patch(lora) if one_module else with_lora(tiny_model_b)
    hooked = sample(pair(run_node, tiny_model, guide, 1.7), positive, cond(2), latent(), cfg=1.0)
    loaded = sample(pair(run_node, lora, guide_lora, 1.7), cond(1), cond(2), latent(), cfg=1.0)
    plain = sample(pair(run_node, tiny_model, guide, 1.7), cond(1), cond(2), latent(), cfg=1.0)
    assert torch.equal(hooked, loaded)
    assert not torch.equal(hooked, plain)


@pytest.mark.parametrize("one_module", [False, True])
def test_hooks_on_the_guides_own_positive_act_on_the_guide(
    tiny_model, tiny_model_b, cond, latent, sample, run_node, lora_hook, one_module
):
    guide = tiny_model if one_module else tiny_model_b
    own = comfy.hooks.set_hooks_for_conditioning(cond(1), lora_hook(with_lora(tiny_model)))
    hooked = sample(pair(run_node, tiny_model, guide, 1.7, guide_positive=own), cond(1), cond(2), latent())
    assert torch.equal(hooked, sample(pair(run_node, tiny_model, with_lora(guide), 1.7), cond(1), cond(2), latent()))


@pytest.fixture
def paper_with_guide_positive(cond, latent):
    def run(main, guide, conditioning):
        guider = PaperGuider(main, guide, 3.0, 1.7)
        guider.set_conds(cond(1), cond(2))
        guider.guide_positive = comfy.sampler_helpers.convert_cond(conditioning)
        return run_guider(guider, latent())

    return run


def test_a_positive_of_its_own_for_the_guide(
    tiny_model, tiny_model_b, cond, latent, sample, run_node, paper_with_guide_positive
):
    model = pair(run_node, tiny_model, tiny_model_b, 1.7, guide_positive=cond(9))
    same = pair(run_node, tiny_model, tiny_model_b, 1.7, guide_positive=cond(1))
    plain = sample(pair(run_node, tiny_model, tiny_model_b, 1.7), cond(1), cond(2), latent(), cfg=3.0)
    result = sample(model, cond(1), cond(2), latent(), cfg=3.0)
    assert torch.equal(result, paper_with_guide_positive(tiny_model, tiny_model_b, cond(9)))
    assert not torch.equal(result, plain)
    assert torch.equal(sample(same, cond(1), cond(2), latent(), cfg=3.0), plain)


def test_the_same_model_as_guide_on_another_prompt_is_a_guidance(tiny_model, cond, latent, sample, run_node):
    """With guide_positive = the negative, eq. 3 is classifier-free guidance: weight w at cfg 1 is cfg w."""
    guided = sample(
        pair(run_node, tiny_model, tiny_model, 3.0, guide_positive=cond(2)), cond(1), cond(2), latent(), cfg=1.0
    )
    stock = sample(tiny_model, cond(1), cond(2), latent(), cfg=3.0)
    assert (guided - stock).abs().max() <= 1e-5 * stock.abs().max()


ONE_STEP = torch.tensor([5.0, 0.0])


def added(tiny_model, tiny_model_b, run_node, make_guider, latent):
    """What the pair adds to a guider's one-step result, and M - B for each cond, all in the latent's own scale."""
    plain = run_guider(make_guider(tiny_model), latent, sigmas=ONE_STEP)
    guided = run_guider(make_guider(pair(run_node, tiny_model, tiny_model_b, 1.7)), latent, sigmas=ONE_STEP)
    return guided - plain


def difference(tiny_model, tiny_model_b, conditioning, latent):
    main, guide = (
        run_guider(CFGGuider.execute(model, conditioning, conditioning, 1.0)[0], latent, sigmas=ONE_STEP)
        for model in (tiny_model, tiny_model_b)
    )
    return main - guide


@pytest.mark.parametrize(("style", "which", "factor"), [("regular", 2, 0.7), ("nested", 1, 0.7 * 2.5)])
def test_dual_cfg_guides_the_prediction_that_the_guider_hands_on(
    tiny_model, tiny_model_b, cond, latent, run_node, style, which, factor
):
    """Regular style guides cond2 (the hooks see CFG of cond2); nested guides cond1, and its outer CFG scales the
    term.
    """

    def make(model):
        return DualCFGGuider.execute(model, cond(1), cond(2), cond(3), 1.5, 2.5, style)[0]

    start = latent(seed=7)
    term = added(tiny_model, tiny_model_b, run_node, make, start)
    expected = factor * difference(tiny_model, tiny_model_b, cond(which), start)
    assert (term - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_perp_neg_guides_the_positive(tiny_model, tiny_model_b, cond, latent, run_node):
    def make(model):
        return PerpNegGuider.execute(model, cond(1), cond(2), cond(3), 3.0, 1.0)[0]

    start = latent(seed=7)
    term = added(tiny_model, tiny_model_b, run_node, make, start)
    expected = 0.7 * difference(tiny_model, tiny_model_b, cond(1), start)
    assert (term - expected).abs().max() <= 1e-4 * expected.abs().max()
