"""What a conditioning or a latent carries stays with the caption; notes, and mistakes explained in one sentence."""

import json
from functools import partial

import caption_tools
import comfy.cldm.cldm
import comfy.controlnet
import comfy.hooks
import comfy.ops
import node_helpers
import pytest
import tiny_networks
import torch
from caption_tools import NEGATIVE, PROMPT, SAYS, STEPS, ByHand, ChosenWords, encoded
from pair_tools import run_guider, with_lora

from guidance_lab.nodes.captions import caption_guidance
from guidance_lab.nodes.host.decode import make_decoder

DECODED = {"decoder": "latent_rgb"}


@pytest.fixture
def guided(run_node, shapes):
    """`guided(captioner, …)` → the MODEL that the node gives."""
    return partial(caption_tools.guided, run_node, shapes)


@pytest.fixture
def sample(sample):
    return partial(sample, steps=STEPS)


def values(conditioning, **options):
    return node_helpers.conditioning_set_values(conditioning, options)


@pytest.fixture
def check(shapes, guided, latent, sample):
    """Asserts that a positive of these parts, (text, options) …, gives the formula with the same parts in the caption's
    words.

    matters: and something else than the caption's words without the options.
    """

    def run(*parts, matters=True):
        model, clip = shapes[:2]
        start = latent(seed=3)
        positive = [entry for text, options in parts for entry in encoded(clip, text, **options)]
        says = [entry for _, options in parts for entry in encoded(clip, SAYS, **options)]
        negative = encoded(clip, NEGATIVE)
        result = sample(guided(ChosenWords(SAYS)), positive, negative, start)
        hand = ByHand(model, positive, negative, 4.0, 1.5, {1: says})
        assert torch.equal(result, run_guider(hand, start, steps=STEPS))
        bare = ByHand(model, positive, negative, 4.0, 1.5, {1: encoded(clip, SAYS)})
        assert not matters or not torch.equal(result, run_guider(bare, start, steps=STEPS))

    return run


def test_areas_and_strengths(check):
    """The host gives every cond of a call the areas of the others, so the bare caption comes to the same here."""
    check((PROMPT, {}), ("a blue ball on white", {"area": (4, 4, 2, 2), "strength": 0.7}), matters=False)


def test_masks(check):
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:6, :4] = 1.0
    check((PROMPT, {"mask": mask, "mask_strength": 0.9}), ("a blue ball on white", {"mask": 1 - mask}))


def test_timestep_ranges(check):
    check(
        (PROMPT, {"start_percent": 0.0, "end_percent": 0.5}),
        ("a blue ball on white", {"start_percent": 0.5, "end_percent": 1.0}),
        matters=False,
    )


def test_long_prompts(check):
    check((" ".join([PROMPT] * 6), {}), matters=False)


