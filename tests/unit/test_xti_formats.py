"""Every XTI format in the wild: the right rows at the right layers, whatever the order in the file."""

import json
import os
from pathlib import Path

import pytest
import safetensors
import torch
import xti_layouts as layouts

from guidance_lab import xti
from guidance_lab.xti.layers import named_table, table_for

FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "xti" / "promptplusplus.json").read_text())


def assert_layers(loaded: xti.XTI, names: list[str], expected: torch.Tensor) -> None:
    """Exactly these [n, width] rows, in table order."""
    assert list(loaded.layers) == names == list(loaded.table.names)
    for name, wanted in zip(names, expected):
        assert loaded.layers[name].dtype == torch.float32
        assert torch.equal(loaded.layers[name], wanted)


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".ckpt"])
@pytest.mark.parametrize(
    ("vectors", "width", "architecture", "encoder"), [(1, 768, "sd1", "clip_l"), (4, 1024, "sd2", "clip_h")]
)
def test_kohya(tmp_path, ending, vectors, width, architecture, encoder):
    values = layouts.rows(vectors=vectors, width=width)
    loaded = xti.load(layouts.write(tmp_path / f"cat{ending}", layouts.shuffled(layouts.kohya(values))))
    assert (
        loaded.source == "kohya" and loaded.table.architecture == architecture and loaded.encoders == {encoder: width}
    )
    assert_layers(loaded, layouts.SD1_NAMES, values)


def test_kohya_half_precision_is_read_as_float32(tmp_path):
    values = layouts.rows().half()
    assert_layers(
        xti.load(layouts.write(tmp_path / "cat.pt", layouts.kohya(values))), layouts.SD1_NAMES, values.float()
    )


def test_seongmon_uses_all_sixteen_tokens(tmp_path):
    values = layouts.rows()
    loaded = xti.load(layouts.write(tmp_path / "learned_embeds.bin", layouts.shuffled(layouts.numbered(values))))
    assert loaded.source == "seongmon" and loaded.tokens == ("<cat>",)
    assert_layers(loaded, layouts.SD1_NAMES, values)


def test_mkshing_uses_one_token_per_block(tmp_path):
    values = layouts.rows()
    values[7:] = values[7]  # no gradient ever reaches these, so they decay alike
    loaded = xti.load(layouts.write(tmp_path / "learned_embeds.bin", layouts.shuffled(layouts.numbered(values))))
    assert loaded.source == "mkshing"
    assert_layers(loaded, layouts.SD1_NAMES, values[[0, 0, 1, 1, 2, 2, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6]])


@pytest.mark.parametrize("differs", [7, 8, 15])
def test_one_differing_unused_token_makes_it_seongmon(tmp_path, differs):
    values = layouts.rows()
    values[7:] = values[7]
    values[differs, 0, 0] += 1e-6
    assert xti.load(layouts.write(tmp_path / "learned_embeds.bin", layouts.numbered(values))).source == "seongmon"


def test_several_numbered_tokens_need_a_choice(tmp_path):
    cat, dog = layouts.rows(seed=1), layouts.rows(seed=2)
    path = layouts.write(tmp_path / "pets.bin", {**layouts.numbered(cat), **layouts.numbered(dog, "<dog>")})
    assert_layers(xti.load(path, token="<dog>"), layouts.SD1_NAMES, dog)
    with pytest.raises(ValueError, match="pets.bin: .*<cat>, <dog>: choose one"):
        xti.load(path)
    with pytest.raises(ValueError, match="no token <cow>"):
        xti.load(path, token="<cow>")


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_promptplusplus(tmp_path, ending):
    values, common = layouts.rows(vectors=2), layouts.rows(1)[0, 0]
    data = layouts.promptplusplus(values, common)
    path = layouts.write(tmp_path / f"step_inv_300{ending}", dict(sorted(data.items())))
    loaded = xti.load(path)
    assert loaded.source == "promptplusplus" and loaded.tokens == ("<cat>",)
    assert_layers(loaded, layouts.SD1_NAMES, values)
    with_prefix = torch.cat([common.expand(16, 1, 768), values], dim=1)
    assert_layers(xti.load(path, prefix=True), layouts.SD1_NAMES, with_prefix)


def test_promptplusplus_without_common_token_has_no_prefix(tmp_path):
    values = layouts.rows()
    data = layouts.promptplusplus(values, values[0, 0])
    del data["<cat>"]
    path = layouts.write(tmp_path / "cat.safetensors", data)
    assert_layers(xti.load(path), layouts.SD1_NAMES, values)
    with pytest.raises(ValueError, match="common token <cat> is not in the file"):
        xti.load(path, prefix=True)


