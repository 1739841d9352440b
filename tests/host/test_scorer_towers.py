"""CLIP Scorer Loader, from ComfyUI's own CLIP and CLIP_VISION: ComfyUI's numbers with a gradient; what is no pair is
refused.
"""

import comfy.clip_model
import comfy.clip_vision
import comfy.sd
import comfy.sd1_clip
import objective_tools
import pytest
import tiny_scorers
import torch

from guidance_lab.guidance.similarity import cosine
from guidance_lab.nodes.clip_guidance import clip_towers
from guidance_lab.nodes.clip_guidance.scorers import CLIPSimilarity

NODE = "GuidanceLab_CLIPScorerLoader"
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
    "projection_dim": 48, "hidden_act": "quick_gelu", "model_type": "clip_vision_model", "num_channels": 3,
}  # fmt: skip
TEXT = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu", "eos_token_id": 49407,
}  # fmt: skip


def clip_vision(seed=1, **options):
    """A CLIP_VISION as its loader node makes it: in inference mode."""
    with torch.inference_mode():
        model = comfy.clip_vision.ClipVisionModel({**VISION, **options})
        tiny_scorers.randomized(model.model, seed)
    return model


class TinyText(comfy.sd1_clip.SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options={}):  # noqa: B006
        super().__init__(device=device, dtype=dtype, textmodel_json_config=TEXT, model_options=model_options)


class Target:
    clip, tokenizer = comfy.sd1_clip.SD1ClipModel, comfy.sd1_clip.SD1Tokenizer
    params = {"clip_model": TinyText}


def clip(seed=2):
    """A CLIP with one CLIP text tower, 48 wide."""
    with torch.inference_mode():
        made = comfy.sd.CLIP(Target)
        tiny_scorers.randomized(made.cond_stage_model, seed)
    return made


@pytest.fixture
def load(run_node):
    return lambda text, vision: run_node(NODE, source={"source": "comfyui", "clip": text, "clip_vision": vision})[0]


def test_embeddings_are_comfyuis(load):
    text, vision = clip(), clip_vision()
    scorer = load(text, vision)
    picture = objective_tools.pictures(2, 28)
    exact = (picture * 255).round() / 255  # ComfyUI rounds to 8 bit, and has no gradient there
    with torch.inference_mode():
        expected = vision.encode_image(exact.movedim(1, -1))["image_embeds"]
        pooled = text.encode_from_tokens(text.tokenize("a red ball"), return_pooled=True)[1]
    assert torch.allclose(scorer.embed_pictures(exact), expected, atol=1e-5)
    near = scorer.embed_pictures(picture)
    assert 0 < (near - expected).abs().max() < 0.05, "without rounding it differs by less than half a level of 255 does"
    assert torch.allclose(scorer.embed_lines(["a red ball"]), pooled.float(), atol=1e-5)
    assert not torch.allclose(scorer.embed_lines(["a red ball"]), scorer.embed_lines(["a cube"]), atol=1e-3)


def test_gradient(load):
    scorer = load(clip(), clip_vision())
    objective = CLIPSimilarity(scorer, scorer.embed_lines(["a red ball"]), cosine, "test")
    objective_tools.check_gradient(objective, objective_tools.pictures(2, 28))
    objective_tools.check_batch(objective, 28)


def test_clip_skip_does_not_change_the_text_and_stays(load):
    text = clip()
    plain = load(text, clip_vision()).embed_lines(["a red ball"])
    skipping = text.clone()
    skipping.clip_layer(-2)
    assert torch.equal(load(skipping, clip_vision()).embed_lines(["a red ball"]), plain)
    tower = text.cond_stage_model.clip_l
    assert (tower.layer, tower.execution_device) == ("last", None)


def test_the_users_models_are_left_alone(load):
    text, vision = clip(), clip_vision()
    kept = [value.clone() for value in vision.model.state_dict().values()]
    scorer = load(text, vision)
    objective_tools.gradient(
        CLIPSimilarity(scorer, scorer.embed_lines(["x"]), cosine, "test"), objective_tools.pictures(1, 28)
    )
    assert all(torch.equal(a, b) for a, b in zip(kept, vision.model.state_dict().values(), strict=True))
    assert all(p.is_inference() for p in vision.model.parameters())
    assert scorer.models[0].model is not vision.model


def with_projection(text, fill):
    with torch.inference_mode():
        text.cond_stage_model.clip_l.transformer.text_projection.weight.fill_(fill)
    return text


def vision_without_projection():
    model = clip_vision()
    with torch.inference_mode():
        model.model.visual_projection.weight.zero_()
    return model


REFUSALS = [
    (lambda: (with_projection(clip(), 0.0), clip_vision()), "no text_projection"),
    (lambda: (with_projection(clip(), float("nan")), clip_vision()), "no text_projection"),
    (lambda: (with_projection(clip(), 3e4), clip_vision()), "no text_projection"),
    (lambda: (clip(), vision_without_projection()), "no trained visual projection"),
    (
        lambda: (clip(), clip_vision(projection_dim=40)),
        "pictures become 40 numbers, text becomes clip_l 48",
    ),
    (lambda: (clip(), clip_vision(hidden_size=1024, num_hidden_layers=1, image_size=336)), "at 336 pixels"),
    (lambda: (clip(), clip_vision(model_type="siglip_vision_model")), "without the head"),
    (lambda: (None, clip_vision()), "needs both"),
]


@pytest.mark.parametrize("source", [None, {"source": "moon"}])
def test_an_option_that_is_gone(run_node, source):
    """ComfyUI queues a prompt with an option it does not know, without its inputs."""
    with pytest.raises(ValueError, match="choose (one of )?file(,| or) comfyui"):
        run_node(NODE, source=source)


@pytest.mark.parametrize(("make", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_what_is_no_pair(load, make, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(*make())
    assert "\n" not in str(caught.value)


def test_a_text_tower_of_another_model(load, monkeypatch):
    """Equal projections are not enough: ViT-bigG's vision tower with a text tower of the wrong depth."""
    monkeypatch.setitem(clip_towers._PARTNERS, (32, 48), ("ViT-tiny", 48, 12))
    with pytest.raises(
        ValueError, match="ViT-tiny, whose text tower is 48 wide with 12 layers, and this CLIP's is 48 wide with 3"
    ):
        load(clip(), clip_vision())


def test_a_text_encoder_that_is_no_clip(load):
    with torch.inference_mode():
        other = clip()
        other.cond_stage_model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="no CLIP text tower"):
        load(other, clip_vision())
