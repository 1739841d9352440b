"""XTI Loader and XTI Save in the host: every format, folders, refusals, numbering and metadata."""

import json
import os
import pickle

import folder_paths
import pytest
import safetensors
import safetensors.torch
import torch
import xti_layouts as layouts
from comfy.cli_args import args

from guidance_lab import xti
from guidance_lab.nodes.layers.xti_files import XTILoader, XTISave, xti_files
from guidance_lab.xti.layers import named_table

VALUES = layouts.rows(seed=1)
SD1 = named_table("sd1")


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Own models and output folders, and no memory of earlier listings."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    folder_paths.folder_names_and_paths.pop("xti", None)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    (tmp_path / "models" / "xti").mkdir(parents=True)
    return tmp_path


def put(folders, name: str, data) -> str:
    path = folders / "models" / "xti" / name
    if name.endswith(".safetensors"):
        safetensors.torch.save_file(data, path)
    else:
        torch.save(data, path)
    return name


def load(run_node, name: str, **options):
    assert name in xti_files()
    return run_node("GuidanceLab_XTILoader", file=name, **{"strength": 1.0, **options})[0]


def rows(loaded) -> torch.Tensor:
    return torch.stack(list(loaded.layers.values()))


@pytest.mark.parametrize(("name", "data", "source"), [
    ("kohya.safetensors", layouts.kohya(VALUES), "kohya"), ("kohya.pt", layouts.kohya(VALUES), "kohya"),
    ("kohya.ckpt", dict(reversed(layouts.kohya(VALUES).items())), "kohya"), ("seongmon.bin", layouts.numbered(VALUES),
    "seongmon"),
    ("plus.safetensors", layouts.promptplusplus(VALUES, VALUES[0, 0]), "promptplusplus"),
    ("ed.pth", layouts.ed_lora({"<new1>": VALUES[:, 0]}), "ed-lora"),
])  # fmt: skip
def test_every_format_is_loaded(folders, run_node, name, data, source):
    loaded = load(run_node, put(folders, name, data))
    assert loaded.source == source and torch.equal(rows(loaded), VALUES)
    assert loaded.metadata["name"] == name.partition(".")[0]


def test_mkshings_seven_tokens_and_a_textual_inversion(folders, run_node):
    tied = VALUES.clone()
    tied[7:] = tied[7]
    loaded = load(run_node, put(folders, "mk.bin", layouts.numbered(tied)))
    assert loaded.source == "mkshing" and torch.equal(
        rows(loaded), VALUES[[0, 0, 1, 1, 2, 2, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6]]
    )
    inversion = load(run_node, put(folders, "ti.safetensors", {"emb_params": VALUES[3]}))
    assert inversion.shared and torch.equal(inversion.layers["MID"], VALUES[3])


def test_strength_is_a_factor_and_one_is_exact(folders, run_node):
    name = put(folders, "a.safetensors", layouts.kohya(VALUES))
    assert torch.equal(rows(load(run_node, name, strength=0.5)), VALUES * 0.5)
    assert torch.equal(rows(load(run_node, name, strength=0.0)), torch.zeros_like(VALUES))


def test_token_and_common_token(folders, run_node):
    other = layouts.rows(seed=2)
    name = put(folders, "two.pth", layouts.ed_lora({"<cat>": VALUES[:, 0], "<dog>": other[:, 0]}))
    with pytest.raises(ValueError, match="several tokens, <cat>, <dog>: choose one"):
        load(run_node, name)
    assert torch.equal(rows(load(run_node, name, token=" <dog> ")), other)
    name = put(folders, "plus.safetensors", layouts.promptplusplus(VALUES, other[0, 0]))
    first = rows(load(run_node, name, common_token_first=True))
    assert torch.equal(first[:, :1], other[:1].expand(16, -1, -1)) and torch.equal(first[:, 1:], VALUES)


class Code:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_bad_files_are_refused_with_their_name(folders, run_node, monkeypatch):
    monkeypatch.chdir(folders)
    whole = layouts.kohya(VALUES)
    put(folders, "code.pt", {"IN01": Code()})
    put(folders, "short.safetensors", {name: whole[name] for name in SD1.names[:9]})
    put(folders, "wide.safetensors", {**whole, "MID": torch.zeros(1, 700)})
    put(folders, "lora.safetensors", {"lora_unet_mid.lora_up.weight": torch.zeros(2, 2)})
    put(folders, "cut.safetensors", whole)
    folder = folders / "models" / "xti"
    (folder / "cut.safetensors").write_bytes((folder / "cut.safetensors").read_bytes()[:-100])
    (folder / "plain.pt").write_bytes(pickle.dumps({"MID": 1}))
    reasons = {
        "code.pt": "contains Python code", "short.safetensors": "7 of 16 layers are missing",
        "wide.safetensors": "different shapes",
        "lora.safetensors": "this is a LoRA", "cut.safetensors": "damaged", "plain.pt": "",
    }  # fmt: skip
    for name, reason in reasons.items():
        with pytest.raises(ValueError, match=f"^{name}: .*{reason}"):
            load(run_node, name)
    assert not (folders / "executed").exists()