def test_ed_lora_takes_one_token(tmp_path):
    values = layouts.rows()
    loaded = xti.load(layouts.write(tmp_path / "edlora.pth", layouts.ed_lora({"<cat>": values[:, 0]})))
    assert loaded.source == "ed-lora" and loaded.tokens == ("<cat>",)
    assert_layers(loaded, layouts.SD1_NAMES, values)


def test_ed_lora_joins_the_two_tokens_of_a_concept_by_number(tmp_path):
    first, second = layouts.rows(seed=1)[:, 0], layouts.rows(seed=2)[:, 0]
    path = layouts.write(tmp_path / "edlora.pth", layouts.ed_lora({"<cat2>": second, "<cat1>": first}))
    loaded = xti.load(path)
    assert loaded.tokens == ("<cat1>", "<cat2>")
    assert_layers(loaded, layouts.SD1_NAMES, torch.stack([first, second], dim=1))
    assert_layers(xti.load(path, token="<cat2>"), layouts.SD1_NAMES, second[:, None])


def test_ed_lora_does_not_guess_the_order_of_unnumbered_tokens(tmp_path):
    concepts = {"<cat>": layouts.rows(seed=1)[:, 0], "<fur>": layouts.rows(seed=2)[:, 0]}
    path = layouts.write(tmp_path / "edlora.pth", layouts.ed_lora(concepts))
    with pytest.raises(ValueError, match="<cat>, <fur>: choose one"):
        xti.load(path)
    assert xti.load(path, token="<fur>").tokens == ("<fur>",)


TOKEN = layouts.rows(1, 3)[0]


@pytest.mark.parametrize(
    ("name", "data", "expected", "tokens"),
    [
        (
            "a1111.pt",
            {"string_to_token": {"*": 265}, "string_to_param": {"*": TOKEN}, "name": "cat", "step": 499},
            TOKEN,
            (),
        ),
        ("kohya.safetensors", {"emb_params": TOKEN}, TOKEN, ()),
        ("learned_embeds.bin", {"<cat>": TOKEN[0]}, TOKEN[:1], ("<cat>",)),
        ("learned_embeds.safetensors", {"<cat>": TOKEN}, TOKEN, ("<cat>",)),
    ],
)
def test_textual_inversion_is_an_xti_with_equal_rows(tmp_path, name, data, expected, tokens):
    loaded = xti.load(layouts.write(tmp_path / name, data))
    assert loaded.source == "textual inversion" and loaded.tokens == tokens and loaded.shared
    assert_layers(loaded, layouts.SD1_NAMES, expected.expand(16, -1, -1))


def test_a_token_may_be_called_lora(tmp_path):
    loaded = xti.load(layouts.write(tmp_path / "learned_embeds.safetensors", {"<lora_anna>": TOKEN}))
    assert loaded.tokens == ("<lora_anna>",)


def test_sd2_textual_inversion(tmp_path):
    loaded = xti.load(layouts.write(tmp_path / "cat.safetensors", {"emb_params": torch.ones(2, 1024)}))
    assert loaded.table.architecture == "sd2" and loaded.encoders == {"clip_h": 1024}


