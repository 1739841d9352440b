"""The text form of a per-layer prompt."""

import pytest

from guidance_lab.xti.layers import named_table
from guidance_lab.xti.prompts import parse, schedule

SD1 = named_table("sd1")


def test_lines_name_layers_and_prompts():
    prompts = parse("# swap\n\nmiddle: a green lizard\n0-3,10-15: a red cube, (shiny:1.2)\n", SD1)
    assert [(prompt.layers, prompt.text, prompt.line) for prompt in prompts] == [
        (tuple(range(4, 10)), "a green lizard", 3),
        ((0, 1, 2, 3, 10, 11, 12, 13, 14, 15), "a red cube, (shiny:1.2)", 4),
    ]
    assert {(prompt.strength, prompt.start, prompt.end) for prompt in prompts} == {(1.0, 0.0, 1.0)}


@pytest.mark.parametrize(
    ("head", "strength", "window"),
    [
        ("MID x0.8", 0.8, (0.0, 1.0)),
        ("MID @0-0.4", 1.0, (0.0, 0.4)),
        ("MID @ .25-1 x 1.5", 1.5, (0.25, 1.0)),
        ("innermost 1 x-1", -1.0, (0.0, 1.0)),
    ],
)
def test_strength_and_window(head, strength, window):
    (prompt,) = parse(f"{head}: a cat", SD1)
    assert prompt.layers == (6,) and prompt.strength == strength and (prompt.start, prompt.end) == window


def test_an_empty_prompt_is_a_prompt():
    assert parse("MID:", SD1)[0].text == ""
    assert parse("\n  \n", SD1) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MID: a\n\nouter a red cube", "Line 3: .*no colon"),
        ("MID: a\nOUT02: b", 'Line 2: "OUT02" names no layer'),
        ("MID: a\n# no\n3-7: b", "Line 3: layer MID already has a prompt in line 1"),
        ("MID @0.5: a", "Line 1: .*not START-END"),
        ("MID @0.5-0.2: a", "Line 1: .*forwards between 0 and 1"),
        ("MID @0-1.5: a", "Line 1: .*forwards between 0 and 1"),
        ("MID @0-nan: a", 'Line 1: The window "nan" is not a number'),
        ("MID xlarge: a", 'Line 1: The strength "large" is not a number'),
        (f"MID x{'9' * 400}: a", "Line 1: The strength is too large a number"),
        (f"MID x-{'9' * 399}: a", "Line 1: The strength is too large"),
        (f"MID @0-{'9' * 400}: a", "Line 1: The window is too large"),
        (": a", "Line 1: No layer is named"),
        ("MID @0-0.5 @0.5-1: a", "Line 1: .*is not LAYERS"),
    ],
)
def test_errors_name_the_line(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text, SD1)


def test_the_same_layer_may_have_a_prompt_in_each_window():
    prompts = parse("MID @0-0.4: a\nMID @0.4-1: b", SD1)
    assert [prompt.text for prompt in prompts] == ["a", "b"]
    with pytest.raises(ValueError, match="Line 2: layer MID already"):
        parse("MID @0-0.5: a\nMID @0.4-1: b", SD1)


def test_schedule_cuts_where_windows_begin_and_end():
    segments = schedule(parse("MID @0.2-0.6: a\n0 @0.4-1: b\n15: c", SD1), SD1)
    seen = [
        (s.start, s.end, [prompt.text if prompt else None for prompt in (s.prompts[6], s.prompts[0], s.prompts[15])])
        for s in segments
    ]
    assert seen == [
        (0.0, 0.2, [None, None, "c"]),
        (0.2, 0.4, ["a", None, "c"]),
        (0.4, 0.6, ["a", "b", "c"]),
        (0.6, 1.0, [None, "b", "c"]),
    ]


def test_schedule_without_lines_is_the_base_prompt():
    (segment,) = schedule([], SD1)
    assert (segment.start, segment.end, segment.prompts) == (0.0, 1.0, (None,) * 16)
