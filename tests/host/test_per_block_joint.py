"""A prompt per block in networks whose text and image share a stream: the definition, exactly, at the stated cost."""

import comfy.controlnet
import comfy.samplers
import pytest
import tiny_joint
import tiny_networks
import torch
from per_block_tools import conditioning
from tiny_joint import CHEAP, CONFIGS
from torch.utils.flop_counter import FlopCounterMode

from guidance_lab.nodes.layers.cross_attention import layer_table, read_layer_prompts

SIGMA = 0.6


def per_block(model, base, contexts, choice):
    return conditioning(layer_table(model), base[0], contexts, choice, **base[1])


def with_context(base, context):
    return [[context, base[1]]]


def error(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_prompt_in_all_blocks_is_the_plain_run(name):
    model, base = tiny_joint.build(name), tiny_joint.prompt(1)
    count, x = len(layer_table(model)), tiny_networks.noisy(model)
    reading = read_layer_prompts(model)
    plain = tiny_networks.predict(model, x, SIGMA, [base])
    bound = 0.0 if name in CHEAP else 1e-6
    same = per_block(model, base, [base[0].clone()], [0] * count)
    assert error(tiny_networks.predict(reading, x, SIGMA, same), plain) <= bound
    mixed = per_block(model, base, [base[0].clone()], [0 if i % 2 else None for i in range(count)])
    assert error(tiny_networks.predict(reading, x, SIGMA, mixed), plain) <= 1e-6
    other = tiny_joint.prompt(2)[0]
    everywhere = per_block(model, base, [other], [0] * count)
    expected = tiny_networks.predict(model, x, SIGMA, with_context(base, other))
    assert error(tiny_networks.predict(reading, x, SIGMA, everywhere), expected) <= bound
    assert error(plain, expected) > 1e-2
    assert torch.equal(tiny_networks.predict(reading, x, SIGMA, [base]), plain)


CHOICES = {
    "in turn": [None, 0, 1],
    "first half": [0, 0, 0, 0, None, None, None, None],
    "the other twice": [None, 0, None, None, 0, None],
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_read_what_the_definition_says(name, choice):
    """Against one batch row per prompt, whose image tokens PyTorch hooks make equal after each block."""
    model, base = tiny_joint.build(name), tiny_joint.prompt(1)
    contexts = [tiny_joint.prompt(seed)[0] for seed in (2, 3)]
    count, x = len(layer_table(model)), tiny_networks.noisy(model)
    reads = [CHOICES[choice][i % len(CHOICES[choice])] for i in range(count)]
    ours = tiny_networks.predict(read_layer_prompts(model), x, SIGMA, per_block(model, base, contexts, reads))
    slow = tiny_joint.slow(name, model, [base[0], *contexts], [0 if read is None else read + 1 for read in reads])
    expected = tiny_networks.predict(slow, x, SIGMA, [base])
    assert error(ours, expected) <= 1e-6
    plain = tiny_networks.predict(model, x, SIGMA, [base])
    assert error(expected, plain) > 1e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_whole_samplings_with_cfg(name, sample):
    """Positive, negative or both: neither reads the other's prompts, batched or not, three runs in a row."""
    model = read_layer_prompts(tiny_joint.build(name))
    count = len(layer_table(model))
    start = {"samples": 0 * tiny_networks.noisy(model)}
    base, contexts = tiny_joint.prompt(1), [tiny_joint.prompt(seed)[0] for seed in (2, 3, 4)]
    positive = per_block(model, base, contexts[:2], [i % 2 for i in range(count)])
    negative_base = tiny_joint.prompt(5)
    negative = per_block(model, negative_base, contexts[2:], [None if i % 3 else 0 for i in range(count)])
    apart = model.clone()
    apart.add_object_patch("memory_required", lambda *args, **kwargs: float("inf"))
    for sides in ((positive, [negative_base]), ([base], negative), (positive, negative)):
        together = sample(model, *sides, start, steps=2, cfg=3.0)
        assert error(together, sample(apart, *sides, start, steps=2, cfg=3.0)) <= 1e-5
        assert torch.equal(together, sample(model, *sides, start, steps=2, cfg=3.0))
        assert error(together, sample(model, [base], [negative_base], start, steps=2, cfg=3.0)) > 1e-3
    equal = per_block(model, base, [base[0].clone()], [0] * count)
    plain = sample(model, [base], [negative_base], start, steps=2, cfg=3.0)
    assert error(sample(model, equal, [negative_base], start, steps=2, cfg=3.0), plain) <= 2e-6


@pytest.mark.parametrize("name", CHEAP)
def test_a_prompt_of_another_length(name):
    """19 tokens beside 7: alone in all blocks it is its own run exactly, and mixed what the definition says."""
    model, base, long = tiny_joint.build(name), tiny_joint.prompt(1), tiny_joint.prompt(2, 19)[0]
    count, x = len(layer_table(model)), tiny_networks.noisy(model)
    reading = read_layer_prompts(model)
    own = tiny_networks.predict(reading, x, SIGMA, per_block(model, base, [long], [0] * count))
    assert error(own, tiny_networks.predict(model, x, SIGMA, with_context(base, long))) == 0.0
    reads = [0, None] * (count // 2)
    mixed = tiny_networks.predict(reading, x, SIGMA, per_block(model, base, [long], reads))
    slow = tiny_joint.slow(name, model, [base[0], long], [0 if read is None else 1 for read in reads])
    assert error(mixed, tiny_networks.predict(slow, x, SIGMA, [base])) <= 1e-6
    assert error(mixed, own) > 1e-3


def test_qwen_masks_the_padding_of_shorter_prompts():
    model, base, long = tiny_joint.build("QwenImage"), tiny_joint.prompt(1), tiny_joint.prompt(2, 19)[0]
    count, x = len(layer_table(model)), tiny_networks.noisy(model)
    reading = read_layer_prompts(model)
    for context, entry in ((long, base), (base[0], [long, base[1]])):
        own = tiny_networks.predict(reading, x, SIGMA, per_block(model, entry, [context], [0] * count))
        assert error(own, tiny_networks.predict(model, x, SIGMA, with_context(base, context))) <= 1e-6
    mixed = tiny_networks.predict(reading, x, SIGMA, per_block(model, base, [long], [0, None] * (count // 2)))
    swapped = per_block(model, [long, base[1]], [base[0]], [None, 0] * (count // 2))
    assert error(tiny_networks.predict(reading, x, SIGMA, swapped), mixed) <= 1e-6


@pytest.mark.parametrize("name", ["SD3", "Lumina2"])
def test_other_lengths_are_refused_where_they_cannot_be_exact(name):
    model, base, long = tiny_joint.build(name), tiny_joint.prompt(1), tiny_joint.prompt(2, 19)[0]
    cond = per_block(model, base, [long], [0, None] * (len(layer_table(model)) // 2))
    with pytest.raises(ValueError, match="needs prompts of one length for this model"):
        tiny_networks.predict(read_layer_prompts(model), tiny_networks.noisy(model), SIGMA, cond)


def flops(model, x, cond) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        tiny_networks.predict(model, x, SIGMA, cond)
    return counter.get_total_flops()


@pytest.mark.parametrize("streams", [2, 3])
@pytest.mark.parametrize("name", CHEAP)
def test_the_cost_is_the_formulas(name, streams):
    """1 + (S - 1) N_text / (N_text + N_image) of the blocks, for the blocks after which the others are still read."""
    model, tokens, side = tiny_joint.build(name), 64, 64
    base = tiny_joint.prompt(1, tokens)
    contexts = [tiny_joint.prompt(seed, tokens)[0] for seed in range(2, streams + 1)]
    count, x = len(layer_table(model)), tiny_networks.noisy(model, 1, side, side)
    numbers = [None, *range(streams - 1)]
    reads = [numbers[i % streams] for i in range(count)]
    last = {read: max(i for i in range(count) if reads[i] == read) for read in numbers}
    others = sum(sum(read != reads[i] and last[read] > i for read in numbers) for i in range(count)) / count
    share = tokens / (tokens + (side // 2) ** 2)
    plain = flops(model, x, [base])
    ratio = flops(read_layer_prompts(model), x, per_block(model, base, contexts, reads)) / plain
    assert ratio == pytest.approx(1 + others * share, rel=0.01)
    assert others > 0.6 * (streams - 1)


@pytest.mark.parametrize("name", ["SD3", "QwenImage", "Lumina2"])
def test_rows_cost_an_evaluation_each(name):
    model, base = tiny_joint.build(name), tiny_joint.prompt(1)
    contexts, x = [tiny_joint.prompt(seed)[0] for seed in (2, 3)], tiny_networks.noisy(model)
    reads = [(None, 0, 1)[i % 3] for i in range(len(layer_table(model)))]
    ratio = flops(read_layer_prompts(model), x, per_block(model, base, contexts, reads)) / flops(model, x, [base])
    assert ratio == pytest.approx(3.0, rel=0.01)


@pytest.mark.parametrize("name", ["Flux", "QwenImage"])
def test_reference_latents_and_controls(name):
    """More image tokens, and what a ControlNet adds to them, are the same for all prompts."""
    model, base = tiny_joint.build(name), tiny_joint.prompt(1)
    x, reference = tiny_networks.noisy(model), tiny_networks.noisy(model, 1, seed=4)
    base[1]["reference_latents"] = [reference]
    contexts = [tiny_joint.prompt(2)[0]]
    reads = [(None, 0)[i % 2] for i in range(len(layer_table(model)))]
    ours = tiny_networks.predict(read_layer_prompts(model), x, SIGMA, per_block(model, base, contexts, reads))
    slow = tiny_joint.slow(name, model, [base[0], *contexts], [0 if read is None else 1 for read in reads])
    expected = tiny_networks.predict(slow, x, SIGMA, [base])
    assert error(ours, expected) <= 1e-6
    del base[1]["reference_latents"]
    assert error(tiny_networks.predict(slow, x, SIGMA, [base]), expected) > 1e-3

    class Control(comfy.controlnet.ControlBase):
        """Adds to the image tokens after the first block, as DiT ControlNets do."""

        def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
            tokens = x_noisy.shape[-1] * x_noisy.shape[-2] // 4
            return {"input": [torch.full((x_noisy.shape[0], tokens, 64), 0.3)], "output": []}

    base[1]["control"] = Control()
    ours = tiny_networks.predict(read_layer_prompts(model), x, SIGMA, per_block(model, base, contexts, reads))
    assert error(ours, tiny_networks.predict(slow, x, SIGMA, [base])) <= 1e-6


def test_masks_and_added_tokens_are_refused():
    model, base = tiny_joint.build("Flux"), tiny_joint.prompt(1)
    x, cond = tiny_networks.noisy(model), per_block(model, base, [tiny_joint.prompt(2)[0]], [0, None] * 4)
    added = read_layer_prompts(model)
    added.set_model_patch(lambda args: args, "post_input")
    with pytest.raises(ValueError, match="adds tokens at the input"):
        tiny_networks.predict(added, x, SIGMA, cond)
    base[1].update(attention_mask=torch.ones(1, 12), attention_mask_img_shape=(4, 3))
    masked = per_block(model, base, [tiny_joint.prompt(2)[0]], [0, None] * 4)
    with pytest.raises(ValueError, match="together with an attention mask"):
        tiny_networks.predict(read_layer_prompts(model), x, SIGMA, masked)


def test_the_nodes_take_them(run_node):
    """Double and single blocks by name, by number and by kind; strengths where both texts have one length."""
    model, base = tiny_joint.build("Flux"), tiny_joint.prompt(1)
    assert layer_table(model).names == tuple(f"{kind}_blocks.{i}" for kind in ("double", "single") for i in range(4))
    lines = "double: A\nsingle_blocks.1-single_blocks.2 x0.5: B\n7 @0-0.5: A"
    sockets = {"A": [tiny_joint.prompt(2)], "B": [tiny_joint.prompt(3)]}
    options = dict(model=model, base=[base], layers=lines)
    reading, cond = run_node("GuidanceLab_PerBlockConditioning", conditionings=sockets, **options)
    x = tiny_networks.noisy(model)
    ours = tiny_networks.predict(reading, x, 0.9, cond)
    contexts = [base[0], sockets["A"][0][0], torch.lerp(base[0], sockets["B"][0][0], 0.5)]
    slow = tiny_joint.slow("Flux", model, contexts, [1, 1, 1, 1, 0, 2, 2, 1])
    assert error(ours, tiny_networks.predict(slow, x, 0.9, [base])) <= 1e-6
    sockets["B"] = [tiny_joint.prompt(3, 9)]
    with pytest.raises(ValueError, match="blends texts of one length for flux, and the base prompt has 7 tokens"):
        run_node("GuidanceLab_PerBlockConditioning", conditionings=sockets, **options)


def test_a_wrapper_that_evaluates_row_by_row():
    model, base = tiny_joint.build("Flux"), tiny_joint.prompt(1)
    cond = per_block(model, base, [tiny_joint.prompt(2)[0]], [0, None] * 4)
    negative = [tiny_joint.prompt(3)]
    x = tiny_networks.noisy(model)

    def rows(apply_model, args):
        def part(value, row):
            return value[row : row + 1] if isinstance(value, torch.Tensor) else value

        def one(row):
            c = {key: part(value, row) for key, value in args["c"].items()}
            return apply_model(part(args["input"], row), part(args["timestep"], row), **c)

        return torch.cat([one(row) for row in range(len(args["input"]))])

    def guided(model):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(cond, negative)
        guider.set_cfg(3.0)
        with torch.inference_mode():
            return guider.sample(
                x, 0 * x, comfy.samplers.sampler_object("euler"), torch.tensor([1.0, 0.5, 0.0]), seed=0
            )

    whole, split = read_layer_prompts(model), read_layer_prompts(model)
    split.set_model_unet_function_wrapper(rows)
    assert error(guided(split), guided(whole)) <= 1e-5
