"""Objective: Image-Text Match against transformers' own forward, and Objective: Noised CLIP against GLIDE's recorded
numbers.
"""

import math
import shutil
from pathlib import Path

import folder_paths
import objective_tools
import pytest
import tiny_captioner
import torch
import transformers
from reference.frames import vp
from tiny_scorers import small_shapes
from unit.glide_golden import facts, images, state_dict

from guidance_lab.guidance import noised_clip
from guidance_lab.guidance.glide import cosine_alpha_bars
from guidance_lab.nodes.clip_guidance.objective import ScoringStep

MATCH, NOISED = "GuidanceLab_ObjectiveImageTextMatch", "GuidanceLab_ObjectiveNoisedCLIP"
SAMPLE = {"looks_at": "sample"}


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """models/captioners with a BLIP that matches and one that captions."""
    folder = tmp_path_factory.mktemp("captioners")
    tiny_captioner.blip(folder / "itm", network_class=transformers.BlipForImageTextRetrieval)
    tiny_captioner.blip(folder / "captions")
    folder_paths.add_model_folder_path("captioners", str(folder))
    yield folder
    folder_paths.folder_names_and_paths["captioners"][0].remove(str(folder))


def part(run_node, node, **inputs):
    ((_, scorer),) = run_node(node, **inputs)[0].parts
    return scorer


def refused(run_node, message, node, **inputs):
    with pytest.raises(ValueError, match=message) as caught:
        run_node(node, **inputs)
    assert "\n" not in str(caught.value)


def test_match_is_transformers_own(blip, run_node):
    state = torch.get_rng_state()
    lines = ["a red ball", "a blue cube left of a star"]
    scorer = part(run_node, MATCH, model="itm", text="\n".join(lines))
    assert torch.equal(torch.get_rng_state(), state)
    network = transformers.BlipForImageTextRetrieval.from_pretrained(blip / "itm").eval()
    processor = transformers.AutoProcessor.from_pretrained(blip / "itm")
    view = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).float() / 255
    expected = 0
    for line in lines:
        inputs = processor(images=list(view), text=[line, line], do_rescale=False, return_tensors="pt")
        expected = expected + network(**inputs).itm_score.log_softmax(-1)[:, 1] / 2
    assert torch.allclose(scorer.score(view, objective_tools.scoring_step()), expected, atol=1e-4)
    assert scorer.side == 32
    objective_tools.check_gradient(scorer, view, step=5e-4)  # its slope is hundreds
    scorer.models[0].model.double()  # such a slope makes float32's rounding larger than what is compared
    objective_tools.check_batch(scorer, 32)


def test_what_cannot_judge_a_match(blip, run_node, pack_nodes):
    refused(
        run_node,
        "captions is a BlipForConditionalGeneration, which cannot judge a match",
        MATCH,
        model="captions",
        text="a",
    )
    refused(run_node, "no folder 'gone'", MATCH, model="gone", text="a")
    refused(run_node, "text of Objective: Image-Text Match is empty", MATCH, model="itm", text=" ")
    assert (
        "empty" in pack_nodes[MATCH].validate_inputs(text="") and pack_nodes[MATCH].validate_inputs(text=None) is True
    )
    shutil.copytree(blip / "itm", blip / "pickled")
    (blip / "pickled" / "model.safetensors").rename(blip / "pickled" / "pytorch_model.bin")
    refused(run_node, "pickled has no .safetensors weights", MATCH, model="pickled", text="a")
    shutil.copytree(blip / "itm", blip / "mute")
    (blip / "mute" / "tokenizer.json").unlink()
    refused(run_node, "mute has no tokenizer", MATCH, model="mute", text="a")


@pytest.fixture(scope="module")
def glide_files():
    """Saves state dicts as GLIDE's files are: plain PyTorch pickles of tensors, where the node lists them."""
    path = Path(folder_paths.get_folder_paths("clip_vision")[0])
    path.mkdir(parents=True, exist_ok=True)
    saved = []

    def save(name, weights):
        torch.save(weights, path / name)
        saved.append(path / name)
        return name

    yield save
    for file in saved:
        file.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def tiny(glide_files):
    weights = {kind: state_dict(kind, shapes=small_shapes(kind)) for kind in ("image", "text")}
    files = {f"{kind}_encoder": glide_files(f"tiny_{kind}.pt", value) for kind, value in weights.items()}
    return files, noised_clip.load(weights["image"], weights["text"])


