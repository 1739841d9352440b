"""CLIP Scorer Loader, from a file: which architecture, activation and pixels; what it computes; what it refuses."""

import json

import folder_paths
import objective_tools
import open_clip
import pytest
import safetensors.torch
import tiny_scorers
import torch
import transformers

from guidance_lab.nodes.clip_guidance import clip_formats, clip_release, clip_text, clip_weights, scorer_loader

NODE = "GuidanceLab_CLIPScorerLoader"
FAMILIES = [
    "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "ViT-bigG-14", "ViT-B-16-SigLIP",
    "ViT-SO400M-14-SigLIP2",
    "EVA02-B-16", "MobileCLIP2-S0", "PE-Core-B-16", "RN50", "convnext_base", "ViT-L-14-CLIPA", "coca_ViT-B-32",
]  # fmt: skip
TWINS = {"MobileCLIP-B": "MobileCLIP2-B", "ViT-SO400M-14-SigLIP-378": "ViT-SO400M-14-SigLIP-384"}


@pytest.fixture(scope="session", autouse=True)
def tiny_architectures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    objective_tools.register_config(folder, "tiny-clip", objective_tools.CONFIG)
    rotary = {"timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token", "timm_proj": None, "image_size": 224}
    objective_tools.register_config(
        folder,
        "tiny-eva02",
        {"embed_dim": 192, "custom_text": True, "vision_cfg": rotary, "text_cfg": objective_tools.TEXT},
    )


def save(path, module_or_weights):
    weights = module_or_weights if isinstance(module_or_weights, dict) else module_or_weights.state_dict()
    safetensors.torch.save_file({key: value.contiguous() for key, value in weights.items()}, path)
    return path