@pytest.fixture
def control(shapes):
    """A small ControlNet with random weights for the Shapes model, and a random hint."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = {
            k: v
            for k, v in shapes[0].model.model_config.unet_config.items()
            if k not in ("out_channels", "transformer_depth_output", "num_head_channels")
        }
        network = comfy.cldm.cldm.ControlNet(
            **config, hint_channels=3, num_head_channels=16, operations=comfy.ops.disable_weight_init
        )
        for parameter in network.parameters():
            parameter.data = 0.05 * torch.randn(parameter.shape)
        control = comfy.controlnet.ControlNet(network.eval(), load_device=torch.device("cpu"), manual_cast_dtype=None)
        return control.set_cond_hint(torch.rand(1, 3, 64, 64), 1.0, (0.0, 1.0))


def test_controlnet(check, control):
    starts = []
    pre_run = control.pre_run
    control.pre_run = lambda *args: starts.append(1) or pre_run(*args)
    check((PROMPT, {"control": control}))
    assert (
        len(starts) == 1 + 2 + 1
    )  # by the host alone: in the guided run, by hand for two conds, and by hand for the one that has it


def test_every_caption_is_a_cond_of_its_own_for_those_that_remember_conds(shapes, guided, sample, latent):
    """Caches of other packs know a cond by its uuid: a new caption must not be taken for an old one or the prompt."""
    model, clip = shapes[0].clone(), shapes[1]
    seen = []
    model.set_model_attn2_patch(lambda q, k, v, extra: (seen.append(tuple(extra["uuids"])), (q, k, v))[1])
    words = ChosenWords(SAYS, "a blue car on gray", "a red ball on white")
    sample(guided(words, model=model), encoded(clip, PROMPT), encoded(clip, NEGATIVE), latent(seed=3))
    calls = list(dict.fromkeys(seen))
    assert [len(set(uuids)) for uuids in calls] == [2, 3, 3, 3]
    assert len({uuid for uuids in calls for uuid in uuids}) == 2 + 3


def test_hooks_of_the_positive_change_the_caption_too(shapes, guided, sample, latent):
    """A LoRA hook on the positive: D_b and D_c have to be predictions of the same weights."""
    model, clip = shapes[:2]
    weights = {k: v for k, v in model.model.state_dict().items() if k.endswith("attn2.to_k.weight")}
    generator = torch.Generator().manual_seed(5)
    hook = comfy.hooks.WeightHook()
    hook.need_weight_init = False
    hook.weights = {k: ("diff", (0.2 * torch.randn(v.shape, generator=generator),)) for k, v in weights.items()}
    group = comfy.hooks.HookGroup()
    group.add(hook)
    positive, negative = encoded(clip, PROMPT, hooks=group), encoded(clip, NEGATIVE)
    result = sample(guided(ChosenWords(SAYS)), positive, negative, latent(seed=3))
    for options, equal in (({"hooks": group}, True), ({}, False)):
        hand = ByHand(model, positive, negative, 4.0, 1.5, {1: encoded(clip, SAYS, **options)})
        assert torch.equal(result, run_guider(hand, latent(seed=3), steps=STEPS)) is equal


def test_inpainting(shapes, guided, sample, latent):
    """The captioner sees the given picture around the mask; outside the mask nothing changes; a batch keeps its
    rows.
    """
    start = latent(batch=2, seed=3)
    start["noise_mask"] = torch.zeros(1, 1, 64, 64)
    start["noise_mask"][..., :32] = 1.0
    positive, negative = encoded(shapes[1], PROMPT), encoded(shapes[1], NEGATIVE)
    captioner = ChosenWords([SAYS, "a yellow car on black"])
    result = sample(guided(captioner), positive, negative, start)
    stock = sample(shapes[0], positive, negative, start)
    assert torch.equal(result[..., 4:], stock[..., 4:])
    assert not torch.allclose(result[..., :4], stock[..., :4], atol=1e-2)
    given = make_decoder(DECODED, shapes[0]).decode(shapes[0].model.process_latent_in(start["samples"]))
    for shown in captioner.shown:
        assert torch.allclose(shown[..., 4:], given[..., 4:], atol=1e-5)
        assert not torch.allclose(shown[..., :4], given[..., :4], atol=1e-2)


def test_sizes_of_sdxl_stay_with_the_caption(run_node, shapes, latent, sample):
    """Width, height and crop of the positive go into SDXL's vector; the caption has its own pooled text in the same
    vector.
    """
    model = tiny_networks.build(
        "SDXL", config={**tiny_networks.SDXL, "context_dim": 128, "adm_in_channels": 128 + 1536}
    )
    clip, sizes = shapes[1], {"width": 832, "height": 1216, "crop_w": 8, "target_width": 640}
    positive, negative, says = encoded(clip, PROMPT, **sizes), encoded(clip, NEGATIVE), encoded(clip, SAYS, **sizes)
    guide = caption_tools.guided(run_node, shapes, ChosenWords(SAYS), model=model)
    result = sample(guide, positive, negative, latent(seed=3))
    for caption, equal in ((says, True), (encoded(clip, SAYS), False)):
        hand = ByHand(model, positive, negative, 4.0, 1.5, {1: caption})
        assert torch.equal(result, run_guider(hand, latent(seed=3), steps=STEPS)) is equal


def test_captions_are_in_the_trace(shapes, guided, run_node, sample, latent):
    says = [SAYS, "a yellow car on black"]
    model, trace = run_node("GuidanceLab_GuidanceTrace", model=guided(ChosenWords(says, [PROMPT])))
    sample(model, encoded(shapes[1], PROMPT), encoded(shapes[1], NEGATIVE), latent(batch=2, seed=3))
    record = json.loads(run_node("GuidanceLab_GuidanceTracePlot", trace=trace, after=None)[1])["evaluations"]
    said = [[note["text"] for note in evaluation["notes"]] for evaluation in record]
    assert said == [[], [" | ".join(says)], [f"{PROMPT} | {PROMPT}"], [f"{PROMPT} | {PROMPT}"]]
    terms = [{t["name"]: t for t in evaluation["terms"]}["Caption residual"] for evaluation in record]
    assert [t["weight"] for t in terms] == [0.0, 1.5, 0.0, 0.0]
    assert [t["size"] > 0 for t in terms] == [False, True, False, False]
    costs = [{c["name"]: c for c in evaluation["costs"]} for evaluation in record]
    assert [c["model"]["predictions"] for c in costs] == [2.0, 3.0, 2.0, 2.0]
    assert [c.get("Caption residual", {"calls": 0})["calls"] for c in costs] == [0, 1, 1, 1]


def test_captions_are_shown_on_the_node(shapes, guided, sample, latent, monkeypatch):
    shown = []
    monkeypatch.setattr(caption_guidance, "show_on_node", lambda text, node_id: shown.append(text))
    model = guided(ChosenWords([SAYS, PROMPT]))
    sample(model, encoded(shapes[1], PROMPT), encoded(shapes[1], NEGATIVE), latent(batch=2))
    assert shown == [f"{SAYS}\n{PROMPT}"] * (STEPS - 1)


def test_an_empty_clip_is_refused(run_node, shapes):
    with pytest.raises(ValueError, match="got an empty CLIP"):
        run_node(
            "GuidanceLab_CaptionResidualGuidance", model=shapes[0], clip=None, captioner=ChosenWords(SAYS),
            decoder=DECODED, scale=1.0,
            every=1, start_percent=0.0, end_percent=1.0,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": float("nan")}, "scale is nan; give a finite number"),
        ({"every": 0}, "every is 0; give 1 for a new caption at each step"),
        ({"start_percent": 0.8, "end_percent": 0.2}, "start_percent 0.8 comes after end_percent 0.2"),
        ({"decoder": {"decoder": "vae", "vae": None}}, "The decoder 'vae' needs a VAE"),
        ({"decoder": None}, "There is no decoder"),
    ],
)
def test_bad_settings_are_one_sentence(guided, options, message):
    with pytest.raises(ValueError, match=message):
        guided(ChosenWords(SAYS), **options)


def test_a_clip_with_scheduled_hooks_is_refused(shapes, guided):
    clip = shapes[1].clone()
    clip.use_clip_schedule = True
    clip.patcher.forced_hooks = comfy.hooks.HookGroup()
    with pytest.raises(ValueError, match="This CLIP has scheduled hooks"):
        guided(ChosenWords(SAYS), clip=clip)


@pytest.mark.parametrize("where", ["captioner", "another node"])
def test_one_text_encoder_with_two_loras_is_refused(shapes, guided, where):
    """One module carries one set of LoRAs at a time."""
    lora = shapes[1].clone()
    lora.patcher = with_lora(lora.patcher, part="self_attn.q_proj.weight")
    model = guided(ChosenWords(SAYS)) if where == "another node" else shapes[0]
    models = (shapes[1].patcher,) if where == "captioner" else ()
    with pytest.raises(ValueError, match="text encoder is already used with other LoRAs"):
        guided(ChosenWords(SAYS, models=models), model=model, clip=lora)


def test_the_lora_of_the_clip_is_in_the_captions(shapes, guided, sample, latent):
    lora = shapes[1].clone()
    lora.patcher = with_lora(lora.patcher, part="self_attn.q_proj.weight")
    positive, negative, says = (encoded(lora, text) for text in (PROMPT, NEGATIVE, SAYS))
    assert not torch.equal(says[0][0], encoded(shapes[1], SAYS)[0][0])
    result = sample(guided(ChosenWords(SAYS), clip=lora), positive, negative, latent(seed=3))
    hand = ByHand(shapes[0], positive, negative, 4.0, 1.5, {1: says})
    assert torch.equal(result, run_guider(hand, latent(seed=3), steps=STEPS))
