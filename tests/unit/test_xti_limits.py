"""XTI files that would take hours or gigabytes, and the textual inversions that were saved first."""

import json
import time

import pytest
import torch
import xti_layouts as layouts
from safetensors.torch import save_file

from guidance_lab import xti

TABLE = {"format": "guidance-lab-xti-1"}
UNET = {
    "context_dim": 768,
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}


def refused(path, message, **options):
    begin = time.monotonic()
    with pytest.raises(ValueError, match=message) as caught:
        xti.load(path, **options)
    said = str(caught.value)
    assert said.startswith(f"{path.name}: ") and "\n" not in said and len(said) < 1500
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(
    "change",
    [
        {"transformer_depth": [10**9] * 8, "per_block": True},
        {"transformer_depth_middle": 2**40, "per_block": True},
        {"num_res_blocks": [10**9]},
        {"num_res_blocks": [2] * 10_000},
        {"transformer_depth": [64] * 8, "transformer_depth_output": [64] * 12, "per_block": True},
        {"context_dim": 10**30},
        {"transformer_depth": {"a": 1}},
        {"transformer_depth": [1.5] * 8},
        {"num_res_blocks": "2222"},
    ],
)
def test_layer_tables_of_absurd_sizes(tmp_path, change):
    recipe = json.dumps({**UNET, **change})
    save_file({"IN01.t5xxl": torch.ones(1, 8)}, tmp_path / "x.safetensors", {**TABLE, "layer_table": recipe})
    refused(tmp_path / "x.safetensors", "layer table in the file's metadata is not readable")


@pytest.mark.parametrize("recipe", ["[" * 9000, '{"a":' * 1500, "9" * 9000, '"x"' * 9000, "nan", "null", "3"])
def test_layer_tables_that_are_none(tmp_path, recipe):
    save_file({"IN01.t5xxl": torch.ones(1, 8)}, tmp_path / "x.safetensors", {**TABLE, "layer_table": recipe})
    refused(tmp_path / "x.safetensors", "layer table in the file's metadata is not readable")


@pytest.mark.parametrize("steps", ["12.5", "-1", "9" * 5000, "nan", "", "\u0663"])
def test_steps_that_are_no_number(tmp_path, steps):
    save_file(layouts.kohya(layouts.rows()), tmp_path / "x.safetensors", {"steps": steps})
    refused(tmp_path / "x.safetensors", "no whole number")


def test_words_and_counts_without_end(tmp_path):
    word = layouts.rows()[0, 0]
    torch.save({"1" * 64_000 + "-0": word, "<a>": word}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "a name of 64,002 characters")
    concepts = {"<" + "1" * 64_000 + ">": layouts.rows()[:, 0], "<a1>": layouts.rows()[:, 0]}
    torch.save(layouts.ed_lora(concepts), tmp_path / "y.pt")
    refused(tmp_path / "y.pt", "a name of 64,002 characters")
    torch.save({f"<{'1-' * 100}{i}-0>": word for i in range(4000)}, tmp_path / "z.pt")
    refused(tmp_path / "z.pt", "has a layer 16|several tokens")
    torch.save({f"<t{i}-{j}>": word for i in range(600) for j in range(8)}, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", "the file holds 4,800 things")


def test_bombs(tmp_path):
    torch.save({"<cat>": torch.ones(1).expand(75, 10**8)}, tmp_path / "x.pt")
    assert (tmp_path / "x.pt").stat().st_size < 2000
    refused(tmp_path / "x.pt", "numbers that are only 1 repeated ones")


def test_widths_that_differ(tmp_path):
    values = layouts.rows(vectors=2)
    data = layouts.promptplusplus(values, values[0, 0])
    torch.save({**data, "<cat-3-1>": torch.ones(3)}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", r"different widths \(3, 768\)")
    refused(tmp_path / "x.pt", r"different widths \(3, 768\)", prefix=True)


def test_the_first_textual_inversions(tmp_path):
    """The authors' own program saved a ParameterDict."""
    rows = layouts.rows()[0]
    words = torch.nn.ParameterDict({"*": torch.nn.Parameter(rows)})
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": words}, tmp_path / "embeddings.pt")
    found = xti.load(tmp_path / "embeddings.pt")
    assert found.source == "textual inversion" and found.shared
    assert torch.equal(found.layers["MID"], rows)
