"""Mixing XTIs layer by layer, blending, strength, and using an XTI with another table."""

import pytest
import torch
import xti_layouts as layouts

from guidance_lab.xti import XTI, mixing
from guidance_lab.xti.layers import named_table, table_for

SD1 = named_table("sd1")


def make(seed: int, vectors: int = 1, table=SD1, encoders=None) -> XTI:
    encoders = encoders or {"clip_l": 768}
    values = layouts.rows(len(table), vectors, sum(encoders.values()), seed)
    return XTI(table, dict(zip(table.names, values)), "test", encoders)


A, B = make(1), make(2)


def taken_from_a(mix: XTI) -> list[str]:
    """Names of the layers with A's rows; all others must be B's."""
    names = [name for name in mix.layers if torch.equal(mix.layers[name], A.layers[name])]
    assert all(torch.equal(mix.layers[name], B.layers[name]) for name in mix.layers if name not in names)
    return names


def test_presets_take_the_published_layers():
    assert taken_from_a(mixing.style_mix(A, B, mixing.preset_layers("geometry core", SD1))) == ["IN08", "MID"]
    assert mixing.preset_layers("geometry 5-7", SD1) == (5, 6, 7)
    assert taken_from_a(mixing.style_mix(A, B, mixing.preset_layers("geometry 5-7", SD1))) == ["IN08", "MID", "OUT03"]
    assert mixing.preset_layers("geometry core", named_table("sdxl")) == (3, 4)  # IN08, MID there too


def test_cumulative_grows_from_the_middle():
    order = ["MID", "IN08", "OUT03", "IN07", "OUT04", "OUT05"]
    for count in range(7):
        assert set(taken_from_a(mixing.cumulative(A, B, count))) == set(order[:count])
    assert taken_from_a(mixing.cumulative(A, B, 16)) == list(SD1.names)
    for count in (-1, 17):
        with pytest.raises(ValueError, match=f"innermost {count}"):
            mixing.cumulative(A, B, count)


def test_mixing_a_concept_with_itself_changes_nothing():
    mix = mixing.style_mix(A, A, (0, 3, 9))
    assert all(torch.equal(mix.layers[name], A.layers[name]) for name in SD1.names)


def test_mixing_keeps_different_numbers_of_vectors():
    mix = mixing.style_mix(make(1, vectors=3), B, (6,))
    assert [len(rows) for rows in mix.layers.values()] == [1] * 6 + [3] + [1] * 9


def test_blend_is_exact_at_its_ends_and_linear_between():
    for weight, expected in ((0.0, A), (1.0, B)):
        assert all(torch.equal(mixing.blend(A, B, weight).layers[name], expected.layers[name]) for name in SD1.names)
    middle = mixing.blend(A, B, 0.25).layers["MID"]
    assert torch.allclose(middle, 0.75 * A.layers["MID"] + 0.25 * B.layers["MID"], rtol=0, atol=1e-8)


def test_scale():
    assert mixing.scale(A, 1.0) is A
    assert torch.equal(mixing.scale(A, 0.5).layers["IN01"], A.layers["IN01"] * 0.5)
    assert not mixing.scale(A, 0.0).layers["MID"].any()


def test_mixing_refuses():
    sdxl = make(3, table=named_table("sdxl"), encoders={"clip_l": 768, "clip_g": 1280})
    with pytest.raises(ValueError, match="different layers .sd1: 16, sdxl: 11"):
        mixing.style_mix(A, sdxl, (0,))
    with pytest.raises(ValueError, match="different text encoders .clip_l 768 and clip_l 64"):
        mixing.blend(A, make(1, encoders={"clip_l": 64}), 0.5)
    with pytest.raises(ValueError, match="no layer 16"):
        mixing.style_mix(A, B, (16,))
    with pytest.raises(ValueError, match="Layer IN01 has 1 and 2 vectors"):
        mixing.blend(A, make(2, vectors=2), 0.5)


def test_fit_spreads_a_layer_over_its_blocks():
    whole, blocks = named_table("sdxl"), named_table("sdxl", per_block=True)
    original = make(1, table=whole)
    fitted = original.fit(blocks)
    assert fitted.table == blocks
    assert all(torch.equal(rows, original.layers[name.partition(".")[0]]) for name, rows in fitted.layers.items())
    with pytest.raises(ValueError, match="learned for sdxl .70 layers. and cannot be used with sdxl .11"):
        make(1, table=blocks).fit(whole)


def test_fit_of_equal_rows_serves_every_table():
    row = layouts.rows(1, 2)[0]
    plain = XTI(SD1, dict.fromkeys(SD1.names, row), "textual inversion", {"clip_l": 768})
    fitted = plain.fit(table_for({"image_model": "wan2.1", "num_layers": 3}))
    assert list(fitted.layers) == ["blocks.0", "blocks.1", "blocks.2"] and fitted.shared
    assert torch.equal(fitted.layers["blocks.2"], row)


def test_fit_refuses_another_architecture_and_another_size():
    with pytest.raises(ValueError, match="learned for sd1 .16 layers."):
        A.fit(named_table("sdxl"))
    big, small = (table_for({"image_model": "wan2.1", "num_layers": count}) for count in (5, 3))
    for origin, target in ((big, small), (small, big)):
        with pytest.raises(ValueError, match="learned for wan2.1"):
            make(1, table=origin).fit(target)


def test_of_encoder_takes_its_columns():
    xti = make(1, encoders={"clip_l": 3, "clip_g": 5})
    assert torch.equal(xti.of_encoder("clip_l")["MID"], xti.layers["MID"][:, :3])
    assert torch.equal(xti.of_encoder("clip_g")["MID"], xti.layers["MID"][:, 3:])


def test_of_encoder_refuses_what_is_not_there():
    with pytest.raises(ValueError, match="tokens for clip_l, not for clip_g"):
        A.of_encoder("clip_g")
