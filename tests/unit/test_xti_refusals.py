"""Files that are not an XTI, or a damaged one, are refused with one sentence that begins with the file's name."""

import os
import pickle

import pytest
import safetensors.torch
import torch
import xti_layouts as layouts

from guidance_lab import xti

VALUES = layouts.rows()
KOHYA = layouts.kohya(VALUES)
NUMBERED = layouts.numbered(VALUES)
PLUSPLUS = layouts.promptplusplus(layouts.rows(vectors=2), VALUES[0, 0])
SDXL = layouts.sdxl(layouts.rows(11), layouts.rows(11, width=1280))
TABLE = {"format": "guidance-lab-xti-1", "layer_table": '{"image_model": "wan2.1"}'}


def without(data: dict, key: str) -> dict:
    return {name: value for name, value in data.items() if name != key}


def with_nan(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.full_like(rows[:1], torch.nan), rows[1:]])


def refuse(path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        xti.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path.name}: ") and "\n" not in text and text.endswith(".")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (without(KOHYA, "MID"), r"1 of 16 layers are missing \(MID\)"),
        ({**without(KOHYA, "MID"), "MIDDLE": VALUES[0]}, "missing"),
        ({**KOHYA, "OUT12": VALUES[0]}, '"OUT12" is not a cross-attention layer'),
        ({**KOHYA, "IN08": layouts.rows(1, 2)[0]}, "different shapes"),
        ({**KOHYA, "IN08": torch.zeros(1, 640)}, "different shapes"),
        ({**KOHYA, "IN08": torch.zeros(1, 2, 768)}, r"layer IN08 has shape \(1, 2, 768\)"),
        ({**KOHYA, "IN08": torch.zeros(0, 768)}, "layer IN08 has shape"),
        ({**KOHYA, "IN08": with_nan(VALUES[5, 0])[None]}, "layer IN08 holds NaN"),
        ({**KOHYA, "IN08": VALUES[5] / 0}, "layer IN08 holds NaN or infinite"),
        ({**KOHYA, "IN08": torch.zeros(1, 768, dtype=torch.int64)}, "layer IN08 holds torch.int64"),
        (without(NUMBERED, "<cat>-7"), "<cat> lacks the layers 7 of 0-15"),
        ({**NUMBERED, "<cat>-16": VALUES[0, 0]}, "<cat> has a layer 16"),
        ({**NUMBERED, "<cat>-3": with_nan(VALUES[3, 0])}, '"<cat>-3" holds NaN'),
        ({**NUMBERED, "<cat>-3": VALUES[3, 0, :700]}, "layer IN05 is 700 wide instead of 768"),
        ({**NUMBERED, "extra": VALUES[0, 0]}, "no known XTI or textual inversion has the keys"),
        (without(PLUSPLUS, "<cat-7-1>"), "<cat> does not have 2 vectors in every layer"),
        (without(without(PLUSPLUS, "<cat-7-1>"), "<cat-7-0>"), "<cat> lacks the layers 7"),
        ({**PLUSPLUS, "<dog>": VALUES[0, 0]}, '"<dog>" does not belong'),
        (without(SDXL, "MID.clip_g"), "Layer MID has tokens for clip_l but others for clip_l and clip_g"),
        (without(without(SDXL, "MID.clip_g"), "MID.clip_l"), r"1 of 11 layers are missing \(MID\)"),
        ({**SDXL, "MID.clip_g": torch.zeros(2, 1280)}, "Layer MID has a different number of vectors"),
        ({**SDXL, "MID.clip_g": torch.zeros(1, 768)}, '"MID.clip_g" is 768 wide instead of 1280'),
        ({"clip_l": torch.zeros(1, 768)}, "has the keys clip_l and clip_g, this file has clip_l"),
        ({"clip_l": torch.zeros(1, 768), "clip_g": torch.zeros(2, 1280)}, "clip_l has 1 vectors and clip_g 2"),
        ({"<cat>": torch.zeros(1, 1280)}, "CLIP-G alone"),
        ({"<cat>": torch.zeros(16, 2, 768)}, r'"<cat>" has shape \(16, 2, 768\)'),
        ({"<cat>": torch.zeros(1000, 768)}, "1000 vectors; a prompt has room for 75"),
        ({"emb_params": torch.zeros(2, 768).long()}, "holds torch.int64"),
        ({"proj.weight": torch.zeros(4, 768)}, "no known XTI"),
        ({"lora_unet_mid_block.lora_up.weight": torch.zeros(4, 4)}, "this is a LoRA"),
        ({"unet.mid_block.attn1.to_q_lora.up.weight": torch.zeros(4, 4)}, "this is a LoRA"),
        ({"lycoris_mid_block_attn2_to_k.lokr_w1": torch.zeros(4, 4)}, "this is a LoRA"),
        ({"unet.mid_block.attn2.to_k.lora_A.weight": torch.zeros(4, 4)}, "this is a LoRA"),
        ({"model.diffusion_model.out.0.weight": torch.zeros(4)}, "this is a checkpoint"),
        ({"down_blocks.0.resnets.0.conv1.weight": torch.zeros(4)}, "this is a diffusion model"),
        ({"text_model.embeddings.token_embedding.weight": torch.zeros(4, 4)}, "this is a text encoder"),
    ],
)
@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_wrong_contents(tmp_path, data, message, ending):
    refuse(layouts.write(tmp_path / f"bad{ending}", {name: value.clone() for name, value in data.items()}), message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (list(VALUES), "have no names"),
        ({i: VALUES[i] for i in range(16)}, "have no names"),
        (VALUES, "have no names"),
        ({}, "holds no tensors"),
        ({"state_dict": {}, "epoch": 3}, "this is a checkpoint"),
        ({"state_dict": {}, "cfg": {}, "encoder": {}}, "this is a NeTI mapper"),
        ({"string_to_param": {}}, "exactly one token"),
        ({"string_to_param": {"*": "text"}}, "is not a tensor"),
        ({**KOHYA, "MID": "text"}, "layer MID is not a tensor"),
        (layouts.ed_lora({}), "no concept embedding"),
        (layouts.ed_lora({"<cat>": VALUES[:7, 0]}), "<cat> has 7 layers instead of 16"),
        (layouts.ed_lora({"<cat1>": VALUES[:, 0], "<cat2>": VALUES[:, 0, :640]}), "different widths"),
        ({"params": {"unet": {}}}, "no known XTI|is not a tensor"),
    ],
)
def test_wrong_structure(tmp_path, data, message):
    refuse(layouts.write(tmp_path / "bad.pt", data), message)