def test_sdxl_textual_inversion(tmp_path):
    clip_l, clip_g = layouts.rows(1, 2)[0], layouts.rows(1, 2, 1280)[0]
    loaded = xti.load(layouts.write(tmp_path / "cat.safetensors", {"clip_g": clip_g, "clip_l": clip_l}))
    assert loaded.encoders == {"clip_l": 768, "clip_g": 1280} and loaded.table.architecture == "sdxl"
    assert_layers(loaded, layouts.SDXL_NAMES, torch.cat([clip_l, clip_g], dim=1).expand(11, -1, -1))


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_sdxl_layers(tmp_path, ending):
    clip_l, clip_g = layouts.rows(11, 2), layouts.rows(11, 2, 1280)
    loaded = xti.load(layouts.write(tmp_path / f"cat{ending}", layouts.shuffled(layouts.sdxl(clip_l, clip_g))))
    assert loaded.source == "guidance lab" and loaded.table == named_table("sdxl")
    assert_layers(loaded, layouts.SDXL_NAMES, torch.cat([clip_l, clip_g], dim=2))
    for encoder, expected in (("clip_l", clip_l), ("clip_g", clip_g)):
        assert all(torch.equal(rows, wanted) for rows, wanted in zip(loaded.of_encoder(encoder).values(), expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_saved_sd1_file_has_kohyas_keys_shapes_and_dtype(tmp_path, dtype):
    values = layouts.rows(vectors=3).to(dtype)
    original = xti.load(layouts.write(tmp_path / "cat.pt", layouts.kohya(values)))
    xti.save(original, tmp_path / "saved.safetensors", dtype)
    with safetensors.safe_open(tmp_path / "saved.safetensors", "pt") as file:
        assert set(file.keys()) == set(layouts.SD1_NAMES)
        assert all(torch.equal(file.get_tensor(name), values[i]) for i, name in enumerate(layouts.SD1_NAMES))
        assert all(file.get_tensor(name).dtype == dtype for name in file.keys())
        assert file.metadata()["format"] == "kohya-xti"
    again = xti.load(tmp_path / "saved.safetensors")
    assert again.source == "kohya"
    assert_layers(again, layouts.SD1_NAMES, values.float())


def test_saved_textual_inversion_has_sixteen_rows(tmp_path):
    original = xti.load(layouts.write(tmp_path / "cat.bin", {"<cat>": TOKEN}))
    xti.save(original, tmp_path / "saved.safetensors")
    assert_layers(xti.load(tmp_path / "saved.safetensors"), layouts.SD1_NAMES, TOKEN.expand(16, -1, -1))


@pytest.mark.parametrize(
    ("config", "encoders"),
    [
        (named_table("sdxl").recipe, {"clip_l": 768, "clip_g": 1280}),
        (named_table("sdxl", per_block=True).recipe, {"clip_l": 768, "clip_g": 1280}),
        ('{"image_model": "ltxv", "num_layers": 28}', {"t5xxl": 64}),
    ],
)
def test_other_architectures_round_trip_in_our_own_format(tmp_path, config, encoders):
    table = table_for(json.loads(config))
    values = layouts.rows(len(table), 2, sum(encoders.values()))
    original = xti.XTI(table, dict(zip(table.names, values)), "trained", encoders, metadata={"steps": "500"})
    xti.save(original, tmp_path / "saved.safetensors")
    again = xti.load(tmp_path / "saved.safetensors")
    assert again.table == table and again.encoders == encoders and again.source == "guidance lab"
    assert again.metadata["steps"] == "500" and again.metadata["source"] == "trained"
    assert_layers(again, list(table.names), values)


def test_uneven_vectors_round_trip_in_our_own_format(tmp_path):
    table = named_table("sd1")
    layers = {name: layouts.rows(1, 1 + i % 2, seed=i)[0] for i, name in enumerate(table.names)}
    xti.save(xti.XTI(table, layers, "style mix", {"clip_l": 768}), tmp_path / "saved.safetensors")
    again = xti.load(tmp_path / "saved.safetensors")
    assert again.source == "guidance lab" and again.table == table
    assert all(torch.equal(again.layers[name], layers[name]) for name in table.names)


def test_save_refuses_other_endings_and_dtypes(tmp_path):
    loaded = xti.load(layouts.write(tmp_path / "cat.bin", {"<cat>": TOKEN}))
    with pytest.raises(ValueError, match="written as .safetensors"):
        xti.save(loaded, tmp_path / "cat.pt")
    with pytest.raises(ValueError, match="not torch.float64"):
        xti.save(loaded, tmp_path / "cat.safetensors", torch.float64)


def test_real_promptplusplus_file():
    golden = os.environ.get("GUIDANCELAB_GOLDEN")
    path = Path(golden or "") / "xti" / "promptplusplus_step_inv_300.safetensors"
    if not golden or not path.is_file():
        pytest.skip("GUIDANCELAB_GOLDEN does not name a folder with xti/promptplusplus_step_inv_300.safetensors")
    loaded = xti.load(path)
    assert loaded.source == "promptplusplus" and loaded.tokens == (FIXTURE["token"],)
    for rows, wanted in zip(loaded.layers.values(), FIXTURE["layers"], strict=True):
        assert rows.shape == (1, 768)
        assert rows[0, :3].tolist() == wanted["first"] and rows[0, -1].item() == wanted["last"]
        assert rows.norm().item() == pytest.approx(wanted["norm"], rel=1e-6)
    assert xti.load(path, prefix=True).layers["MID"][0].norm().item() == pytest.approx(FIXTURE["common_norm"], rel=1e-6)


def test_numbers_of_the_real_file_land_on_their_layers(tmp_path):
    """The same file as its numbers tell: lexicographic names, each row recognizable by its first values."""
    values = torch.zeros(16, 1, 768)
    for i, layer in enumerate(FIXTURE["layers"]):
        values[i, 0, :3] = torch.tensor(layer["first"])
    data = layouts.promptplusplus(values, torch.zeros(768), token="yc")
    loaded = xti.load(layouts.write(tmp_path / "yc.safetensors", dict(sorted(data.items()))))
    assert [rows[0, :3].tolist() for rows in loaded.layers.values()] == [layer["first"] for layer in FIXTURE["layers"]]