def at(timestep):
    """The step of GLIDE's cosine schedule at `timestep`."""
    return ScoringStep(vp(cosine_alpha_bars()[timestep], torch.zeros(1, 3, 4, 4)), torch.Generator().manual_seed(0))


def test_recorded_numbers_through_the_nodes_files(glide_files, run_node):
    """GLIDE's own code gave these, with weights made by a formula: text ids, cosine and gradient at the original
    timesteps.
    """
    ids = facts()["token_ids"][0]
    rows = sorted({0, 49406, 49407, *ids})
    files = {
        "image_encoder": glide_files("full_image.pt", state_dict("image")),
        "text_encoder": glide_files("full_text.pt", state_dict("text", vocabulary_rows=rows)),
    }
    scorer = part(run_node, NOISED, **files, text="a photo of a cat", looks_at=SAMPLE)
    assert (scorer.side, scorer.noisy) == (64, True)
    for case in ("t0", "t250", "t999"):
        recorded = facts()["objectives"][case]
        image = images(recorded["images"])[:1]
        score = scorer.score(image, at(recorded["t"][0]))
        assert score.item() == pytest.approx(100 * recorded["cos"][0], abs=1e-4), case
        with torch.inference_mode(False), torch.enable_grad():
            leaf = image.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(scorer.score(leaf, at(recorded["t"][0])).sum(), leaf)
        norm = facts()["tensors"][f"grad.{case}"]["norm_per_sample"][0] / facts()["grad_scale"]
        assert gradient.norm().item() == pytest.approx(norm, rel=2e-5), case


def test_the_sample_is_read_at_the_timestep_of_its_noise(tiny, run_node):
    files, clip = tiny
    scorer = part(run_node, NOISED, **files, text="a red ball\ntwo cars", looks_at=SAMPLE)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for timestep in (0, 400, 999):
        expected = clip.objective(x, timestep, scorer.target)
        assert torch.allclose(scorer.score(x, at(timestep)), expected, atol=1e-4)
    objective_tools.check_batch(scorer, 16)


@pytest.mark.parametrize("draws", [1, 3])
def test_the_estimate_gets_new_noise(tiny, run_node, draws):
    files, clip = tiny
    options = {"looks_at": "estimate", "timestep": 300, "draws": draws}
    state = torch.get_rng_state()
    scorer = part(run_node, NOISED, **files, text="a red ball", looks_at=options)
    view = objective_tools.pictures(2, 16)
    generator, abar = torch.Generator().manual_seed(0), cosine_alpha_bars()[300]
    expected = 0
    for _ in range(draws):
        noise = torch.randn(1, 3, 16, 16, generator=generator)
        expected = (
            expected
            + clip.objective(math.sqrt(abar) * (2 * view - 1) + math.sqrt(1 - abar) * noise, 300, scorer.target) / draws
        )
    assert not scorer.noisy
    assert torch.allclose(scorer.score(view, objective_tools.scoring_step(0)), expected, atol=1e-4)
    objective_tools.check_gradient(scorer, view)
    objective_tools.check_batch(scorer, 16)
    assert torch.equal(torch.get_rng_state(), state)


def test_files_that_are_not_glides(tiny, glide_files, run_node):
    files, _ = tiny
    swapped = {"image_encoder": files["text_encoder"], "text_encoder": files["image_encoder"]}
    refused(run_node, "not GLIDE's noised CLIP image encoder", NOISED, **swapped, text="a", looks_at=SAMPLE)
    refused(run_node, "no file 'gone.pt'", NOISED, **{**files, "image_encoder": "gone.pt"}, text="a", looks_at=SAMPLE)
    refused(run_node, "Noised CLIP is empty", NOISED, **files, text="", looks_at=SAMPLE)
    refused(
        run_node,
        "does not know this looks_at .*: choose one of estimate, sample",
        NOISED,
        **files,
        text="a",
        looks_at={"looks_at": "moon"},
    )
    broken = state_dict("text", shapes=small_shapes("text"))
    broken["blocks.output.f.w"] = torch.full_like(broken["blocks.output.f.w"], math.nan)
    name = glide_files("broken.pt", broken)
    refused(run_node, "NaN of the text", NOISED, **{**files, "text_encoder": name}, text="a", looks_at=SAMPLE)
