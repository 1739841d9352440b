"""Objective: CLIP Text, CLIP Image and Combine: the score is the cosine that open_clip's own functions give, and it has
its gradient.
"""

import math

import objective_tools
import open_clip
import pytest
import tiny_scorers
import torch
import torch.nn.functional as F

from guidance_lab.nodes.clip_guidance.scorers import OpenCLIPScorer

TEXT, IMAGE, COMBINE = "GuidanceLab_ObjectiveCLIPText", "GuidanceLab_ObjectiveCLIPImage", "GuidanceLab_ObjectiveCombine"
HALF = (0.5, 0.5, 0.5)
SIDE = 32


@pytest.fixture(scope="module", params=[True, False], ids=["built in inference mode", "built outside"])
def scorer(request):
    with torch.inference_mode(request.param):
        made = open_clip.CLIP(**objective_tools.CONFIG) if request.param else objective_tools.tiny_clip()
        return OpenCLIPScorer(tiny_scorers.randomized(made), open_clip.SimpleTokenizer(), HALF, HALF, SIDE)


def expected_cosine(clip, view, lines):
    image = F.normalize(clip.encode_image((view - 0.5) / 0.5), dim=-1)
    words = F.normalize(clip.encode_text(open_clip.SimpleTokenizer()(lines)), dim=-1).mean(0)
    return image @ F.normalize(words, dim=0)


def test_text_score_gradient_and_batch(scorer, run_node):
    objective = run_node(TEXT, scorer=scorer, text="a red ball\n\n  two blue cars ", weight=2.0)[0]
    ((weight, part),) = objective.parts
    view = objective_tools.pictures(2, SIDE)
    assert weight == 2.0 and (part.side, part.noisy) == (SIDE, False)
    expected = expected_cosine(scorer.models[0].model, view, ["a red ball", "two blue cars"])
    assert torch.allclose(part.score(view, objective_tools.scoring_step()), expected, atol=1e-5)
    objective_tools.check_gradient(part, view)
    objective_tools.check_batch(part, SIDE)


def test_spherical_is_minus_half_the_squared_angle(scorer, run_node):
    cosine, spherical = (
        run_node(TEXT, scorer=scorer, text="a red ball", similarity=kind)[0].parts[0][1]
        for kind in ("cosine", "spherical")
    )
    view = objective_tools.pictures(2, SIDE)
    angle = cosine.score(view, objective_tools.scoring_step()).double().acos()
    assert torch.allclose(spherical.score(view, objective_tools.scoring_step()).double(), -(angle**2) / 2, atol=1e-4)
    parallel = F.cosine_similarity(
        objective_tools.gradient(cosine, view).flatten(1), objective_tools.gradient(spherical, view).flatten(1)
    )
    assert (parallel > 0.9999).all()


def test_a_picture_is_most_like_itself(scorer, run_node):
    reference, other = objective_tools.pictures(2, SIDE).split(1)
    ((_, part),) = run_node(IMAGE, scorer=scorer, image=reference.movedim(1, -1))[0].parts
    assert float(part.score(reference, objective_tools.scoring_step())) == pytest.approx(1, abs=1e-5)
    assert float(part.score(other, objective_tools.scoring_step())) < 0.999
    objective_tools.check_gradient(part, other)


def test_reference_is_cropped_as_clip_does_and_averaged(scorer, run_node):
    """A wide picture with an alpha channel: its middle square, resized; `whole` sees the borders too."""
    wide = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    image = torch.cat([wide.movedim(1, -1), torch.zeros(2, 64, 96, 1)], dim=-1)
    clip = scorer.models[0].model
    middle = F.interpolate(wide[..., 16:80], size=(SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
    target = F.normalize(clip.encode_image((middle - 0.5) / 0.5), dim=-1).mean(0)
    ((_, part),) = run_node(IMAGE, scorer=scorer, image=image)[0].parts
    assert torch.allclose(F.normalize(part.target[0], dim=0), F.normalize(target, dim=0), atol=1e-5)
    ((_, whole),) = run_node(IMAGE, scorer=scorer, image=image, crop="whole")[0].parts
    assert F.cosine_similarity(whole.target, part.target) < 0.9999


def test_nothing_global_is_touched(scorer, run_node):
    state = torch.get_rng_state()
    ((_, part),) = run_node(TEXT, scorer=scorer, text="a red ball")[0].parts
    run_node(IMAGE, scorer=scorer, image=torch.rand(1, 8, 8, 3, generator=torch.Generator()))
    view = objective_tools.pictures(1, SIDE)
    gradient = objective_tools.gradient(part, view)
    assert torch.equal(torch.get_rng_state(), state)
    assert not gradient.requires_grad and not part.target.is_inference() and not part.target.requires_grad
    assert all(p.grad is None for p in scorer.models[0].model.parameters())


def test_combine_adds_with_weights_and_loads_a_module_once(scorer, run_node):
    a = run_node(TEXT, scorer=scorer, text="a red ball", weight=2.0)[0]
    b = run_node(TEXT, scorer=scorer, text="fog", weight=-1.0)[0]
    both = run_node(COMBINE, objectives={"objective0": a, "objective1": b}, weights="1, 0.5")[0]
    assert [weight for weight, _ in both.parts] == [2.0, -0.5]
    assert len(both.models) == 1
    again = run_node(COMBINE, objectives={"objective0": both, "objective3": b}, weights="0 3")[0]
    assert [weight for weight, _ in again.parts] == [-3.0]
    assert run_node(COMBINE, objectives={"objective0": a})[0].parts == a.parts


def test_weight_zero_leaves_it_out(scorer, run_node):
    assert run_node(TEXT, scorer=scorer, text="a red ball", weight=0.0)[0].parts == ()


def refused(run_node, message, node, **inputs):
    with pytest.raises(ValueError, match=message) as caught:
        run_node(node, **inputs)
    assert "\n" not in str(caught.value)


def test_bad_input(scorer, run_node, pack_nodes):
    a = run_node(TEXT, scorer=scorer, text="a red ball")[0]
    for empty in ("", "  \n "):
        refused(run_node, "text of Objective: CLIP Text is empty", TEXT, scorer=scorer, text=empty)
        assert "empty" in pack_nodes[TEXT].validate_inputs(text=empty)
    assert pack_nodes[TEXT].validate_inputs(text=None) is True and pack_nodes[TEXT].validate_inputs(text="x") is True
    refused(run_node, "weight is nan", TEXT, scorer=scorer, text="x", weight=math.nan)
    refused(run_node, "empty batch", IMAGE, scorer=scorer, image=torch.zeros(0, 8, 8, 3))
    refused(run_node, "NaN of the reference picture", IMAGE, scorer=scorer, image=torch.full((1, 8, 8, 3), math.nan))
    refused(run_node, "nothing to combine", COMBINE, objectives={})
    refused(run_node, "1 objectives and 2 weights", COMBINE, objectives={"objective0": a}, weights="1, 2")
    refused(run_node, "'x' in weights is no finite number", COMBINE, objectives={"objective0": a}, weights="1, x")
    validate = pack_nodes[COMBINE].validate_inputs
    assert "'inf'" in validate(weights="inf") and validate(weights="", objectives=None) is True
