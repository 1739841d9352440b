"""Folders of classifiers, captioners and matchers that try to run code, to load another model, or to read elsewhere."""

import json
import os
import pickle
import shutil

import folder_paths
import pytest
import timm
import tiny_captioner
import tiny_scorers
import torch
import transformers
from safetensors.torch import save_file

from guidance_lab.nodes.captions.captioner_loader import read_captioner
from guidance_lab.nodes.clip_guidance.clip_release import _config_beside
from guidance_lab.nodes.clip_guidance.objectives import timm_folder
from guidance_lab.nodes.clip_guidance.objectives.classifier_folder import read_classifier
from guidance_lab.nodes.clip_guidance.objectives.image_text_match import read_matcher
from guidance_lab.nodes.host.model_folders import check_configs, weights_of


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.fixture
def trap(tmp_path):
    """(pickle that runs code when it is loaded the old way, the folder that it makes then)."""
    path, marker = tmp_path / "extra.bin", tmp_path / "exploded"
    torch.save({"state_dict": Payload(marker)}, path)
    return path, marker


def timm_classifier(folder, arguments=None, **config):
    """A tiny ViT of timm in `folder`, with these model_args beside its own."""
    folder.mkdir()
    own = {"img_size": 32, "depth": 2}
    with torch.random.fork_rng(devices=[]):
        network = tiny_scorers.randomized(timm.create_model("test_vit", num_classes=5, **own), 0)
    save_file(network.state_dict(), folder / "model.safetensors")
    content = {"architecture": "test_vit", "num_classes": 5, "model_args": {**own, **(arguments or {})}, **config}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def refused(action, message):
    with pytest.raises(ValueError, match=message) as caught:
        action()
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_the_trap_works(trap):
    """The payload is a real one: unpickled without care it runs."""
    path, marker = trap
    torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize(
    "key",
    ["checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "hf_hub_id", "url"],
)
def test_model_args_that_load_something_are_refused(tmp_path, trap, key):
    path, marker = trap
    folder = timm_classifier(tmp_path / "evil", {key: str(path)})
    refused(lambda: read_classifier(folder), f"has '{key}' in model_args, which is no size of an architecture")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("scriptable", True, "which 'test_vit' does not know as a size of its own"),
        ("anything", 3, "which 'test_vit' does not know"),
        ("act_layer", "../../evil", "only numbers"),
        ("act_layer", {"a": 1}, "only numbers"),
        ("norm_layer", "https://host/x", "only numbers"),
        ("depth", 10**9, "only numbers"),
        ("embed_dim", 10**12, "only numbers"),
        ("img_size", [32] * 1000, "only numbers"),
        ("img_size", [[[32]]], "only numbers"),
        ("init_values", 1e400, "only numbers"),
        ("embed_dim", 128, "the weights are not those of 'test_vit'"),
        ("embed_layer", "x", "the weights are not those of 'test_vit'"),
    ],
)
def test_other_model_args_are_sizes_of_the_architecture(tmp_path, key, value, message):
    refused(lambda: read_classifier(timm_classifier(tmp_path / "odd", {key: value})), message)


def test_sizes_are_taken(tmp_path):
    folder = timm_classifier(tmp_path / "good", {"global_pool": "token", "drop_rate": 0.1, "qkv_bias": True})
    assert read_classifier(folder).network.network.global_pool == "token"


def test_strange_configs_of_timm_are_one_sentence(tmp_path):
    for number, (config, message) in enumerate(
        [
            ({"architecture": {"a": 1}}, "does not have"),
            ({"architecture": "local-dir:/etc"}, "does not have"),
            ({"architecture": "hf-hub:a/b"}, "does not have"),
            ({"architecture": "a\nb\n"}, "does not have"),
            ({"model_args": {"a\nb": 1}}, "does not know"),
            ({"model_args": {"a\nb": {}}}, "only numbers"),
            ({"num_classes": "5"}, "5 classes"),
            ({"num_classes": -1}, "-1 classes"),
            ({"model_args": [1]}, "no short list"),
            ({"label_names": {"a": 1}}, "no list of names"),
            ({"pretrained_cfg": {"mean": [0.5, 0.5], "std": [0.5] * 3}}, "three numbers each"),
            ({"pretrained_cfg": {"std": [0, 1, 1]}}, "above 0"),
            ({"pretrained_cfg": {"input_size": [3, 10**9, 10**9]}}, "1 to 4096"),
        ]
    ):
        folder = timm_classifier(tmp_path / str(number), **config)
        refused(lambda folder=folder: read_classifier(folder), message)


