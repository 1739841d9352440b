"""XTI Style Mix and XTI Info in the host, and what XTI Train refuses."""

import pytest
import tiny_networks
import torch
import xti_tools as tools
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from xti_tools import latents, train

from guidance_lab.shapes import shipped
from guidance_lab.xti import XTI
from guidance_lab.xti.layers import named_table

SD1 = named_table("sd1")
CORE = {"layers": "geometry core"}


def token(seed: int, width: int = 24, vectors: int = 1, encoders=None, table=SD1) -> XTI:
    generator = torch.Generator().manual_seed(seed)
    rows = {name: torch.randn(vectors, width, generator=generator) for name in table.names}
    return XTI(table, rows, "test", encoders or {"clip_l": width})


A, B = token(1), token(2)


def mix(run_node, layers, a=A, b=B, amount=1.0):
    return run_node("GuidanceLab_XTIStyleMix", geometry=a, appearance=b, layers=layers, amount=amount)[0]


@pytest.mark.parametrize(("layers", "from_a"), [
    (CORE, [5, 6]), ({"layers": "geometry 5-7"}, [5, 6, 7]), ({"layers": "innermost layers", "count": 4}, [4, 5, 6, 7]),
    ({"layers": "innermost layers", "count": 0}, []), ({"layers": "layer set", "names": "IN01, 9-10"}, [0, 9, 10]),
])  # fmt: skip
def test_the_chosen_layers_come_from_geometry(run_node, layers, from_a):
    mixed = mix(run_node, layers)
    assert [i for i, name in enumerate(SD1.names) if torch.equal(mixed.layers[name], A.layers[name])] == from_a
    assert sum(torch.equal(mixed.layers[name], B.layers[name]) for name in SD1.names) == 16 - len(from_a)


def test_amount_goes_from_appearance_to_geometry(run_node):
    half = mix(run_node, CORE, amount=0.25)
    assert torch.allclose(half.layers["MID"], 0.75 * B.layers["MID"] + 0.25 * A.layers["MID"])
    assert torch.equal(half.layers["OUT11"], B.layers["OUT11"])
    none = mix(run_node, CORE, amount=0.0)
    assert all(torch.equal(none.layers[name], B.layers[name]) for name in SD1.names)


def test_mixing_a_token_with_itself_changes_nothing(run_node):
    mixed = mix(run_node, CORE, b=A)
    assert all(torch.equal(mixed.layers[name], A.layers[name]) for name in SD1.names)


@pytest.mark.parametrize(("options", "message"), [
    (dict(layers={"layers": "layer set", "names": "IN03"}), '"IN03" names no layer'), (dict(layers=None),
    "does not know these layers"),
    (dict(layers={"layers": "innermost layers", "count": 17}), "innermost 17 layers: sd1 has 16"),
    (dict(layers=CORE, b=token(2, 32)), "different text encoders"),
    (dict(layers=CORE, b=token(2, table=named_table("sdxl"))), "different layers"),
    (dict(layers=CORE, b=token(2, vectors=2), amount=0.5), "equally many"),
])  # fmt: skip
def test_mixes_that_make_no_sense_are_refused(run_node, options, message):
    with pytest.raises(ValueError, match=message):
        mix(run_node, **options)


def test_info_finds_the_words_that_the_token_is(run_node):
    clip = shipped.load_clip()
    table = tools.in_vocabulary(clip)
    rows = {name: 2 * table["red"][None] for name in SD1.names} | {"MID": torch.stack([table["car"], table["cube"]])}
    text, plot = run_node("GuidanceLab_XTIInfo", xti=XTI(SD1, rows, "test", {"clip_l": 128}), clip=clip, words=2)
    lines = text.splitlines()
    assert lines[0] == "16 layers of sd1 (test)" and len(lines) == 3 + 17
    by_layer = {line.split(" norm")[0].strip(): line for line in lines[3:]}
    assert "red 1.00" in by_layer["IN01"] and f"norm {2 * table['red'].norm():7.3f}" in by_layer["IN01"]
    assert "car 1.00" in by_layer["MID [0]"] and "cube 1.00" in by_layer["MID [1]"]
    assert all(line.count(",") == 1 for line in lines[3:])  # two words each
    assert plot.shape == (1, 640, 1024, 3)


def test_info_has_a_report_and_a_plot_for_each_encoder_of_sdxl(run_node):
    table = named_table("sdxl")
    text, plot = run_node(
        "GuidanceLab_XTIInfo", xti=token(1, 24, 1, {"clip_l": 8, "clip_g": 16}, table), clip=tools.sdxl_clip(), words=1
    )
    assert plot.shape[0] == 2 and not torch.equal(plot[0], plot[1])
    assert "clip_l: words" in text and "clip_g: words" in text and len(text.splitlines()) == 1 + 2 * (2 + 11)


