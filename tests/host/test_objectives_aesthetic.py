"""Objective: Aesthetic with a real CLIP of open_clip: score, gradient, files and refusals."""

import folder_paths
import objective_tools
import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from guidance_lab.nodes.clip_guidance.scorers import OpenCLIPScorer

NODE = "GuidanceLab_ObjectiveAesthetic"
HALF = (0.5, 0.5, 0.5)
WIDTH = objective_tools.CONFIG["embed_dim"]


def layers(width: int) -> dict:
    """Random weights of LAION's five layers."""
    sizes, generator = (width, 32, 16, 8, 4, 1), torch.Generator().manual_seed(3)
    found = {}
    for number, (a, b) in zip((0, 2, 4, 6, 7), zip(sizes, sizes[1:], strict=False), strict=True):
        found[f"layers.{number}.weight"] = torch.randn(b, a, generator=generator) * a**-0.5
        found[f"layers.{number}.bias"] = torch.randn(b, generator=generator)
    return found


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """models/aesthetic with heads in both formats."""
    folder = tmp_path_factory.mktemp("aesthetic")
    torch.save(layers(WIDTH), folder / "mlp.pth")
    save_file(layers(WIDTH), folder / "mlp.safetensors")
    torch.save({"weight": torch.ones(1, WIDTH), "bias": torch.zeros(1)}, folder / "linear.pth")
    save_file(layers(768), folder / "l14.safetensors")
    torch.save({"weight": torch.full((1, WIDTH), float("nan")), "bias": torch.zeros(1)}, folder / "nan.pth")
    torch.save(torch.nn.Linear(WIDTH, 1), folder / "pickled.pth")
    folder_paths.add_model_folder_path("aesthetic", str(folder))
    yield folder
    folder_paths.folder_names_and_paths["aesthetic"][0].remove(str(folder))


@pytest.fixture(scope="module")
def scorer():
    return OpenCLIPScorer(objective_tools.tiny_clip(), open_clip.SimpleTokenizer(), HALF, HALF, 32, "tiny CLIP")


def test_score_gradient_and_batch(heads, scorer, run_node):
    ((weight, part),) = run_node(NODE, scorer=scorer, head="mlp.pth", weight=0.5)[0].parts
    view = objective_tools.pictures(2, 32)
    x = F.normalize(scorer.models[0].model.encode_image((view - 0.5) / 0.5), dim=-1)
    for number in (0, 2, 4, 6, 7):
        x = x @ layers(WIDTH)[f"layers.{number}.weight"].T + layers(WIDTH)[f"layers.{number}.bias"]
    assert weight == 0.5 and part.side == 32 and part.models == scorer.models
    assert torch.allclose(part.score(view, objective_tools.scoring_step()), x[:, 0], atol=1e-5)
    objective_tools.check_gradient(part, view)
    objective_tools.check_batch(part, 32)
    ((_, same),) = run_node(NODE, scorer=scorer, head="mlp.safetensors")[0].parts
    at = objective_tools.scoring_step()
    assert torch.equal(same.score(view, at), part.score(view, at))


def test_the_linear_head(heads, scorer, run_node):
    ((_, part),) = run_node(NODE, scorer=scorer, head="linear.pth")[0].parts
    view = objective_tools.pictures(2, 32)
    expected = F.normalize(scorer.models[0].model.encode_image((view - 0.5) / 0.5), dim=-1).sum(-1)
    assert torch.allclose(part.score(view, objective_tools.scoring_step()), expected, atol=1e-5)
    objective_tools.check_gradient(part, view)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("l14.safetensors", "rates embeddings of 768 numbers, and those of tiny CLIP have 16"),
        ("nan.pth", "NaN or infinity"),
        ("pickled.pth", "pickled.pth"),
        ("gone.pth", "no file 'gone.pth' in models/aesthetic"),
    ],
)
def test_refusals_are_one_sentence(heads, scorer, run_node, head, message):
    with pytest.raises(ValueError, match=message) as caught:
        run_node(NODE, scorer=scorer, head=head)
    assert "\n" not in str(caught.value)


def test_weight_0_leaves_it_out(heads, scorer, run_node):
    assert run_node(NODE, scorer=scorer, head="linear.pth", weight=0.0)[0].parts == ()