def test_wrong_metadata(tmp_path):
    path = tmp_path / "bad.safetensors"
    for recipe in (
        "{",
        "[]",
        '{"transformer_depth_output": 3}',
        '{"image_model": "wan2.1", "num_layers": 1000000000000}',
    ):
        layouts.write(path, {"blocks.0.t5xxl": torch.ones(1, 8)}, {**TABLE, "layer_table": recipe})
        refuse(path, "layer table in the file's metadata is not readable")


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_code_is_not_run(tmp_path, legacy):
    marker, path = tmp_path / "ran", tmp_path / "evil.pt"
    torch.save({**KOHYA, "MID": Payload(marker)}, path, _use_new_zipfile_serialization=not legacy)
    refuse(path, "contains Python code or objects")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))  # the payload does work
    assert marker.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_bare_pickles_are_not_run(tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "evil.bin"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(Payload(marker), protocol))
        refuse(path, "contains Python code|is damaged")
        assert not marker.exists()


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_truncated_files(tmp_path, ending):
    whole = layouts.write(tmp_path / f"whole{ending}", KOHYA).read_bytes()
    path = tmp_path / f"cut{ending}"
    for length in (1, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refuse(path, "damaged")
    path.write_bytes(b"")
    refuse(path, "the file is empty")


def test_wrong_file(tmp_path):
    refuse(tmp_path / "none.safetensors", "no such file")
    (tmp_path / "notes.txt").write_text("IN01")
    refuse(tmp_path / "notes.txt", r"XTI files end in \.safetensors")
    torch.save(KOHYA, tmp_path / "renamed.safetensors")
    refuse(tmp_path / "renamed.safetensors", "damaged or not a safetensors file")
    safetensors.torch.save_file(KOHYA, tmp_path / "renamed.pt")
    refuse(tmp_path / "renamed.pt", "damaged or not a PyTorch file")
