"""Layer prompts in whole samplings: each conditioning keeps its own, whatever the host or another node does with it.

The reference is the stock model whose conditionings are evaluated one at a time, with PyTorch hooks on the attention of
the one that has layer prompts. Batched and single evaluations differ by float noise also without the pack, hence the
tolerance.
"""

from dataclasses import replace

import comfy.cldm.cldm
import comfy.controlnet
import comfy.hooks
import comfy.ops
import node_helpers
import pytest
import tiny_networks
import torch
from comfy_extras.nodes_custom_sampler import DualCFGGuider
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_perpneg import PerpNeg, PerpNegGuider
from comfy_extras.nodes_sag import SelfAttentionGuidance
from pair_tools import CallCounter, run_guider, with_lora
from per_block_tools import attentions, conditioning, contexts_by_hook, told_apart

from guidance_lab.nodes.layers.cross_attention import KEY, carry, layer_table, read_layer_prompts


def texts(count, seed, tokens=5):
    return [torch.randn(1, tokens, 24, generator=torch.Generator().manual_seed(seed + i)) for i in range(count)]


class Case:
    """A tiny UNet of 11 layers, two conditionings with layer prompts (A, B) and plain ones, for the pack and for the
    reference.
    """

    def __init__(self):
        self.model = tiny_networks.build("SD15")
        table = layer_table(self.model)
        self.bases, self.layers = texts(2, 50), [texts(len(table), 100), texts(len(table), 200)]
        (self.a, self.b) = (
            conditioning(table, base, layers, range(len(table)))
            for base, layers in zip(self.bases, self.layers, strict=True)
        )
        self.plain = [[base, {}] for base in self.bases]
        self.negative, self.middle = tiny_networks.positive(2), tiny_networks.positive(3)

    def models(self, change=lambda model: model):
        """The same change on both: the model that reads layer prompts, and the reference that is told them from
        outside.
        """
        return read_layer_prompts(change(self.model)), told_apart(
            change(self.model), list(zip(self.bases, self.layers, strict=True))
        )


@pytest.fixture
def case():
    return Case()


def values(cond, **options):
    return node_helpers.conditioning_set_values(cond, options)


def same(ours, reference, other):
    """Equal to the reference, and clearly different from the sampling without layer prompts."""
    assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()
    assert (ours - other).abs().max() > 1e-3 * reference.abs().max()


@pytest.fixture
def check(case, latent, sample):
    """Samples with `build(a, b)` → (positive, negative) from the pack's conditionings, and from the plain ones for the
    reference.
    """

    def run(build, change=lambda model: model, start=None, **options):
        start = start or latent(h=8, w=8, seed=7)
        ours, reference = case.models(change)
        plain = build([case.plain[0]], [case.plain[1]])
        result = sample(ours, *build(case.a, case.b), start, steps=2, **options)
        same(
            result,
            sample(reference, *plain, start, steps=2, **options),
            sample(change(case.model), *plain, start, steps=2, **options),
        )

    return run


def test_positive_alone_and_both_sides(case, check):
    check(lambda a, b: (a, case.negative))
    check(lambda a, b: (a, b))
    check(lambda a, b: (a, case.negative), cfg=1.0)


def test_batches(case, check, latent):
    check(lambda a, b: (a, case.negative), start=latent(batch=3, seed=1))


def test_two_positives_and_areas(case, check):
    """The host gives the other side a copy of each area; its layer prompts must be those of the other side."""
    check(lambda a, b: (a + b, case.negative))
    check(lambda a, b: (values(a, area=(4, 4, 0, 0)) + values(b, area=(4, 4, 4, 4)), case.negative))
    check(lambda a, b: (values(a, area=(4, 4, 0, 0)) + case.middle, values(case.negative, area=(4, 4, 2, 2))))


def test_masks_and_timestep_ranges(case, check):
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:6, :4] = 1.0
    check(lambda a, b: (values(a, mask=mask, mask_strength=0.9) + b, case.negative))
    check(
        lambda a, b: (
            values(a, start_percent=0.0, end_percent=0.5) + values(b, start_percent=0.5, end_percent=1.0),
            case.negative,
        )
    )


