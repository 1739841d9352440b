"""GALIP CLIP: the pooled output of the stock CLIP Text Encode is the sentence embedding, and only the right CLIP is
taken.
"""

import json
import logging
from pathlib import Path

import folder_paths
import nodes as comfy_nodes
import pytest
import tiny_galip
import torch
from conftest import ROOT
from galip_formula import build
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from guidance_lab.galip import TextEncoder, load_generator
from guidance_lab.nodes.galip import Galip
from guidance_lab.nodes.galip.text_tower import text_tower

ID = "GuidanceLab_GALIPCLIP"
FIXTURES = ROOT / "tests" / "fixtures" / "galip"
LONG = "a photo of a cat " * 30


def encode(clip, text: str) -> torch.Tensor:
    """The pooled output of ComfyUI's CLIP Text Encode."""
    with torch.inference_mode():
        ((_, options),) = comfy_nodes.CLIPTextEncode().encode(clip, text)[0]
    return options["pooled_output"]


def rel_rms(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value.double() - reference.double()).norm() / reference.double().norm())


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return tiny_galip.generator_weights()


@pytest.fixture(scope="module")
def galip(weights) -> Galip:
    return Galip(load_generator(weights, sizes=tiny_galip.DIMS.sizes), "tiny.pth")


@pytest.fixture
def put():
    """`put(weights, name)` → the choice of the node for this file, gone after the test."""
    written = []

    def write(tensors: dict, name: str = "clip.safetensors", folder: str = "text_encoders") -> str:
        path = Path(folder_paths.get_folder_paths(folder)[0]) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        written.append(path)
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)
        return f"{folder}/{name}"

    yield write
    for path in written:
        path.unlink()


def test_official_numbers():
    """Full size: the route through ComfyUI's text model gives the official sentence embeddings."""
    encoder = build(TextEncoder, "clip.")
    clip = text_tower(encoder.state_dict())
    golden = load_file(FIXTURES / "golden.safetensors")["text.sent_emb"]
    ids = json.loads((FIXTURES / "golden.json").read_text())["text.token_ids"]
    assert rel_rms(encode(clip, "a photo of a cat")[0], golden[0]) < 1e-5
    assert rel_rms(encode(clip, "")[0], golden[1]) < 1e-5
    with torch.inference_mode():
        pooled = clip.encode_from_tokens({"l": [[(token, 1.0) for token in ids[2]]]}, return_pooled=True)[1]
    assert rel_rms(pooled[0], golden[2]) < 1e-5