@pytest.mark.parametrize(("encoders", "message"), [
    ({"clip_g": 24}, "tokens for clip_g, and this CLIP has clip_l"), ({"clip_l": 24},
    "24 wide and the words of this CLIP 128"),
])  # fmt: skip
def test_info_refuses_another_clip(run_node, encoders, message):
    with pytest.raises(ValueError, match=message):
        run_node("GuidanceLab_XTIInfo", xti=token(1, encoders=encoders), clip=shipped.load_clip(), words=3)


@pytest.fixture(scope="module")
def networks():
    return tools.sixteen_layers(), tools.sd1_clip()


def own(lines: str) -> dict:
    return {"captions": "own lines", "lines": lines}


@pytest.mark.parametrize(("options", "message"), [
    (dict(latents=None), "connect either images"), (dict(images=torch.zeros(1, 64, 64, 3), latents=latents()),
    "connect either images"),
    (dict(images=torch.zeros(1, 64, 64, 3)), "connect vae"), (dict(latents={"samples": torch.zeros(1, 16, 8, 8)}),
    "latents of 4 channels"),
    (dict(captions=own("a photo of a cat")), "write {} in its place"), (dict(captions=own("a (photo:1.2) of a {}")),
    "without brackets"),
    (dict(captions=own(" \n")), "has no caption"), (dict(captions=None), "choose one of object, style, own lines"),
    (dict(init_word="  "), "has no tokens"), (dict(regulariser={}), "know this regulariser"),
    (dict(resume=token(1, 32)), r"tokens for clip_l \(32\), and the CLIP has clip_l \(24\)"),
    (dict(resume=token(1), shared=True), "switch shared off"),
    (dict(resume=token(1, table=named_table("sdxl"))), "learned for sdxl"),
])  # fmt: skip
def test_training_refuses_inputs_that_cannot_work(run_node, networks, options, message):
    with pytest.raises(ValueError, match=message):
        train(run_node, *networks, **options)


@pytest.mark.parametrize("name", ["Flux", "SD3", "QwenImage"])
def test_training_refuses_joint_streams(run_node, networks, name):
    model = tiny_networks.build(name)
    given = {"samples": torch.zeros(1, model.model.latent_format.latent_channels, 8, 8)}
    with pytest.raises(ValueError, match="XTI Train works with the U-nets|A prompt per layer is not possible"):
        train(run_node, model, networks[1], latents=given)


@pytest.mark.parametrize("name", ["WAN21_T2V", "LTXV"])
def test_training_refuses_transformers(run_node, networks, name):
    model = tiny_networks.build(name)
    with pytest.raises(ValueError, match="XTI Train works with the U-nets of SD1, SD2 and SDXL"):
        train(run_node, model, networks[1])


@pytest.mark.parametrize("sampling", ["x0", "lcm"])
def test_training_refuses_other_predictions(run_node, networks, sampling):
    model = ModelSamplingDiscrete().patch(networks[0], sampling, False)[0]
    with pytest.raises(ValueError, match="predict eps or v"):
        train(run_node, model, networks[1])


def test_training_refuses_a_checkpoint_without_clip(run_node, networks):
    with pytest.raises(ValueError, match="the checkpoint gave none"):
        train(run_node, networks[0], None)


def test_training_starts_from_the_word_and_its_tokens(run_node, networks):
    model, clip = networks
    words = tools.in_vocabulary(clip)
    learned, _ = train(run_node, model, clip, steps=1, learning_rate=1e-6, init_word="red cat", vectors=3)
    expected = torch.stack([words["red"], words["cat"], words["red"]])
    assert all(torch.allclose(rows, expected, atol=1e-5) for rows in learned.layers.values())


def test_an_sdxl_token_learns_in_both_encoders(run_node):
    learned, _ = train(run_node, tools.sdxl(), tools.sdxl_clip(), vectors=2)
    start, _ = train(run_node, tools.sdxl(), tools.sdxl_clip(), vectors=2, steps=1, learning_rate=1e-6)
    assert learned.encoders == {"clip_l": 8, "clip_g": 16}
    for encoder in learned.encoders:
        moved = [
            (learned.of_encoder(encoder)[name] - start.of_encoder(encoder)[name]).abs().max() for name in learned.layers
        ]
        assert min(moved) > 1e-3