def test_inpainting(case, check, latent):
    start = latent(batch=2, seed=3)
    start["noise_mask"] = torch.zeros(1, 1, 64, 64)
    start["noise_mask"][..., :32] = 1.0
    check(lambda a, b: (a, case.negative), start=start)


def test_hooks_on_one_side(case, check):
    """A LoRA hook on the positive: the host evaluates both sides one after the other, under other weights."""
    weights = {key: value for key, value in case.model.model.state_dict().items() if key.endswith("attn1.to_v.weight")}
    hook = comfy.hooks.WeightHook()
    hook.need_weight_init = False
    hook.weights = {key: ("diff", (0.3 * torch.ones_like(value),)) for key, value in weights.items()}
    group = comfy.hooks.HookGroup()
    group.add(hook)
    check(lambda a, b: (values(a, hooks=group), case.negative))


def guiders(case):
    return {
        "dual": lambda model, a: DualCFGGuider.execute(
            model, case.middle, a, case.negative, 3.0, 2.0, "regular"
        ).result[0],
        "dual nested": lambda model, a: DualCFGGuider.execute(
            model, a, case.middle, case.negative, 3.0, 2.0, "nested"
        ).result[0],
        "perp-neg": lambda model, a: PerpNegGuider.execute(model, a, case.negative, case.middle, 3.0, 1.0).result[0],
    }


@pytest.mark.parametrize("name", ["dual", "dual nested", "perp-neg"])
def test_guiders_with_three_conditionings(case, latent, name):
    build = guiders(case)[name]
    ours, reference = case.models()
    start = latent(seed=7)
    same(
        run_guider(build(ours, case.a), start),
        run_guider(build(reference, [case.plain[0]]), start),
        run_guider(build(case.model, [case.plain[0]]), start),
    )


