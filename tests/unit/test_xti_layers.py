"""Layer tables, their order, and choosing layers by words."""

import json

import pytest
from reference.layers import triple

from guidance_lab.xti import layers, selection
from guidance_lab.xti.layers import named_table, table_for

SD1_NAMES = "IN01 IN02 IN04 IN05 IN07 IN08 MID OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11".split()
SD1_TRIPLES = (
    [
        (64, "down", 0),
        (64, "down", 1),
        (32, "down", 0),
        (32, "down", 1),
        (16, "down", 0),
        (16, "down", 1),
        (8, "down", 0),
    ]
    + [(16, "up", i) for i in range(3)]
    + [(32, "up", i) for i in range(3)]
    + [(64, "up", i) for i in range(3)]
)
TRANSFORMERS = [
    ({"image_model": "wan2.1", "num_layers": 40}, "blocks.39"),
    ({"image_model": "ltxv", "num_layers": 28}, "transformer_blocks.27"),
    ({"image_model": "hydit", "depth": 40}, "blocks.39"),
    ({"image_model": "hydit1", "depth": 40}, "blocks.39"),
    ({"audio_model": "dit1.0", "depth": 24}, "transformer.layers.23"),
    ({"image_model": "kandinsky5", "num_visual_blocks": 32, "num_text_blocks": 2}, "visual_transformer_blocks.31"),
    ({"image_model": "cosmos_predict2", "num_blocks": 36}, "blocks.35"),
    ({"image_model": "anima", "num_blocks": 28}, "blocks.27"),
]


@pytest.mark.parametrize("architecture", ["sd1", "sd2"])
def test_sd_has_the_papers_sixteen_layers(architecture):
    table = named_table(architecture)
    assert list(table.names) == SD1_NAMES
    assert [triple(table, i) for i in range(16)] == SD1_TRIPLES
    assert [layer.transformer for layer in table.layers] == list(range(16))
    assert (
        table.layers[5].block == ("input", 8)
        and table.layers[6].block == ("middle", 0)
        and table.layers[7].block == ("output", 3)
    )


def test_sdxl_has_eleven_spatial_transformers_of_seventy_layers():
    whole, blocks = named_table("sdxl"), named_table("sdxl", per_block=True)
    assert whole.names == ("IN04", "IN05", "IN07", "IN08", "MID", "OUT00", "OUT01", "OUT02", "OUT03", "OUT04", "OUT05")
    assert [layer.resolution for layer in whole.layers] == [64, 64, 32, 32, 32, 32, 32, 32, 64, 64, 64]
    assert len(blocks) == 70
    depths = [sum(layer.transformer == i for layer in blocks.layers) for i in range(11)]
    assert depths == [2, 2, 10, 10, 10, 10, 10, 10, 2, 2, 2]
    assert list(named_table("sd1", per_block=True).names) == SD1_NAMES  # one block each: nothing to tell apart
    assert blocks.names[:3] == ("IN04.0", "IN04.1", "IN05.0") and blocks.layers[3].depth == 1


def test_uneven_output_depths_are_read_from_the_outermost_level_inwards():
    config = {
        **layers.SD1_CONFIG,
        "num_res_blocks": [1, 1],
        "transformer_depth": [0, 1],
        "transformer_depth_middle": -1,
    }
    table = table_for(
        {**config, "transformer_depth_output": [0, 0, 2, 1]}
    )  # the list ends with the innermost output block
    assert table.architecture == "unet"
    assert table.names == ("IN03", "OUT00", "OUT01")
    assert [layer.resolution for layer in table.layers] == [32, 32, 32]
    assert table_for({**config, "transformer_depth_output": [1, 0, 0, 1]}).layers[-1].resolution == 64


@pytest.mark.parametrize(("config", "last"), TRANSFORMERS)
def test_cross_attention_transformers_take_their_length_from_the_model(config, last):
    table = table_for(config)
    count = next(
        value for key, value in config.items() if key in ("num_layers", "depth", "num_visual_blocks", "num_blocks")
    )
    assert len(table) == count and table.names[-1] == last
    assert table.layers[3].block == ("double_block", 3) and table.layers[3].resolution is None


@pytest.mark.parametrize(
    "config", [layers.SD1_CONFIG, layers.SD2_CONFIG, layers.SDXL_CONFIG, *(config for config, _ in TRANSFORMERS)]
)
@pytest.mark.parametrize("per_block", [False, True])
def test_a_table_can_be_rebuilt_from_its_recipe(config, per_block):
    table = table_for(config, per_block)
    assert table_for(json.loads(table.recipe)) == table


JOINT = [
    ({"image_model": "flux", "depth": 3, "depth_single_blocks": 2}, "double_blocks.2", "single_blocks.1"),
    ({"image_model": "chroma", "depth": 3, "depth_single_blocks": 2}, "double_blocks.2", "single_blocks.1"),
    ({"x_block_self_attn_layers": [0], "depth": 5}, "joint_blocks.2", "joint_blocks.4"),
    ({"x_block_self_attn_layers": [], "depth": 2, "num_blocks": 5}, "joint_blocks.2", "joint_blocks.4"),
    ({"image_model": "qwen_image", "num_layers": 5}, "transformer_blocks.2", "transformer_blocks.4"),
    ({"image_model": "lumina2", "n_layers": 5}, "layers.2", "layers.4"),
]


@pytest.mark.parametrize(("config", "third", "last"), JOINT)
def test_joint_streams_have_a_layer_per_block(config, third, last):
    table = table_for(config)
    assert (table.names[2], table.names[4], len(table)) == (third, last, 5)
    assert table_for(json.loads(table.recipe)) == table
    assert table.layers[-1].block == (("single_block", 1) if "single" in last else ("double_block", 4))


