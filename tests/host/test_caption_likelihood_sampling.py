"""Caption likelihood in sampling runs with the Shapes models: neutral, right direction, repeatable, every decoder,
through the model, batches, combined, and beside Caption Residual Guidance with one captioner.
"""

import comfy.model_management
import comfy.samplers
import objective_tools
import pytest
import torch
from caption_tools import encoded
from comfy_extras.nodes_custom_sampler import KSamplerSelect, RandomNoise, SamplerCustomAdvanced

from guidance_lab.experiments.evidence.guidance_variants import VARIANTS
from guidance_lab.guidance.crops import whole_view
from guidance_lab.guidance.schedule import Window
from guidance_lab.nodes.clip_guidance.score_guidance import ScoreGuidance, Settings
from guidance_lab.nodes.clip_guidance.views import Views
from guidance_lab.nodes.host import attach
from guidance_lab.nodes.host.decode import make_decoder

PROMPT, LESS = "a red cube left of a blue ball on white", "a red cube on white"
OTHER = "a green star on black"
STEPS = 6


@pytest.fixture
def objective(run_node, shapes):
    def make(text=PROMPT, **options):
        return run_node("GuidanceLab_ObjectiveCaptionLikelihood", captioner=shapes[6], text=text, **options)[0]

    return make


@pytest.fixture
def guide(run_node, shapes):
    """`guide(objective, …)` → the Shapes MODEL with CLIP Guidance; the VAE and the whole view unless told."""

    def make(objective, model=None, **changed):
        settings = {"decoder": {"decoder": "vae", "vae": shapes[2]}, "crops": 0, **changed}
        return run_node("GuidanceLab_CLIPGuidance", model=model or shapes[0], objective=objective, **settings)[0]

    return make


@pytest.fixture
def run(shapes, sample, latent):
    """`run(model, batch=1, prompt=PROMPT)` → latents of pictures."""

    def draw(model, batch=1, prompt=PROMPT):
        positive, negative = encoded(shapes[1], prompt), encoded(shapes[1], "")
        return sample(model, positive, negative, latent(batch=batch), steps=STEPS, cfg=2.0)

    return draw


def scores(samples, shapes, made):
    """[B]: the objective on the finished pictures."""
    decoder = make_decoder({"decoder": "vae", "vae": shapes[2]}, shapes[0], gradient=False)
    ((_, scorer),) = made.parts
    comfy.model_management.load_models_gpu([*decoder.models, *scorer.models])
    with torch.inference_mode():
        picture = decoder.decode(shapes[0].model.process_latent_in(samples))
        return scorer.score(whole_view(picture, scorer.side, scorer.fill), objective_tools.scoring_step())


def test_neutral_is_stock_and_stock_comes_back(shapes, objective, guide, run):
    stock = run(shapes[0])
    assert torch.equal(run(guide(objective(), strength=0.0)), stock)
    assert torch.equal(run(guide(objective(), start_percent=0.9, end_percent=0.9)), stock)
    with pytest.raises(ValueError, match="The objective is empty: connect an Objective node that has a weight"):
        guide(objective(weight=0.0))
    assert not torch.equal(run(guide(objective())), stock)
    assert torch.equal(run(shapes[0]), stock)


@pytest.mark.parametrize("gradient", ["x0", "through model"])
def test_right_direction_and_the_same_three_times(shapes, objective, guide, run, gradient):
    """The prompt lacks a thing, so that there is a way to go in either direction."""
    made = objective()
    up = [run(guide(objective(), gradient=gradient), batch=2, prompt=LESS) for _ in range(3)]
    down = run(guide(objective(weight=-1.0), gradient=gradient), batch=2, prompt=LESS)
    stock = run(shapes[0], batch=2, prompt=LESS)
    assert torch.equal(up[0], up[1]) and torch.equal(up[0], up[2])
    high, middle, low = (scores(samples, shapes, made) for samples in (up[0], stock, down))
    assert (high > middle).all() and (middle > low).all()


def test_against_raises_what_tells_two_texts_apart(shapes, objective, guide, run):
    swapped = "a blue ball left of a red cube on white"
    made, other = objective(against=swapped), objective(swapped, against=PROMPT)
    one, two = (scores(run(guide(aim), batch=2, prompt=LESS), shapes, made) for aim in (made, other))
    assert (one > two).all()


