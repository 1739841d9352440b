"""Captioner Loader with a text encoder of ComfyUI that sees and writes: its own Qwen3-VL class at a size of a few
million weights.
"""

import comfy.model_management
import comfy.sd
import comfy.text_encoders.qwen3vl as qwen3vl
import comfy.text_encoders.z_image as z_image
import pytest
import torch
from comfy_extras.nodes_textgen import TextGenerate

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
QUESTION = "What is this?"


def build(name: str, te, tokenizer):
    """A CLIP of random float32 weights."""

    class Target:
        params: dict = {}
        clip = te

    Target.tokenizer = tokenizer
    clip = comfy.sd.CLIP(Target, model_options={f"{name}_model_config": SMALL, "dtype": torch.float32})
    generator = torch.Generator().manual_seed(0)
    for parameter in clip.cond_stage_model.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1.0
        parameter.data = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
    return clip


@pytest.fixture(scope="module")
def seeing():
    with pytest.MonkeyPatch.context() as patch:
        vision = {"hidden_size": 64, "intermediate_size": 128, "depth": 1, "deepstack_visual_indexes": [0]}
        patch.setitem(qwen3vl.QWEN3VL_VISION, "qwen3vl_4b", vision)
        return build("qwen3vl_4b", qwen3vl.te(model_type="qwen3vl_4b"), qwen3vl.tokenizer("qwen3vl_4b"))


def load(run_node, clip, max_tokens=5):
    source = {"source": "text_encoder", "clip": clip, "question": QUESTION, "max_tokens": max_tokens}
    return run_node("GuidanceLab_CaptionerLoader", source=source)[0]


def test_it_says_what_comfyuis_own_node_says(run_node, seeing):
    captioner = load(run_node, seeing)
    images = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    comfy.model_management.load_models_gpu(list(captioner.models))
    before = torch.get_rng_state()
    captions = captioner.caption(images)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(captions) == 2 and captions[0] != captions[1]
    assert captions == [captioner.caption(image[None])[0] for image in images]
    with torch.inference_mode():
        for image, caption in zip(images, captions, strict=True):
            own = TextGenerate.execute(seeing, QUESTION, 5, {"sampling_mode": "off"}, image=image[None].movedim(1, -1))[
                0
            ]
            assert " ".join(own.split()) == caption


def test_it_loads_nothing_by_itself(run_node, seeing):
    captioner = load(run_node, seeing)
    comfy.model_management.load_models_gpu(list(captioner.models))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.model_management, "load_models_gpu", None)
        captioner.caption(torch.rand(1, 3, 64, 64))
    assert "load_model" not in vars(seeing)


def test_an_encoder_that_writes_but_does_not_see_is_refused(run_node):
    blind = build("qwen3_4b", z_image.te(), z_image.ZImageTokenizer)
    with pytest.raises(ValueError, match="writes text but does not look at pictures"):
        load(run_node, blind)