def test_the_two_kinds_of_blocks_can_be_named():
    table = table_for(JOINT[0][0])
    assert selection.select("double", table) == (0, 1, 2) and selection.select("single", table) == (3, 4)
    assert selection.select("double_blocks.1-single_blocks.0", table) == (1, 2, 3)


@pytest.mark.parametrize("model", ["flux2", "hunyuan_video", "hidream"])
def test_other_joint_streams_are_refused_with_the_reason(model):
    with pytest.raises(ValueError, match=f"{model}.*one stream that every block rewrites"):
        table_for({"image_model": model, "depth": 19})


def test_models_without_a_name_are_recognized():
    assert table_for({"depth": 24, "x_block_self_attn_layers": []}).architecture == "sd3"
    with pytest.raises(ValueError, match="auraflow.*one stream"):
        table_for({"cond_seq_dim": 2048, "n_layers": 36})
    with pytest.raises(ValueError, match="unknown.*not known"):
        table_for({})


def test_a_transformer_without_a_layer_count_is_refused():
    with pytest.raises(ValueError, match="num_layers is missing"):
        table_for({"image_model": "wan2.1"})


def test_a_unet_without_cross_attention_is_refused():
    config = {
        **layers.SD1_CONFIG,
        "transformer_depth": [0] * 8,
        "transformer_depth_middle": -1,
        "transformer_depth_output": [0] * 12,
    }
    with pytest.raises(ValueError, match="no cross-attention layer"):
        table_for(config)


def test_inside_out_order():
    assert named_table("sd1").inside_out() == (6, 5, 7, 4, 8, 9, 3, 10, 2, 11, 12, 1, 13, 0, 14, 15)
    assert named_table("sdxl").inside_out() == (4, 3, 5, 2, 6, 7, 1, 8, 0, 9, 10)
    assert sorted(named_table("sdxl", True).inside_out()) == list(range(70))
    assert table_for({"image_model": "wan2.1", "num_layers": 5}).inside_out() == (2, 1, 3, 0, 4)


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("6", [6]),
        ("0-5,10-15", [*range(6), *range(10, 16)]),
        ("MID, in08", [5, 6]),
        ("IN07-OUT05", range(4, 10)),
        ("middle", range(4, 10)),
        ("coarse", range(4, 10)),
        ("outer", [*range(4), *range(10, 16)]),
        ("down", range(6)),
        ("up", range(7, 16)),
        ("all", range(16)),
        ("innermost 3", [5, 6, 7]),
        ("6, 6, 5-7", [5, 6, 7]),
    ],
)
def test_selectors_of_sd1(text, indices):
    assert selection.select(text, named_table("sd1")) == tuple(indices)


def test_middle_and_outer_share_all_layers_between_them():
    for table in (named_table("sd1"), named_table("sdxl"), named_table("sdxl", True)):
        middle, outer = selection.select("middle", table), selection.select("outer", table)
        assert sorted(middle + outer) == list(range(len(table))) and not set(middle) & set(outer)


def test_a_whole_layer_stands_for_its_blocks():
    table = named_table("sdxl", per_block=True)
    assert selection.select("MID", table) == tuple(range(24, 34))
    assert selection.select("MID.3", table) == (27,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("16", "no layer 16.*0-15"),
        ("12-16", "no layer 16"),
        ("7-3", "backwards"),
        ("OUT02", '"OUT02" names no layer of sd1'),
        ("IN0", '"IN0" names no layer of sd1'),
        ("midle", '"midle" names no layer'),
        ("", "No layer is named"),
        ("1,,2", "between two commas"),
        ("innermost 17", "innermost 17.*has 16"),
    ],
)
def test_selectors_refuse(text, message):
    with pytest.raises(ValueError, match=message):
        selection.select(text, named_table("sd1"))


def test_a_unet_of_one_resolution_has_no_outer_layers():
    config = {"context_dim": 768, "num_res_blocks": [1], "transformer_depth": [1], "transformer_depth_middle": 1}
    table = table_for({**config, "transformer_depth_output": [1, 1]})
    assert selection.select("middle", table) == (0, 1, 2, 3)
    with pytest.raises(ValueError, match='"outer" names no layer of this model'):
        selection.select("outer, 3", table)


def test_a_flat_model_has_no_coarse_layers():
    table = table_for({"image_model": "wan2.1", "num_layers": 40})
    assert selection.select("0-3, blocks.39", table) == (0, 1, 2, 3, 39)
    for word in ("middle", "outer"):
        with pytest.raises(ValueError, match="one resolution.*0-39"):
            selection.select(word, table)
    for word in ("blocks", "down"):
        with pytest.raises(ValueError, match="names no layer"):
            selection.select(word, table)


@pytest.mark.parametrize(
    "name", ["lens", "joyimage", "boogu", "ideogram4", "krea2", "ernie", "hidream_o1", "cogvideox"]
)
def test_newer_architectures_are_refused_in_one_sentence(name):
    """Also those that nobody has looked at: ComfyUI 0.30 knows these."""
    with pytest.raises(ValueError, match=rf"A prompt per layer is not possible for the architecture {name}: .*\.$"):
        table_for({"image_model": name, "num_layers": 12})


def test_mage_flow_has_a_layer_per_block():
    table = table_for({"image_model": "mage_flow", "num_layers": 12})
    assert len(table) == 12 and table.names[-1] == "transformer_blocks.11"
    assert table.layers[3].block == ("double_block", 3)
