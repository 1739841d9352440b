"""Every objective in CLIP Guidance, in a sampling run: its score rises, or falls with a negative weight; a repeated run
is the same.
"""

import folder_paths
import objective_tools
import open_clip
import pytest
import tiny_scorers
import torch

from guidance_lab.guidance.crops import whole_view
from guidance_lab.nodes.clip_guidance.scorers import OpenCLIPScorer
from guidance_lab.nodes.host.decode import make_decoder

RGB = {"decoder": "latent_rgb"}
HALF = (0.5, 0.5, 0.5)
WHERE = {"classifiers": "classifiers/tiny/config.json", "captioners": "captioners/itm/config.json"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folders of models/ with a classifier, a BLIP and GLIDE's two files, found as those of extra_model_paths.yaml
    are.
    """
    root = tmp_path_factory.mktemp("models")
    for name in (*WHERE.values(), "clip_vision/clip_image_enc.pt", "clip_vision/clip_text_enc.pt"):
        tiny_scorers.write(root, name)
    for kind in (*WHERE, "clip_vision"):
        folder_paths.add_model_folder_path(kind, str(root / kind))
    yield
    for kind in (*WHERE, "clip_vision"):
        folder_paths.folder_names_and_paths[kind][0].remove(str(root / kind))


@pytest.fixture(scope="module")
def clip():
    return OpenCLIPScorer(objective_tools.tiny_clip(), open_clip.SimpleTokenizer(), HALF, HALF, 32)


@pytest.fixture
def objective(run_node, files, clip):
    """`objective(kind, weight)` → an OBJECTIVE of that kind."""
    picture = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(4))
    glide = {"image_encoder": "clip_image_enc.pt", "text_encoder": "clip_text_enc.pt"}
    nodes = {
        "CLIPText": {"scorer": clip, "text": "a red ball"},
        "CLIPImage": {"scorer": clip, "image": picture},
        "Classifier": {"classifier": "tiny", "class_name": "tabby"},
        "ImageTextMatch": {"model": "itm", "text": "a red ball"},
        "NoisedCLIP": {
            **glide,
            "text": "a red ball",
            "looks_at": {"looks_at": "estimate", "timestep": 100, "draws": 2},
        },
    }

    def make(kind, weight=1.0):
        if kind == "Combine":
            parts = {f"objective{i}": make(one) for i, one in enumerate(("CLIPText", "Classifier"))}
            return run_node("GuidanceLab_ObjectiveCombine", objectives=parts, weights=f"{weight}, {0.01 * weight}")[0]
        return run_node(f"GuidanceLab_Objective{kind}", **nodes[kind], weight=weight)[0]

    return make


@pytest.mark.parametrize("kind", ["CLIPText", "CLIPImage", "Classifier", "ImageTextMatch", "NoisedCLIP", "Combine"])
def test_the_score_follows_the_weight(tiny_model, cond, latent, sample, run_node, objective, kind):
    raised = objective(kind)

    def run(model):
        return sample(model, cond(1), cond(2), latent(2), steps=3)

    def guided(weight):
        options = {"objective": objective(kind, weight), "decoder": RGB, "strength": 0.3, "start_percent": 0.0}
        return run_node("GuidanceLab_CLIPGuidance", model=tiny_model, **options)[0]

    def score(samples):
        picture = make_decoder(RGB, tiny_model, gradient=False).decode(tiny_model.model.process_latent_in(samples))
        with torch.inference_mode():
            return sum(
                w * part.score(whole_view(picture, part.side), objective_tools.scoring_step())
                for w, part in raised.parts
            )

    stock = run(tiny_model)
    state = torch.get_rng_state()  # ComfyUI's noise seeds the global generator
    up, down = run(guided(1.0)), run(guided(-1.0))
    assert torch.equal(torch.get_rng_state(), state)
    assert (score(up) > score(stock)).all() and (score(stock) > score(down)).all()
    assert torch.equal(run(guided(1.0)), up)