CHANGES = {
    "SAG": lambda model: SelfAttentionGuidance.execute(model, 0.7, 2.0).result[0],
    "PAG": lambda model: PerturbedAttentionGuidance.execute(model, 2.0).result[0],
    "Perp-Neg": lambda model: PerpNeg.execute(model, tiny_networks.positive(4), 1.0).result[0],
    "LoRA": with_lora,
    "HyperTile": lambda model: HyperTile.execute(model, 32, 1, 0, False)[0],
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_nodes_on_the_model(case, check, latent, name):
    check(lambda a, b: (a, case.negative), CHANGES[name], start=latent(h=16, w=16, seed=7), cfg=5.0)


def test_attention_replacers_and_patches_compose(case, check):
    """What IPAdapter-like packs do: attention of their own on projected keys and values, and patches that add to the
    context.
    """

    def replaced(model):
        patched = model.clone()

        def attention(q, k, v, extra):
            return torch.nn.functional.scaled_dot_product_attention(q, k * 1.1, v) + 0.1 * q

        patched.set_model_attn2_replace(attention, "middle", 0)
        patched.set_model_attn2_replace(attention, "input", 1)
        return patched

    check(lambda a, b: (a, case.negative), replaced)


def test_attn2_patches_see_the_layers_own_context(case, latent, sample):
    """As the hypernetwork node: a patch set before or after ours gets the layer's context, here to check that it is
    that.
    """
    seen = []

    def patch(n, context, value, extra):
        seen.append((extra["transformer_index"], context[-1:].clone()))
        return n, context, value

    before, after = case.model.clone(), read_layer_prompts(case.model)
    before.set_model_attn2_patch(patch)
    after.set_model_attn2_patch(patch)
    for model in (read_layer_prompts(before), after):
        seen.clear()
        sample(model, case.a, case.negative, latent(seed=7), steps=1)
        assert len(seen) == 11 and all(torch.equal(context, case.layers[0][i]) for i, context in seen)


@pytest.fixture
def control():
    """A small ControlNet with random weights and a random hint, for the UNet of `Case`."""
    layout = {
        key: value
        for key, value in tiny_networks.SD15.items()
        if key not in ("out_channels", "transformer_depth_output")
    }
    with torch.inference_mode(False):
        network = comfy.cldm.cldm.ControlNet(
            hint_channels=3, operations=comfy.ops.disable_weight_init, dtype=torch.float32, **layout
        ).requires_grad_(False)
        generator = torch.Generator().manual_seed(8)
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    control = comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"), manual_cast_dtype=None)
    return control.set_cond_hint(torch.rand(1, 3, 64, 64, generator=generator), 1.0, (0.0, 1.0))


def test_controlnet_reads_the_base_or_what_was_chosen(case, check, control):
    options = {"control": control, "control_apply_to_uncond": True}
    check(lambda a, b: (values(a, **options), case.negative))
    check(lambda a, b: (values(a, **options, cross_attn_controlnet=texts(1, 300)[0]), case.negative))


def test_a_controlnets_layers_can_read_what_the_unets_read(case, control, latent, sample):
    """Against PyTorch hooks on the ControlNet's own attention; batched with a plain negative it is the same."""
    start = latent(seed=7)

    def matching(entries):
        carried = entries[0][1]["model_conds"][KEY].cond
        return values([carry([case.bases[0], {}], replace(carried, matching_control=True))], control=control)

    model, reference = case.models()
    attention = [module for _, module in attentions(control.control_model)]
    assert len(attention) == 5  # four on the way down and the middle
    with torch.inference_mode(False):
        for module in attention:
            module.to_out[0].weight *= 30.0  # among random weights the text decides little
    ours = sample(model, matching(case.a), case.negative, start, steps=2)
    with contexts_by_hook(attention, case.layers[0][:5]):
        expected = sample(reference, values([case.plain[0]], control=control), case.negative, start, steps=2)
    base = sample(model, values(case.a, control=control), case.negative, start, steps=2)
    same(ours, expected, base)
    both = {"control": control, "control_apply_to_uncond": True}
    apart = model.clone()
    apart.add_object_patch("memory_required", lambda *args, **kwargs: float("inf"))
    counter = CallCounter(model)
    together = sample(counter.model, values(matching(case.a), **both), case.negative, start, steps=2)
    assert counter.rows == [2, 2]
    split = sample(apart, values(matching(case.a), **both), case.negative, start, steps=2)
    assert (together - split).abs().max() <= 1e-5 * split.abs().max()
    assert not any(module._forward_pre_hooks for module in control.control_model.modules())


@pytest.mark.parametrize("tokens", [5, 10])
def test_one_call_for_both_sides_also_at_other_lengths(case, latent, sample, tokens):
    """CFG with any negative stays one batched call; where memory is short the host's two calls give the same."""
    counter = CallCounter(read_layer_prompts(case.model))
    negative = tiny_networks.positive(2, tokens=tokens)
    whole = sample(counter.model, case.a, negative, latent(seed=7), steps=2)
    assert counter.rows == [2, 2]
    split = read_layer_prompts(case.model)
    split.add_object_patch("memory_required", lambda *args, **kwargs: float("inf"))
    counter = CallCounter(split)
    apart = sample(counter.model, case.a, negative, latent(seed=7), steps=2)
    assert counter.rows == [1, 1, 1, 1]
    assert (apart - whole).abs().max() <= 1e-5 * whole.abs().max()
    reference = told_apart(case.model, [(case.bases[0], case.layers[0])])
    same(whole, sample(reference, [case.plain[0]], negative, latent(seed=7), steps=2), torch.zeros_like(whole))


def test_three_runs_are_the_same_run_and_leave_no_trace(case, latent, sample):
    def stock():
        return sample(case.model, [case.plain[0]], case.negative, latent(seed=7), steps=2)

    before = stock()
    model = read_layer_prompts(case.model)
    runs = [sample(model, case.a, case.negative, latent(seed=7), steps=2) for _ in range(3)]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])
    assert torch.equal(sample(model, [case.plain[0]], case.negative, latent(seed=7), steps=2), before)
    assert torch.equal(stock(), before)
