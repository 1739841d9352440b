"""Objective: Caption Likelihood against each family's own forward pass: value, gradient, pixels, batches, and every
refusal.
"""

import comfy.model_management
import numpy as np
import objective_tools
import pytest
import tiny_captioner
import torch
import transformers
from tiny_captioner import SIDE

from guidance_lab.guidance.crops import whole_view
from guidance_lab.nodes.captions import Captioner
from guidance_lab.nodes.captions.captioner_loader import read_captioner
from guidance_lab.nodes.shapes.demo_models import ShapesCaptioner
from guidance_lab.shapes.render import render
from guidance_lab.shapes.world import random_scene

NODE = "GuidanceLab_ObjectiveCaptionLikelihood"
FAMILIES = ["blip", "blip2", "git", "florence2"]
CLASSES = {
    "blip": transformers.BlipForConditionalGeneration, "blip2": transformers.Blip2ForConditionalGeneration,
    "git": transformers.GitForCausalLM, "florence2": transformers.Florence2ForConditionalGeneration,
}  # fmt: skip
LINES = ["a red ball", "a blue cube left of a green star on white"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny captioner of each family."""
    root = tmp_path_factory.mktemp("captioners")
    for name in FAMILIES:
        getattr(tiny_captioner, name)(root / name)
    return root


@pytest.fixture(scope="module")
def captioners(folder):
    with torch.inference_mode():  # as the node reads them
        return {name: read_captioner(folder / name) for name in FAMILIES}


@pytest.fixture
def scorer(run_node, captioners):
    """`scorer(family, text, …)` → the scorer that the node makes."""

    def make(name, text=None, **options):
        given = captioners[name] if isinstance(name, str) else name
        ((_, scorer),) = run_node(NODE, captioner=given, text="\n".join(LINES) if text is None else text, **options)[
            0
        ].parts
        comfy.model_management.load_models_gpu(list(scorer.models))
        return scorer

    return make


def own_forward(name, folder, view, line):
    """(log-likelihoods [B, T] of the words of `line`, the pixels they depend on): transformers' whole forward pass, its
    own processor for the picture, one text for the whole batch, no padding.
    """
    network = CLASSES[name].from_pretrained(folder / name).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder / name)
    task = {"text": ["<CAPTION>"] * len(view)} if name == "florence2" else {}
    inputs = processor(images=list(view), do_rescale=False, return_tensors="pt", **task)
    pixels = inputs["pixel_values"].requires_grad_()
    words = processor.tokenizer(line, add_special_tokens=False)["input_ids"]
    # [DEC] words [SEP]; Florence-2 starts with the start of its decoder and then the start of a sentence.
    row = [*([2, 2] if name == "florence2" else [4]), *words, 3]
    ids = torch.tensor([row] * len(view))
    if name == "florence2":
        logits = network(input_ids=inputs["input_ids"], pixel_values=pixels, decoder_input_ids=ids).logits
    elif name == "blip2":
        places = torch.full((len(view), network.config.num_query_tokens), network.config.image_token_index)
        logits = network(pixel_values=pixels, input_ids=torch.cat([places, ids], 1)).logits
    else:
        logits = network(pixel_values=pixels, input_ids=ids).logits
    logits = logits[:, -len(row) :].double()
    said = [logits[:, t, row[t + 1]] - logits[:, t].exp().sum(-1).log() for t in range(len(row) - 1)]
    return torch.stack(said, 1), pixels


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("per", ["token", "caption"])
def test_it_is_the_captioners_own_log_likelihood(folder, scorer, name, per):
    made, view = scorer(name, per=per), objective_tools.pictures(2, SIDE)
    expected = gradient = 0
    for line in LINES:
        said, pixels = own_forward(name, folder, view, line)
        value = (said.mean(1) if per == "token" else said.sum(1)) / len(LINES)
        expected = expected + value.detach()
        gradient = gradient + torch.autograd.grad(value.sum(), pixels)[0]
    gradient = gradient / torch.tensor(made.likelihood.std)[:, None, None]
    assert made.side == SIDE
    torch.testing.assert_close(
        made.score(view, objective_tools.scoring_step()).double(), expected, rtol=1e-5, atol=1e-5
    )
    own = objective_tools.gradient(made, view)
    assert own.abs().max() > 0
    torch.testing.assert_close(own, gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


@pytest.mark.parametrize("name", FAMILIES)
def test_minus_the_loss_of_transformers(folder, scorer, name):
    """The loss that the network itself computes when it is given labels, for one picture and one text."""
    made, view = scorer(name, LINES[1]), objective_tools.pictures(1, SIDE)
    network, texts = made.models[0].model.network, made.texts
    pixels = (view - torch.tensor(made.likelihood.mean)[:, None, None]) / torch.tensor(made.likelihood.std)[
        :, None, None
    ]
    ids = texts.ids
    with torch.no_grad():
        if name == "florence2":
            asked = made.likelihood.asked
            loss = network(input_ids=asked, pixel_values=pixels, labels=ids[:, 1:]).loss
        elif name == "blip2":
            places = torch.full((1, network.config.num_query_tokens), network.config.image_token_index)
            labels = torch.cat([torch.full_like(places, -100), ids], 1)
            labels[:, places.shape[1]] = -100  # the start token is given
            loss = network(pixel_values=pixels, input_ids=torch.cat([places, ids], 1), labels=labels).loss
        else:
            loss = network(pixel_values=pixels, input_ids=ids, labels=ids).loss
    expected = -loss
    if name == "blip":  # the only one that smooths its labels in training
        assert network.config.text_config.label_smoothing == 0.0
    assert made.score(view, objective_tools.scoring_step()).item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_and_batches(folder, scorer, name):
    objective_tools.check_batch(scorer(name), SIDE)
    made = scorer(read_captioner(folder / name))
    made.models[0].model.double()  # random networks are too steep for differences in float32
    objective_tools.check_gradient(made, objective_tools.pictures(2, SIDE).double(), step=3e-4, tolerance=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_pixels_are_those_of_the_captioners_processor(folder, scorer, name):
    """Resized and normalized, from a picture that is larger than what the captioner sees."""
    made = scorer(name)
    processor = transformers.AutoProcessor.from_pretrained(folder / name)
    task = {"text": ["<CAPTION>"]} if name == "florence2" else {}
    heights = [(64, 64), (80, 64)] if made.fill is None else [(64, 64)]
    for height, width in heights:
        picture = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))
        own = whole_view(picture, made.side, made.fill)
        own = (own - torch.tensor(made.likelihood.mean)[:, None, None]) / torch.tensor(made.likelihood.std)[
            :, None, None
        ]
        theirs = processor(images=list(picture), do_rescale=False, return_tensors="pt", **task)["pixel_values"]
        assert (own - theirs).abs().max() <= 1e-3


def test_only_git_cuts_and_so_gets_margins(scorer):
    assert [scorer(name).fill for name in FAMILIES] == [None, None, 0.0, None]


def test_against_is_subtracted(scorer):
    view, at = objective_tools.pictures(2, SIDE), objective_tools.scoring_step()
    both = scorer("blip", LINES[0], against="a blue ball\na green cube").score(view, at)
    wanted, *unwanted = (scorer("blip", line).score(view, at) for line in (LINES[0], "a blue ball", "a green cube"))
    torch.testing.assert_close(both, wanted - sum(unwanted) / 2)
    same = scorer("blip", LINES[0], against=LINES[0])
    assert same.score(view, at).abs().max() < 1e-6 and objective_tools.gradient(same, view).abs().max() < 1e-6


def test_each_picture_passes_the_vision_tower_once(scorer):
    made, rows = scorer("blip", "\n".join(LINES * 2), against="a blue ball"), []
    vision = made.models[0].model.network.vision_model
    handle = vision.register_forward_hook(
        lambda module, args, kwargs, out: rows.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    made.score(objective_tools.pictures(3, SIDE), objective_tools.scoring_step())
    handle.remove()
    assert rows == [3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_networks_have_a_float32_score(scorer, dtype):
    captioner, scene = ShapesCaptioner(), random_scene(np.random.default_rng(3), 2)
    made = scorer(captioner, "a red cube left of a blue ball on white")
    view = torch.from_numpy(render(scene).copy()).movedim(-1, 0)[None].float() / 255
    exact, slope = made.score(view, objective_tools.scoring_step()), objective_tools.gradient(made, view)
    made.models[0].model.to(dtype)
    score, rough = made.score(view, objective_tools.scoring_step()), objective_tools.gradient(made, view)
    assert score.dtype == rough.dtype == torch.float32
    assert score.item() == pytest.approx(exact.item(), rel=0.02)
    assert torch.nn.functional.cosine_similarity(slope.flatten(), rough.flatten(), 0) > 0.95


def test_captions_before_it_leave_its_gradient_alone(scorer, captioners):
    """Whatever a network keeps from its captions, which are made in inference mode."""
    for name in FAMILIES:
        made, view = scorer(name), objective_tools.pictures(2, SIDE)
        before = objective_tools.gradient(made, view)
        captioners[name].caption(view)
        assert torch.equal(objective_tools.gradient(made, view), before)
        captioners[name].caption(view)


def test_one_captioner_is_loaded_once(scorer, captioners):
    assert scorer("blip").models[0] is captioners["blip"].models[0]


def test_memory_counts_texts_and_precision(scorer):
    """A Florence-2 of 768 pixels keeps six times what a CLIP does, so the host has to be told."""
    one, three = scorer("florence2", LINES[0]), scorer("florence2", "\n".join(LINES), against="a blue ball")
    assert one.memory == 2 * 3150 * 2**20 * (SIDE / 768) ** 2 and three.memory == one.memory + 4 * 70 * 2**20


def test_random_numbers_stay_untouched(scorer):
    before = torch.get_rng_state()
    objective_tools.gradient(scorer("florence2"), objective_tools.pictures(1, SIDE))
    assert torch.equal(torch.get_rng_state(), before)


class Silent(Captioner):
    name = "my captioner"


def test_refusals(scorer, folder, pack_nodes, run_node):
    def refused(message, captioner="blip", **options):
        with pytest.raises(ValueError, match=message) as caught:
            scorer(captioner, **options)
        assert "\n" not in str(caught.value)

    refused("text of Objective: Caption Likelihood is empty", text=" \n")
    refused("my captioner only writes, and cannot say how likely a text is", captioner=Silent())
    refused("blip does not know a word or a sign in 'a zebra'", text="a zebra")
    refused("blip does not know a word or a sign in 'a zebra'", against="a zebra")
    refused("A text has 302 tokens and blip reads 256 at most: shorten it", text="red " * 300)
    refused("weight is nan", weight=float("nan"))
    with pytest.raises(ValueError, match="got no captioner"):
        run_node(NODE, captioner=None, text="a ball")
    node = pack_nodes[NODE]
    assert "empty" in node.validate_inputs(text="") and node.validate_inputs(text=None) is True
    assert run_node(NODE, captioner=read_captioner(folder / "blip"), text="a ball", weight=0.0)[0].parts == ()


def test_a_processor_that_does_something_else_is_refused(folder, run_node):
    captioner = read_captioner(folder / "blip")

    class Odd(type(captioner.processor.image_processor)):
        def _preprocess(self, images, **kwargs):
            done = super()._preprocess(images, **kwargs)
            done["pixel_values"] = done["pixel_values"] * 1.01
            return done

    captioner.processor.image_processor.__class__ = Odd
    with pytest.raises(ValueError, match="processor of blip does more to a picture than to resize and normalize it"):
        run_node(NODE, captioner=captioner, text="a ball")
