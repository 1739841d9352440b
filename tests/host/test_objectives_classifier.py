"""Objective: Classifier on folders of timm, transformers and WD taggers: the log probability that the network itself
gives.
"""

import csv
import json

import folder_paths
import objective_tools
import pytest
import timm
import tiny_scorers
import torch
import transformers
from safetensors.torch import save_file

from guidance_lab.nodes.clip_guidance.objectives.classifier import find_class

NODE = "GuidanceLab_ObjectiveClassifier"
MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """`models/classifiers` for this file's tests, found as a folder of extra_model_paths.yaml is."""
    folder = tmp_path_factory.mktemp("classifiers")
    folder_paths.add_model_folder_path("classifiers", str(folder))
    yield folder
    folder_paths.folder_names_and_paths["classifiers"][0].remove(str(folder))


def save_timm(folder, count=5, seed=0, side=32, config=None, change=None):
    """A tiny ViT of timm as it is published: weights and config.json."""
    folder.mkdir(parents=True)
    options = {"img_size": side, "depth": 2}
    with torch.random.fork_rng(devices=[]):
        network = tiny_scorers.randomized(timm.create_model("test_vit", num_classes=count, **options), seed)
    save_file({**network.state_dict(), **(change or {})}, folder / "model.safetensors")
    pixels = {"input_size": [3, side, side], "mean": MEAN, "std": STD}
    content = {
        "architecture": "test_vit",
        "num_classes": count,
        "model_args": options,
        "pretrained_cfg": pixels,
        **(config or {}),
    }
    (folder / "config.json").write_text(json.dumps(content))
    return network


def save_transformers(folder, names, **options):
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
    }
    with torch.random.fork_rng(devices=[]):
        config = transformers.ViTConfig(
            **sizes, num_labels=4, **({"id2label": dict(enumerate(names))} if names else {}), **options
        )
        network = tiny_scorers.randomized(transformers.ViTForImageClassification(config))
    network.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=MEAN, image_std=STD).save_pretrained(
        folder
    )
    return network


def normalized(view):
    mean, std = (torch.tensor(c)[:, None, None] for c in (MEAN, STD))
    return (view - mean) / std


def scorer(run_node, folder, text, **options):
    ((_, part),) = run_node(NODE, classifier=folder, class_name=text, **options)[0].parts
    return part


def test_timm(models, run_node):
    network = save_timm(models / "timm-tiny", config={"label_names": ["a", "tabby_cat", "c, crab", "d", "e"]})
    view = objective_tools.pictures(2, 32)
    expected = network(normalized(view)).log_softmax(-1)
    for text, index in (("Tabby Cat", 1), ("crab", 2), ("4", 4)):
        part = scorer(run_node, "timm-tiny", text)
        assert torch.allclose(part.score(view, objective_tools.scoring_step()), expected[:, index], atol=1e-4)
    assert (part.side, part.fill) == (32, 0.0)
    objective_tools.check_gradient(part, view)
    objective_tools.check_batch(part, 32)


def test_transformers(models, run_node):
    network = save_transformers(models / "hf" / "vit-tiny", ["owl", "cat", "dog", "fox"])
    view = objective_tools.pictures(2, 32)
    expected = network(normalized(view)).logits.log_softmax(-1)[:, 2]
    part = scorer(run_node, "hf/vit-tiny", "dog")
    assert torch.allclose(part.score(view, objective_tools.scoring_step()), expected, atol=1e-5)
    objective_tools.check_gradient(part, view)


def test_several_labels_of_transformers(models, run_node):
    network = save_transformers(
        models / "multi", ["owl", "cat", "dog", "fox"], problem_type="multi_label_classification"
    )
    view = objective_tools.pictures(1, 32)
    expected = torch.nn.functional.logsigmoid(network(normalized(view)).logits)[:, [0, 3]].sum(-1)
    assert torch.allclose(
        scorer(run_node, "multi", "owl, fox").score(view, objective_tools.scoring_step()), expected, atol=1e-5
    )