def test_extra_folders_output_and_the_shipped_example_are_listed(folders):
    extra = folders / "elsewhere"
    extra.mkdir()
    folder_paths.add_model_folder_path("xti", str(extra))  # as extra_model_paths.yaml does, before the pack is loaded
    safetensors.torch.save_file(layouts.kohya(VALUES), extra / "far.safetensors")
    put(folders, "near.bin", layouts.numbered(VALUES))
    (folders / "output" / "xti").mkdir(parents=True)
    safetensors.torch.save_file(layouts.kohya(VALUES), folders / "output" / "xti" / "mine_00001_.safetensors")
    (folders / "models" / "xti" / "notes.txt").write_text("no model")
    listed = xti_files()
    assert {"far.safetensors", "near.bin", "mine_00001_.safetensors"} <= set(listed) and "notes.txt" not in listed
    assert listed == xti_files()
    (options,) = [entry.options for entry in XTILoader.define_schema().inputs if entry.id == "file"]
    assert options == listed


def test_a_file_that_went_away_is_named(folders, run_node):
    with pytest.raises(ValueError, match="no file 'gone.pt' in models/xti"):
        run_node("GuidanceLab_XTILoader", file="gone.pt", strength=1.0)


def test_a_changed_file_is_loaded_again(folders):
    name = put(folders, "a.safetensors", layouts.kohya(VALUES))
    xti_files()
    before = XTILoader.fingerprint_inputs(file=name)
    assert before == XTILoader.fingerprint_inputs(file=name)
    put(folders, name, layouts.kohya(layouts.rows(vectors=2)))
    assert XTILoader.fingerprint_inputs(file=name) != before


def saved(folders) -> list:
    return sorted((folders / "output").rglob("*.safetensors"))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_save_writes_what_load_reads(folders, run_node, dtype):
    loaded = load(run_node, put(folders, "a.safetensors", layouts.kohya(VALUES)))
    run_node("GuidanceLab_XTISave", xti=loaded, filename_prefix="deep/er/name", dtype=dtype)
    (path,) = saved(folders)
    assert path.relative_to(folders / "output").as_posix() == "deep/er/name_00001_.safetensors"
    assert torch.equal(rows(xti.load(path)), VALUES.to(getattr(torch, dtype)).float())
    with safetensors.safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(SD1.names) and file.get_tensor("MID").dtype == getattr(torch, dtype)


def test_save_never_overwrites(folders, run_node):
    loaded = load(run_node, put(folders, "a.safetensors", layouts.kohya(VALUES)))
    for _ in range(3):
        run_node("GuidanceLab_XTISave", xti=loaded, filename_prefix="xti/x", dtype="float32")
    assert [path.name for path in saved(folders)] == [f"x_0000{i}_.safetensors" for i in (1, 2, 3)]
    with pytest.raises(ValueError, match="leads out of the output folder"):
        run_node("GuidanceLab_XTISave", xti=loaded, filename_prefix="../x", dtype="float32")


@pytest.mark.parametrize("disabled", [False, True])
def test_the_prompt_is_recorded_unless_metadata_is_off(folders, monkeypatch, disabled):
    monkeypatch.setattr(args, "disable_metadata", disabled)
    metadata = {"steps": "7", "name": "old", "prompt": "old", "workflow": "old"}
    token = xti.XTI(SD1, dict(zip(SD1.names, VALUES)), "trained", {"clip_l": 768}, metadata=metadata)
    hidden = {"prompt": {"1": {"class_type": "X"}}, "extra_pnginfo": {"workflow": {"nodes": []}}}
    node = XTISave.PREPARE_CLASS_CLONE({"hidden_inputs": {}})
    for key, value in hidden.items():
        setattr(node.hidden, key, value)
    node.execute(token, "xti/x", "float32")
    found = xti.load(saved(folders)[0]).metadata
    assert found["steps"] == "7" and found["format"] == "kohya-xti" and "name" not in found
    assert ("prompt" in found, "workflow" in found) == (not disabled, not disabled)
    if not disabled:
        assert json.loads(found["prompt"]) == hidden["prompt"] and json.loads(found["workflow"]) == {"nodes": []}


def test_an_sdxl_token_comes_back_from_our_own_format(folders, run_node):
    table = named_table("sdxl")
    values = layouts.rows(11, 2, 2048, seed=3)
    token = xti.XTI(table, dict(zip(table.names, values)), "trained", {"clip_l": 768, "clip_g": 1280})
    run_node("GuidanceLab_XTISave", xti=token, filename_prefix="xti/xl", dtype="float32")
    loaded = load(run_node, "xl_00001_.safetensors")
    assert loaded.encoders == token.encoders and torch.equal(rows(loaded), values)