@pytest.mark.parametrize("decoder", ["vae", "vae_crop", "latent_rgb"])
@pytest.mark.parametrize("crops", [0, 2])
def test_every_decoder_with_and_without_crops(shapes, objective, guide, run, decoder, crops):
    choice = {"decoder": decoder} | ({} if decoder == "latent_rgb" else {"vae": shapes[2]})
    result = run(guide(objective(), decoder=choice, crops=crops))
    assert torch.isfinite(result).all() and not torch.equal(result, run(shapes[0]))


def test_it_is_shown_the_whole_picture_where_that_can_be_shown(run_node, shapes, objective, guide, run):
    """Crops are for the others in a combination; without the whole view, or decoded by crops, they are all there is."""
    alone = run(guide(objective()))
    assert torch.equal(run(guide(objective(), crops=2)), alone)
    assert not torch.equal(run(guide(objective(), crops=2, whole_view=False)), alone)
    clip = run_node("GuidanceLab_ObjectiveCLIPText", scorer=shapes[5], text=PROMPT)[0]
    assert not torch.equal(run(guide(clip, crops=2)), run(guide(clip)))


def test_a_batch_is_its_singles(objective, guide, run):
    """Of two texts, so that rows of texts and rows of pictures can be mixed up."""
    model = guide(objective(f"{PROMPT}\n{OTHER}"))
    both = run(model, batch=2)
    assert (both[0] - run(model)[0]).abs().max() < 0.02 < 0.5 < (both[0] - both[1]).abs().max()


def test_combined_with_a_clip(run_node, shapes, objective, guide, run):
    clip = run_node("GuidanceLab_ObjectiveCLIPText", scorer=shapes[5], text=PROMPT)[0]

    def combined(weights):
        parts = {"objective0": objective(), "objective1": clip}
        return run_node("GuidanceLab_ObjectiveCombine", objectives=parts, weights=weights)[0]

    alone = run(guide(objective()))
    assert torch.equal(run(guide(combined("1, 0"))), alone)
    assert not torch.equal(run(guide(combined("1, 1"))), alone)


def test_one_captioner_for_likelihood_and_residual(run_node, shapes, objective, guide, run):
    model = run_node(
        "GuidanceLab_CaptionResidualGuidance", model=guide(objective()), clip=shapes[1], captioner=shapes[6],
        decoder={"decoder": "vae", "vae": shapes[2]}, scale=1.0, every=1, start_percent=0.0,
    )[0]  # fmt: skip
    first = run(model)
    networks = [loaded.model.model for loaded in comfy.model_management.current_loaded_models if loaded.model]
    assert networks.count(shapes[6].models[0].model) == 1
    assert torch.equal(run(model), first) and not torch.equal(first, run(guide(objective())))


def test_the_guider_is_the_patch(run_node, shapes, objective, guide, run, latent):
    positive, negative = encoded(shapes[1], PROMPT), encoded(shapes[1], "")
    settings = {"decoder": {"decoder": "vae", "vae": shapes[2]}, "crops": 0}
    guider = run_node(
        "GuidanceLab_UPaintingCLIPGuider", model=shapes[0], positive=positive, negative=negative, cfg=2.0,
        objective=objective(), **settings,
    )[0]  # fmt: skip
    sigmas = comfy.samplers.calculate_sigmas(shapes[0].get_model_object("model_sampling"), "normal", STEPS)
    with torch.inference_mode():
        noise, sampler = RandomNoise.execute(0)[0], KSamplerSelect.execute("euler")[0]
        drawn = SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent(batch=1))[0]["samples"]
    assert torch.equal(drawn, run(guide(objective())))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_variants_of_the_evidence_act_and_repeat(variant, objective, run, shapes):
    decoder = make_decoder({"decoder": "vae", "vae": shapes[2]}, shapes[0])
    settings = Settings(0.5, Window(0.2, 1.0), views=Views(0, True))

    def drawn(kind):
        return run(attach(shapes[0], kind(objective(), decoder, settings)))

    once = drawn(VARIANTS[variant])
    assert torch.isfinite(once).all()
    assert torch.equal(once, drawn(VARIANTS[variant]))
    assert not torch.equal(once, drawn(ScoreGuidance))
