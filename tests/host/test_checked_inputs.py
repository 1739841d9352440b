"""What a prompt over the API can give a node by mistake is explained in one sentence, by one check for all nodes."""

import inspect

import pytest
import torch

from guidance_lab.nodes.host.checked_inputs import checked

GUIDANCE = "GuidanceLab_CLIPGuidance"


def refused(run_node, message, node, **inputs):
    with pytest.raises(ValueError, match=message) as caught:
        run_node(node, **inputs)
    assert "\n" not in str(caught.value)


def test_a_literal_in_a_socket(run_node):
    for value, shown in ((5, "5"), ("x", "'x'"), ([1, 2], "a list"), ({"a": 1}, "a dictionary"), (True, "True")):
        refused(run_node, f"GALIP CLIP: {shown} stands in 'galip', where a GUIDANCELAB_GALIP belongs: connect one",
                "GuidanceLab_GALIPCLIP", galip=value, file="x")  # fmt: skip


@pytest.mark.parametrize("value", [{"samples": 3}, {}, 5, [1]])
def test_a_literal_in_a_latent(run_node, value):
    refused(run_node, "stands in 'noise', where a LATENT belongs", "GuidanceLab_GALIPSampler",
            galip=object(), conditioning=[[torch.ones(1, 1, 1), {}]], noise=value)  # fmt: skip


@pytest.mark.parametrize("value", [[], [1, 2], [[1, {}]], [[torch.ones(1)]], {"a": 1}, 3])
def test_a_literal_in_a_conditioning(run_node, value):
    refused(run_node, "stands in 'conditioning', where a CONDITIONING belongs", "GuidanceLab_GALIPSampler",
            galip=object(), conditioning=value)  # fmt: skip


def test_an_option_that_does_not_exist(run_node):
    for value in ({"source": "nothing"}, {}, {"source": 3}, 3, "file"):
        refused(run_node, "CLIP Scorer Loader does not know this source .*: choose one of file, comfyui",
                "GuidanceLab_CLIPScorerLoader", source=value)  # fmt: skip


def test_what_belonged_to_another_option(run_node):
    for name, message in (("source.clip", "'source.clip' does not belong to what is chosen in 'source'"),
                          ("nothing", "CLIP Scorer Loader has no input 'nothing'")):  # fmt: skip
        inputs = {"source": {"source": "file", "file": "x"}, name: object()}
        refused(run_node, message, "GuidanceLab_CLIPScorerLoader", **inputs)


def test_a_missing_input_is_named(run_node):
    refused(run_node, "GALIP CLIP: 'file' is missing", "GuidanceLab_GALIPCLIP", galip=object())


def test_an_empty_input_is_named(run_node):
    refused(run_node, "GALIP Save: 'galip' is empty: connect or give a GUIDANCELAB_GALIP", "GuidanceLab_GALIPSave",
            galip=None)  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "much", [1]])
def test_numbers_are_numbers(run_node, value):
    refused(run_node, "strength", "GuidanceLab_XTILoader", file="shapes_star.safetensors", strength=value)


def test_validation_says_what_is_wrong_and_keeps_its_inputs(pack_nodes):
    node = pack_nodes[GUIDANCE]
    assert "stands in 'start_percent', where a number belongs" in node.validate_inputs(start_percent=[1, 2])
    assert node.validate_inputs(start_percent=0.1, end_percent=0.9, decoder="latent_rgb") is True
    spec = inspect.getfullargspec(node.validate_inputs)
    assert spec.args[1:] == ["start_percent", "end_percent", "decoder"] and spec.varkw is None


def test_every_node_is_checked_once(pack_nodes):
    for node in pack_nodes.values():
        execute = node.__dict__["execute"].__func__
        assert execute.checks_inputs
        assert checked(node).__dict__["execute"].__func__ is execute


def test_an_xti_folder_that_goes_away_does_not_break_the_list(pack_nodes, monkeypatch, tmp_path):
    import shutil

    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "xti", raising=False)
    folder_paths.filename_list_cache.pop("xti", None)
    node = pack_nodes["GuidanceLab_XTILoader"]
    (tmp_path / "xti" / "mine").mkdir(parents=True)
    (tmp_path / "xti" / "mine" / "a.safetensors").write_bytes(b"x")
    options = node.GET_NODE_INFO_V1()["input"]["required"]["file"][1]["options"]
    assert any("mine" in name for name in options)
    shutil.rmtree(tmp_path / "xti")
    options = node.GET_NODE_INFO_V1()["input"]["required"]["file"][1]["options"]
    assert not any("mine" in name for name in options) and "shapes_star.safetensors" in options
    folder_paths.filename_list_cache.pop("xti", None)