def shapes_of(name):
    return {key: tuple(value.shape) for key, value in clip_weights.on_meta(name, False).state_dict().items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_told_by_their_shapes(name):
    shapes = shapes_of(name)
    assert clip_weights.architecture(shapes) == [name]


@pytest.mark.parametrize(("one", "other"), TWINS.items())
def test_twins_are_told_by_the_name_of_the_file(one, other, tmp_path):
    names = clip_weights.architecture(shapes_of(one))
    assert set(names) == {one, other}
    for name in names:
        assert clip_release.release(names, tmp_path / f"{name}.safetensors", {}).architecture == name


def test_a_changed_width_is_no_known_architecture():
    shapes = shapes_of("ViT-B-32")
    with pytest.raises(ValueError, match="none of open_clip's architectures"):
        clip_weights.architecture({**shapes, "visual.proj": (768, 513)})


@pytest.mark.parametrize("inference", [True, False])
def test_scores_are_open_clips_own(tmp_path, inference):
    clip = objective_tools.tiny_clip()
    path = save(tmp_path / "tiny-clip.safetensors", clip)
    state = torch.get_rng_state()
    with torch.inference_mode(inference):
        scorer, _ = scorer_loader.load_scorer(path, "gelu", "openai")
        text = scorer.embed_lines(["a red ball", "two blue cars"])
    assert torch.equal(torch.get_rng_state(), state)
    assert not text.is_inference() and not any(
        p.is_inference() or p.requires_grad for p in scorer.models[0].model.parameters()
    )
    tokens = open_clip.SimpleTokenizer()(["a red ball", "two blue cars"])
    assert torch.allclose(text, clip.encode_text(tokens), atol=1e-5)
    view = objective_tools.pictures(2, 32)
    mean, std = (torch.tensor(c)[:, None, None] for c in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    assert torch.allclose(scorer.embed_pictures(view), clip.encode_image((view - mean) / std), atol=1e-5)
    assert scorer.side == 32


def test_the_node_finds_files_in_every_folder(tmp_path, run_node):
    folder_paths.add_model_folder_path("text_encoders", str(tmp_path))
    try:
        save(tmp_path / "mine.safetensors", objective_tools.tiny_clip())
        assert "mine.safetensors" in scorer_loader.scorer_files()
        scorer = run_node(NODE, source={"source": "file", "file": "mine.safetensors", "activation": "auto"})[0]
        assert (scorer.name, scorer.side, scorer.mean) == ("tiny-clip", 32, open_clip.OPENAI_DATASET_MEAN)
        refused(
            lambda: run_node(NODE, source={"source": "file", "file": "gone.safetensors"}), "no file 'gone.safetensors'"
        )
    finally:
        folder_paths.folder_names_and_paths["text_encoders"][0].remove(str(tmp_path))


def test_the_activation_is_the_one_that_is_asked_for(tmp_path):
    quick = objective_tools.tiny_clip(quick_gelu=True)
    path = save(tmp_path / "x.safetensors", quick)
    view = objective_tools.pictures(1, 32)
    expected = quick.encode_image(view)
    found = {
        kind: scorer_loader.load_scorer(path, kind, "none")[0].embed_pictures(view) for kind in ("quickgelu", "gelu")
    }
    assert torch.allclose(found["quickgelu"], expected, atol=1e-5)
    assert not torch.allclose(found["gelu"], expected, atol=1e-3)


def test_rotary_tables_are_filled_in(tmp_path):
    """They are not in the file; a module without memory for them would score NaN."""
    with torch.random.fork_rng(devices=[]):
        clip = tiny_scorers.randomized(open_clip.create_model("tiny-eva02")).eval()
    path = save(tmp_path / "tiny-eva02.safetensors", clip)
    state = torch.get_rng_state()
    scorer, _ = scorer_loader.load_scorer(path, "gelu", "none")
    assert torch.equal(torch.get_rng_state(), state)
    view = objective_tools.pictures(1, 224)
    assert torch.allclose(scorer.embed_pictures(view), clip.encode_image(view), atol=1e-4)
    assert torch.allclose(scorer.embed_lines(["a"]), clip.encode_text(open_clip.SimpleTokenizer()(["a"])), atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_transformers_format(tmp_path, activation):
    sizes = {
        "intermediate_size": 128,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": activation,
    }
    text = {**sizes, "vocab_size": 49408, "eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 1}
    vision = {
        **sizes,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    }
    with torch.random.fork_rng(devices=[]):
        clip = transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
        )
    tiny_scorers.randomized(clip).eval()
    path = save(tmp_path / "model.safetensors", clip)
    with torch.inference_mode():  # as a node runs
        scorer, _ = scorer_loader.load_scorer(path, activation.replace("_", ""), "none")
    view, tokens = objective_tools.pictures(2, 32), open_clip.SimpleTokenizer()(["a red ball"])
    assert torch.allclose(
        scorer.embed_pictures(view), clip.get_image_features(pixel_values=view).pooler_output, atol=1e-4
    )
    mask = (torch.arange(77) <= tokens.argmax(-1, keepdim=True)).long()
    expected = clip.get_text_features(input_ids=tokens, attention_mask=mask).pooler_output
    assert torch.allclose(scorer.embed_lines(["a red ball"]), expected, atol=1e-4)


RULES = [
    ("ViT-B-32", "ViT-B-32-openai", {}, True, 0.48145466),
    ("ViT-B-32", "CLIP-ViT-B-32-laion2B-s34B-b79K", {}, False, 0.48145466),
    ("ViT-B-16", "clip-vit-base-patch16", {}, True, 0.48145466),
    ("ViT-L-14", "CLIP-ViT-L-14-laion2B-s32B-b82K", {}, False, 0.5),
    ("ViT-L-14", "DFN2B-CLIP-ViT-L-14", {}, True, 0.48145466),
    ("ViT-L-14", "DFN2B-CLIP-ViT-L-14-39B", {}, False, 0.48145466),
    ("ViT-L-14-336", "anything", {}, True, 0.48145466),
    ("ViT-B-16-SigLIP", "anything", {}, False, 0.5),
    ("ViT-L-14-CLIPA", "anything", {}, False, 0.485),
    ("MobileCLIP2-S0", "anything", {}, False, 0.0),
    ("MobileCLIP2-S4", "anything", {}, False, 0.48145466),
    ("ViT-B-32", "renamed", {"input_resolution": torch.tensor(224)}, True, 0.48145466),
]


@pytest.mark.parametrize(("name", "file", "weights", "quick_gelu", "mean"), RULES)
def test_what_shapes_cannot_tell(tmp_path, name, file, weights, quick_gelu, mean):
    found = clip_release.release([name], tmp_path / file / "open_clip_model.safetensors", weights)
    assert (found.quick_gelu, found.mean[0], found.doubt) == (quick_gelu, mean, "")


def test_mixed_precision_means_quickgelu(tmp_path):
    half = {"ln_final.weight": torch.ones(2), "visual.conv1.weight": torch.ones(2, dtype=torch.float16)}
    assert clip_release.release(["ViT-B-32"], tmp_path / "x.safetensors", half).quick_gelu
    assert not clip_release.release(
        ["ViT-B-32"], tmp_path / "x.safetensors", {k: v.half() for k, v in half.items()}
    ).quick_gelu


def test_doubt_is_said(tmp_path):
    assert "activation" in clip_release.release(["ViT-B-32"], tmp_path / "x.safetensors", {}).doubt
    assert "statistics" in clip_release.release(["ViT-L-14"], tmp_path / "x.safetensors", {}).doubt


def test_the_config_beside_the_file_decides(tmp_path):
    config = {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    found = clip_release.release(["ViT-B-32"], tmp_path / "CLIP-ViT-B-32-laion2B-s34B-b79K.safetensors", {})
    assert found == ("ViT-B-32", True, (0.1, 0.2, 0.3), (1, 2, 3), "")


def refused(action, *words):
    with pytest.raises(ValueError) as caught:
        action()
    said = str(caught.value)
    assert "\n" not in said and all(word in said for word in words), said


def test_files_that_are_no_scorer(tmp_path):
    clip = objective_tools.tiny_clip()
    weights = dict(clip.state_dict())
    visual = {key: value for key, value in weights.items() if key.startswith("visual.")}
    text = {key: value for key, value in weights.items() if not key.startswith("visual.")}
    cases = {
        "image tower": visual,
        "text tower": text,
        "not a CLIP": {"model.diffusion_model.x": torch.zeros(2)},
        "SigLIP in the format of transformers": {
            "vision_model.head.probe": torch.zeros(2),
            "text_model.head.weight": torch.zeros(2),
        },
        "Apple's own format": {"image_encoder.model.x": torch.zeros(2)},
        "none of open_clip's": {**weights, "positional_embedding": torch.zeros(78, 32)},
    }
    for message, content in cases.items():
        save(tmp_path / "x.safetensors", content)
        refused(lambda: scorer_loader.load_scorer(tmp_path / "x.safetensors"), message)


def test_code_and_broken_files_are_not_read(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "jit.pt")
    refused(lambda: clip_formats.read_weights(tmp_path / "jit.pt"), "TorchScript")
    torch.save({"code": objective_tools.tiny_clip}, tmp_path / "pickle.pt")
    refused(
        lambda: clip_formats.read_weights(tmp_path / "pickle.pt"),
        "pickle.pt: the file contains Python code or objects, which are never run",
    )
    (tmp_path / "half.safetensors").write_bytes(b"half a file")
    refused(lambda: clip_formats.read_weights(tmp_path / "half.safetensors"), "half.safetensors")
    torch.save([1, 2], tmp_path / "list.pt")
    refused(lambda: clip_formats.read_weights(tmp_path / "list.pt"), "not named weights")


def test_training_checkpoints_are_unwrapped(tmp_path):
    torch.save({"epoch": 3, "state_dict": {"module.a": torch.ones(2)}}, tmp_path / "epoch_3.pt")
    assert list(clip_formats.read_weights(tmp_path / "epoch_3.pt")) == ["a"]


def test_tokenizers_that_would_be_downloaded(tmp_path, monkeypatch):
    config = open_clip.get_model_config("ViT-B-16-SigLIP")["text_cfg"]
    refused(lambda: clip_text.tokenizer(config, "built in"), "timm/ViT-B-16-SigLIP", "models/text_encoders")
    refused(lambda: clip_text.tokenizer(config, "nothing"), "no tokenizer folder 'nothing'")
    folder = tmp_path / "own"
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "red": 5, "ball": 6}
    transformers.BertTokenizer(vocab=words).save_pretrained(folder)
    monkeypatch.setattr(clip_text, "tokenizer_folders", lambda: {"own": folder, "empty": tmp_path})
    tokens = clip_text.tokenizer(config, "own")(["a red ball"])
    assert tokens.shape == (1, 64) and tokens[0, :5].tolist() == [2, 4, 5, 6, 3]
    refused(lambda: clip_text.tokenizer({**config, "vocab_size": 5}, "own"), "this CLIP knows 5")
    refused(lambda: clip_text.tokenizer(config, "empty"), "cannot be read")