def test_an_old_timm_is_refused(tmp_path, monkeypatch):
    folder = timm_classifier(tmp_path / "fine")
    monkeypatch.setattr(timm, "__version__", "1.0.25")
    refused(lambda: read_classifier(folder), "timm 1.0.25 can run code .* update timm to 1.0.26 or newer")


def test_the_floor_of_timm_is_the_one_in_the_requirements():
    text = (timm_folder.Path(__file__).resolve().parents[2] / "requirements.txt").read_text()
    assert f"timm>={'.'.join(map(str, timm_folder.OLDEST))}" in text


def test_the_wrapper_of_transformers_is_refused(tmp_path, trap):
    path, marker = trap
    folder = timm_classifier(tmp_path / "wrapped")
    config = {"model_type": "timm_wrapper", "model_args": {"checkpoint_path": str(path)}, "label_names": list("abcde")}
    for kinds in (["TimmWrapperForImageClassification"], ["ViTForImageClassification"]):
        (folder / "config.json").write_text(json.dumps({**config, "architectures": kinds, "architecture_": "test_vit"}))
        refused(lambda: read_classifier(folder), "wrapper of transformers")
    nested = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "vision_config": config}
    (folder / "config.json").write_text(json.dumps(nested))
    refused(lambda: read_classifier(folder), "wraps a model of timm")
    assert not marker.exists()


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    return tiny_captioner.blip(tmp_path_factory.mktemp("captioners") / "blip")


@pytest.fixture
def captioner(blip, tmp_path):
    shutil.copytree(blip, tmp_path / "blip")
    return tmp_path / "blip"


def change(path, **entries):
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **entries}))


@pytest.mark.parametrize(
    ("file", "entries", "message"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "code.Config"}}, "'auto_map', which loads code"),
        ("config.json", {"text_config": {"auto_map": {"AutoModel": "a--b.C"}}}, "'auto_map', which loads code"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["code.T", None]}}, "'auto_map', which loads code"),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "code.P"}}, "'auto_map', which loads code"),
        ("generation_config.json", {"custom_generate": "someone/code"}, "'custom_generate', which loads code"),
        ("config.json", {"quantization_config": {"quant_method": "gptq"}}, "'quantization_config', which loads code"),
        ("config.json", {"attn_implementation": "someone/kernel"}, "asks for the attention 'someone/kernel'"),
        ("config.json", {"vision_config": {"_attn_implementation": "a/b"}}, "asks for the attention"),
        ("config.json", {"vision_config": {"model_type": "timm_backbone"}}, "wraps a model of timm"),
        ("config.json", {"transformers_weights": "../x.safetensors"}, "'transformers_weights', which loads"),
        ("adapter_config.json", {"base_model_name_or_path": "someone/model"}, "another model"),
        ("tokenizer_config.json", {"vocab_file": "/etc/passwd"}, "names a file outside the folder"),
        ("tokenizer_config.json", {"tokenizer_file": "\\\\host\\share\\x"}, "names a file outside the folder"),
        ("tokenizer_config.json", {"vocab_file": "https://host/x"}, "names a file outside the folder"),
    ],
)
def test_configs_that_ask_for_more_are_refused(captioner, file, entries, message):
    (captioner / "code.py").write_text(f"open({str(captioner / 'exploded')!r}, 'w')\n")
    change(captioner / file, **entries)
    refused(lambda: read_captioner(captioner), message)
    assert not (captioner / "exploded").exists()


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("text_config", "num_hidden_layers", 10**9),
        ("text_config", "max_position_embeddings", 10**9),
        ("text_config", "vocab_size", -(10**30)),
        ("vision_config", "image_size", 2**16),
        ("vision_config", "depths", [2, 10**6]),
        ("vision_config", "num_channels", 10**6),
        ("text_config", "num_image_with_embedding", 1000),
    ],
)
def test_a_network_without_end_is_not_built(captioner, part, key, value):
    config = json.loads((captioner / "config.json").read_text())
    config[part][key] = value
    (captioner / "config.json").write_text(json.dumps(config))
    refused(lambda: read_captioner(captioner), f"gives '{key}' as .* and no network has more than")


@pytest.mark.parametrize("part", ["vision_config", "text_config"])
def test_a_config_without_its_sizes_builds_no_whole_model(tmp_path, monkeypatch, part):
    """transformers fills in the sizes of the published network: 500 MB for a file of 250 kB."""
    folder = tiny_captioner.blip(tmp_path / "itm", network_class=transformers.BlipForImageTextRetrieval)
    config = json.loads((folder / "config.json").read_text())
    del config[part]
    (folder / "config.json").write_text(json.dumps(config))

    def build(*_, **__):
        raise AssertionError("the network was built")

    monkeypatch.setattr(transformers.BlipForImageTextRetrieval, "from_pretrained", build)
    refused(lambda: read_matcher(folder, ["a red ball"]), r"model of \d+ million weights, the files hold 0\.1")