def test_tagger_reads_blue_first_and_white_padding(models, run_node):
    network = save_timm(models / "wd-tiny", seed=2)
    with (models / "wd-tiny" / "selected_tags.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerows(
            [
                ["tag_id", "name", "category", "count"],
                *([i, n, 0, 9] for i, n in enumerate(["1girl", "red_hair", "sky", "x", "y"])),
            ]
        )
    view = objective_tools.pictures(2, 32)
    part = scorer(run_node, "wd-tiny", "red hair, sky")
    expected = torch.nn.functional.logsigmoid(network(normalized(view)[:, [2, 1, 0]]))[:, [1, 2]].sum(-1)
    assert torch.allclose(part.score(view, objective_tools.scoring_step()), expected, atol=1e-4)
    assert part.fill == 1.0
    objective_tools.check_gradient(part, view)


def test_nothing_global_is_touched(models, run_node):
    save_timm(models / "quiet", config={"label_names": list("abcde")})
    state = torch.get_rng_state()
    part = scorer(run_node, "quiet", "a")
    objective_tools.gradient(part, objective_tools.pictures(1, 32))
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(p.is_inference() or p.requires_grad for p in part.models[0].model.parameters())


def test_imagenet_names_come_with_timm(models, run_node):
    save_timm(models / "imagenet", count=1000)
    assert scorer(run_node, "imagenet", "tabby").classes == [281]
    assert scorer(run_node, "imagenet", "tench, Tinca tinca").classes == [0]
    refused(run_node, "crane' is the name of 2 classes of imagenet, so give the number: 134", "imagenet", "crane")
    refused(run_node, "imagenet has no class 'taby cat': near names are .*tabby", "imagenet", "taby cat")


def refused(run_node, message, folder, text, **options):
    with pytest.raises(ValueError, match=message) as caught:
        run_node(NODE, classifier=folder, class_name=text, **options)
    assert "\n" not in str(caught.value)


def test_names_that_are_numbers_and_names_that_look_alike():
    assert find_class(["7", "3"], "3", "x") == 1
    with pytest.raises(ValueError, match="has no class 'zzz': its classes are such as owl, cat"):
        find_class(["owl", "cat"], "zzz", "x")


def test_bad_folders(models, run_node, pack_nodes):
    save_timm(models / "nameless")
    refused(
        run_node,
        "nameless has no names for its classes, so 'cat' means nothing to it: give the number",
        "nameless",
        "cat",
    )
    refused(run_node, "classes 0 to 4, not 5", "nameless", "5")
    assert scorer(run_node, "nameless", "3").classes == [3]
    refused(run_node, "class of Objective: Classifier is empty", "nameless", " , ")
    assert (
        "empty" in pack_nodes[NODE].validate_inputs(class_name="")
        and pack_nodes[NODE].validate_inputs(class_name=None) is True
    )
    refused(run_node, "no folder 'gone'", "gone", "1")
    refused(run_node, "weight is nan", "nameless", "1", weight=float("nan"))

    save_transformers(models / "labels", None)
    refused(run_node, "has no names for its classes", "labels", "cat")
    save_timm(models / "two", config={"label_names": ["a", "b"]})
    refused(run_node, "5 classes but 2 names", "two", "a")
    save_timm(models / "unknown", config={"architecture": "hf-hub:someone/something"})
    refused(run_node, "which timm .* does not have", "unknown", "1")
    save_timm(models / "other", config={"num_classes": 9})
    refused(run_node, "the weights are not those of 'test_vit'", "other", "1")
    save_timm(models / "nan", change={"head.bias": torch.full((5,), float("nan"))})
    refused(run_node, "makes NaN of a picture", "nan", "1")
    transformers.ViTModel(
        transformers.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(models / "body")
    refused(run_node, "body is a ViTModel, not an image classifier", "body", "1")
    (models / "bin").mkdir()
    (models / "bin" / "config.json").write_text('{"architecture": "test_vit"}')
    refused(run_node, "bin has no .safetensors weights", "bin", "1")
    (models / "bin" / "config.json").write_text("no json")
    refused(run_node, "no readable config.json", "bin", "1")