@pytest.mark.parametrize("text", ["a photo of a cat", "", LONG, "Ünïcode, 猫 & 🐈"])
def test_a_file_of_openai_names(galip, weights, put, run_node, text):
    tensors = tiny_galip.clip_weights(weights)
    (clip,) = run_node(ID, galip=galip, file=put(tensors))
    reference = TextEncoder(64, layers=2, embed_dim=64)
    reference.load_state_dict(
        {key: value for key, value in tensors.items() if not key.startswith("visual.") and key != "logit_scale"}
    )
    tokenizer = CLIPTokenizer.from_pretrained(Path(comfy_nodes.__file__).parent / "comfy" / "sd1_tokenizer")
    ids = tokenizer(text, truncation=True, max_length=77, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert rel_rms(encode(clip, text), reference(ids)) < 1e-5


def test_a_file_of_transformers_gives_what_transformers_gives(put, run_node):
    sizes = dict(
        hidden_size=64, intermediate_size=256, num_attention_heads=1, projection_dim=64, hidden_act="quick_gelu"
    )
    vision = dict(num_hidden_layers=4, image_size=32, patch_size=8)
    text = dict(num_hidden_layers=2, bos_token_id=49406, eos_token_id=49407)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(
            CLIPConfig(text_config={**sizes, **text}, vision_config={**sizes, **vision}, projection_dim=64)
        ).eval()
    tensors = model.state_dict()
    own = tiny_galip.generator_weights()
    own["mapping.CLIP_ViT.class_embedding"] = tensors["vision_model.embeddings.class_embedding"].clone()
    own["mapping.CLIP_ViT.positional_embedding"] = tensors["vision_model.embeddings.position_embedding.weight"].clone()
    galip = Galip(load_generator(own), "tiny.pth")
    (clip,) = run_node(ID, galip=galip, file=put(tensors, folder="clip_vision"))
    tokenizer = CLIPTokenizer.from_pretrained(Path(comfy_nodes.__file__).parent / "comfy" / "sd1_tokenizer")
    with torch.no_grad():
        pooled = model.text_model(**tokenizer("a red cube", return_tensors="pt")).pooler_output
        assert rel_rms(encode(clip, "a red cube"), model.text_projection(pooled)) < 1e-5


def test_weights_in_the_prompt_do_nothing_and_escaped_parentheses_are_text(galip, weights, put, run_node):
    (clip,) = run_node(ID, galip=galip, file=put(tiny_galip.clip_weights(weights)))
    plain = encode(clip, "a red cube")
    assert rel_rms(encode(clip, "a (red:1.5) cube"), plain) < 1e-6
    assert rel_rms(encode(clip, r"a \(red\) cube"), plain) > 0.1


def test_a_long_prompt_is_cut_and_says_so(galip, weights, put, run_node, caplog):
    (clip,) = run_node(ID, galip=galip, file=put(tiny_galip.clip_weights(weights)))
    with caplog.at_level(logging.WARNING):
        encode(clip, "a photo of a cat")
        assert not caplog.records
        cut = encode(clip, "cat " * 75 + "dog")
    assert [record.getMessage() for record in caplog.records] == [
        "Guidance Lab: The prompt is longer than the 75 tokens that this CLIP reads; the rest was cut off."
    ]
    assert torch.equal(cut, encode(clip, "cat " * 75))


def without(tensors: dict, *prefixes: str) -> dict:
    return {key: value for key, value in tensors.items() if not key.startswith(prefixes)}


WRONG = {
    "another training": (lambda w: tiny_galip.clip_weights(None), "not the one inside.*openai/clip-vit-base-patch32"),
    "another size": (lambda w: {**tiny_galip.clip_weights(w), "visual.positional_embedding": torch.zeros(257, 1024)},
    "not the one inside"),
    "text tower alone": (lambda w: without(tiny_galip.clip_weights(w), "visual."),
    "no image tower.*openai/clip-vit-base-patch32"),
    "image tower alone": (lambda w: without(tiny_galip.clip_weights(w), "token_", "positional_", "transformer.", "ln_",
    "text_"),
                          "no whole text tower: 'text_model.embeddings.position_embedding.weight' is missing"),
    "half a text tower": (lambda w: without(tiny_galip.clip_weights(w), "transformer.resblocks.1.mlp.c_proj"),
                          "no whole text tower: 'text_model.encoder.layers.1.mlp.fc2.weight' is missing"),
    "not finite": (lambda w: {**tiny_galip.clip_weights(w), "ln_final.bias": torch.full((64,), torch.nan)},
    "not finite"),
    "another vocabulary": (lambda w: {**tiny_galip.clip_weights(w), "token_embedding.weight": torch.zeros(100, 64)},
                           r"shape \[100, 64\], expected \[49408, 64\]"),
    "another embedding width": (lambda w: tiny_galip.clip_weights(w, embed_dim=32),
    r"'text_projection.weight' of shape \[32, 64\]"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_clips_are_refused_with_one_sentence(galip, weights, put, run_node, kind):
    change, words = WRONG[kind]
    with pytest.raises(ValueError, match=f"Cannot use 'clip.safetensors' with tiny.pth: .*{words}") as caught:
        run_node(ID, galip=galip, file=put(change(weights)))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_generator_of_another_text_width_is_refused(weights, put, run_node, galip):
    narrow = {
        key: value[:, 1:] if value.ndim == 2 and value.shape[1] == 76 else value for key, value in weights.items()
    }
    fork = Galip(load_generator(narrow), "fork.pth")
    with pytest.raises(ValueError, match="its sentence embedding has 64 values, but the generator takes 63"):
        run_node(ID, galip=fork, file=put(tiny_galip.clip_weights(weights)))


def test_files_of_both_folders_are_offered(pack_nodes, put, weights, galip, run_node):
    put({"x": torch.zeros(1)}, "model.safetensors", "text_encoders")
    put(tiny_galip.clip_weights(weights), "model.safetensors", "clip_vision")
    options = pack_nodes[ID].GET_NODE_INFO_V1()["input"]["required"]["file"][1]["options"]
    assert options == ["text_encoders/model.safetensors", "clip_vision/model.safetensors"]
    run_node(ID, galip=galip, file="clip_vision/model.safetensors")
    with pytest.raises(ValueError, match="no image tower"):
        run_node(ID, galip=galip, file="text_encoders/model.safetensors")


def test_openais_program_is_never_run(put, galip, run_node):
    put({"x": torch.zeros(1)}, "ViT-B-32.pt")
    path = Path(folder_paths.get_folder_paths("text_encoders")[0]) / "ViT-B-32.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))
    with pytest.raises(ValueError, match="ViT-B-32.pt.*a TorchScript archive"):
        run_node(ID, galip=galip, file="text_encoders/ViT-B-32.pt")