def test_what_published_folders_carry_is_accepted(captioner):
    change(captioner / "config.json", quantization_config=None, _name_or_path="/home/someone/blip")
    change(
        captioner / "tokenizer_config.json", special_tokens_map_file="/gone/x.json", name_or_path="bert-base-uncased"
    )
    assert read_captioner(captioner).name == "blip"


def test_parts_are_read_and_stay_in_the_folder(captioner, tmp_path):
    whole = weights_of(captioner)
    names = sorted(whole)
    parts = {"a.safetensors": names[:40], "b.safetensors": names[40:]}
    for file, keys in parts.items():
        save_file({key: whole[key].clone() for key in keys}, captioner / file)
    index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
    whole = {key: value.clone() for key, value in whole.items()}
    (captioner / "model.safetensors").unlink()
    (captioner / "model.safetensors.index.json").write_text(json.dumps(index))
    again = weights_of(captioner)
    assert all(torch.equal(again[key], whole[key]) for key in whole) and read_captioner(captioner)
    shutil.copy(captioner / "b.safetensors", tmp_path / "b.safetensors")
    for name in ("../b.safetensors", str(tmp_path / "b.safetensors"), "..\\b.safetensors", "b.bin", 3):
        index["weight_map"][names[-1]] = name
        (captioner / "model.safetensors.index.json").write_text(json.dumps(index))
        refused(lambda: weights_of(captioner), "names a file outside the folder")


def test_pickled_weights_beside_the_safetensors_are_left_alone(captioner, tmp_path):
    marker = tmp_path / "exploded"
    for name in ("pytorch_model.bin", "training_args.bin", "vocab.pkl"):
        (captioner / name).write_bytes(pickle.dumps(Payload(marker)))
    assert read_captioner(captioner) and not marker.exists()


def test_a_matcher_is_checked_too(tmp_path):
    folder = tiny_captioner.blip(tmp_path / "itm", network_class=transformers.BlipForImageTextRetrieval)
    assert read_matcher(folder, ["a"]).side == tiny_captioner.SIDE
    change(folder / "config.json", auto_map={"AutoModel": "code.M"})
    refused(lambda: read_matcher(folder, ["a"]), "'auto_map', which loads code")
    change(folder / "config.json", auto_map=None, architectures="BlipX")
    refused(lambda: read_matcher(folder, ["a"]), "is a BlipX, which cannot judge a match")


def test_a_config_that_never_ends_is_refused(tmp_path):
    for text in ("[" * 100_000, '{"a":' * 100_000, "{" + '"a": [' * 30 + "]" * 30 + "}", "1" * 10_000, "[1]", "\x00"):
        (tmp_path / "config.json").write_text(text)
        refused(lambda: check_configs(tmp_path), "config.json")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_cfg": {"quick_gelu": True, "text_cfg": {"hf_model_name": "someone/code"}}}, {"quick_gelu": True}),
        ({"model_cfg": "hf-hub:someone/model", "preprocess_cfg": []}, {}),
        ({"preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}, {"mean": (0.5,) * 3, "std": (0.5,) * 3}),
    ],
)
def test_of_a_clip_config_only_known_numbers_are_taken(tmp_path, config, expected):
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert _config_beside(tmp_path / "clip.safetensors") == expected


@pytest.mark.parametrize(
    "mean", [[0.5, 0.5], "abc", "a\nb", "\ud800", [0.5, "x", 0.5], [float("nan")] * 3, [[0.5]] * 3, None, 1e9]
)
def test_pixel_statistics_of_a_clip_config_are_checked(tmp_path, mean):
    config = {"preprocess_cfg": {"mean": mean, "std": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    refused(lambda: _config_beside(tmp_path / "clip.safetensors"), "three numbers each")


def test_folders_are_found_by_name_only(run_node, tmp_path):
    """A workflow names a folder; a path in its place leads nowhere."""
    timm_classifier(tmp_path / "outside")
    for name in ("../outside", str(tmp_path / "outside"), "..", "", "/etc"):
        with pytest.raises(ValueError, match="no folder"):
            run_node("GuidanceLab_ObjectiveClassifier", classifier=name, class_name="1")
    assert folder_paths.get_full_path("clip_vision", "../../outside/model.safetensors") is None
