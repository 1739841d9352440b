"""GALIP Save: the same generator back from a small file, and no file lost."""

import json
from pathlib import Path

import comfy.cli_args
import folder_paths
import pytest
import tiny_galip
import torch
from safetensors import safe_open

from guidance_lab.galip import load_generator
from guidance_lab.nodes.galip import Galip

ID = "GuidanceLab_GALIPSave"


def make(dtype: torch.dtype = torch.float32) -> Galip:
    return Galip(
        load_generator(tiny_galip.generator_weights(), dtype=dtype, sizes=tiny_galip.DIMS.sizes), "pre_tiny.pth"
    )


@pytest.fixture
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


def test_fp32_keeps_every_bit_and_fp16_rounds_once(output, run_node):
    galip = make()
    run_node(ID, galip=galip, precision="fp32")
    run_node(ID, galip=galip, precision="fp16")
    full, half = sorted((output / "galip").iterdir())
    assert (full.name, half.name) == ("generator_00001_.safetensors", "generator_00002_.safetensors")
    again, rounded = load_generator(full), load_generator(half)
    assert again.dims == galip.dims and again.dims.sizes == (8, 16, 32)
    for key, value in galip.generator.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
        assert torch.equal(rounded.state_dict()[key], value.half().float())


def test_files_are_never_overwritten(output, run_node):
    (output / "mine").mkdir(parents=True)
    (output / "mine" / "a_00001_.safetensors").write_bytes(b"precious")
    for _ in range(2):
        run_node(ID, galip=make(), filename_prefix="mine/a")
    assert sorted(path.name for path in (output / "mine").iterdir()) == [
        f"a_0000{index}_.safetensors" for index in (1, 2, 3)
    ]
    assert (output / "mine" / "a_00001_.safetensors").read_bytes() == b"precious"


def test_nothing_is_written_outside_the_output_folder(output, run_node, tmp_path):
    with pytest.raises(ValueError, match="leads out of the output folder: give a name inside it"):
        run_node(ID, galip=make(), filename_prefix="../elsewhere/a")
    assert not (tmp_path / "elsewhere").exists()


def metadata(path: Path) -> dict:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_metadata_has_sizes_source_and_workflow(output, pack_nodes, monkeypatch):
    def save():
        hidden = {"prompt": {"1": {"class_type": ID}}, "extra_pnginfo": {"workflow": {"nodes": []}}}
        node = pack_nodes[ID].PREPARE_CLASS_CLONE(
            {"hidden_inputs": {_hidden(name): value for name, value in hidden.items()}}
        )
        node.EXECUTE_NORMALIZED(galip=make(), filename_prefix="a")
        return metadata(sorted(output.iterdir())[-1])

    found = save()
    assert (found["architecture"], found["nz"], found["sizes"], found["source"]) == (
        "GALIP",
        "12",
        "8,16,32",
        "pre_tiny.pth",
    )
    assert json.loads(found["prompt"]) == {"1": {"class_type": ID}} and json.loads(found["workflow"]) == {"nodes": []}
    monkeypatch.setattr(comfy.cli_args.args, "disable_metadata", True)
    assert {"prompt", "workflow"} & set(save()) == set()


def _hidden(name: str):
    from comfy_api.v0_0_2 import io

    return getattr(io.Hidden, name)


@pytest.mark.parametrize("dtype, precision, allowed", [
    (torch.float16, "fp16", True), (torch.float16, "fp32", False), (torch.bfloat16, "fp16", False), (torch.bfloat16,
    "fp32", False),
])  # fmt: skip
def test_precision_that_was_lost_is_not_invented(output, run_node, dtype, precision, allowed):
    if allowed:
        run_node(ID, galip=make(dtype), precision=precision)
        return
    with pytest.raises(ValueError, match="loaded in .*load it with precision fp32"):
        run_node(ID, galip=make(dtype), precision=precision)
    assert not output.exists() or not list(output.rglob("*.safetensors"))


def test_a_weight_that_fp16_cannot_hold_is_refused(output, run_node):
    galip = make()
    galip.generator.to_rgb[1].bias.data[0] = 1e5
    with pytest.raises(ValueError, match="to_rgb.1.bias.*float32"):
        run_node(ID, galip=galip)
    assert not list(output.rglob("*.safetensors"))


def test_a_save_that_fails_leaves_nothing_and_takes_nothing(output, run_node):
    galip = make()
    galip.generator.to_rgb[1].bias.data.fill_(1e5)
    run_node(ID, galip=make())
    with pytest.raises(ValueError, match="does not fit"):
        run_node(ID, galip=galip)
    assert [path.name for path in (output / "galip").iterdir()] == ["generator_00001_.safetensors"]


@pytest.mark.parametrize("prefix", ["a\0b", "x" * 300, "galip/" + "y/" * 3000])
def test_a_name_that_cannot_be_is_one_sentence(output, run_node, prefix):
    with pytest.raises(ValueError, match="filename_prefix is|No file") as caught:
        run_node(ID, galip=make(), filename_prefix=prefix)
    assert "\n" not in str(caught.value)
