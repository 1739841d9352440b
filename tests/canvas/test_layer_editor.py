"""The layer editor on the real canvas, in both renderers: what is painted and typed is what is queued, saved and
reloaded.
"""

import json

import pytest
from editor_tools import NODE, cell, chip, drag_over, editor, open_editor, prompts, queued

from guidance_lab.xti.layers import named_table
from guidance_lab.xti.prompts import parse
from tools.canvas import Canvas


@pytest.fixture
def canvas(renderer_canvas):
    page, _ = renderer_canvas
    open_editor(page)
    yield page
    assert page.errors == []


def test_a_loaded_text_is_shown_and_queued_as_it_was(canvas):
    assert prompts(canvas) == ["a green lizard", "a red: cube"]
    assert editor(canvas).locator(".gl-cell").count() == 16
    assert "a green lizard" in cell(canvas, "MID").get_attribute("title")
    assert "8 × 8" in cell(canvas, "MID").get_attribute("title")
    assert queued(canvas) == "# object inside\nmiddle: a green lizard\n0-3, 10-15 @0-0.5 x0.8: a red: cube"


def test_click_drag_and_shift_click_paint_cells(canvas):
    chip(canvas, 2).click()
    cell(canvas, "MID").click()
    assert "MID" in queued(canvas).splitlines()[2]
    drag_over(canvas, "IN07", "IN08")
    lines = queued(canvas).splitlines()
    assert lines[1] == "OUT03-OUT05: a green lizard"
    assert lines[2] == "IN01-MID, OUT06-OUT11 @0-0.5 x0.8: a red: cube"
    chip(canvas, 1).click()
    cell(canvas, "IN01").click()
    cell(canvas, "IN05").click(modifiers=["Shift"])
    assert queued(canvas).splitlines()[1] == "IN01-IN05, OUT03-OUT05: a green lizard"
    cell(canvas, "IN01").click()  # it is the chip's own: taken away
    assert queued(canvas).splitlines()[1] == "IN02-IN05, OUT03-OUT05: a green lizard"
    editor(canvas).locator(".gl-basechip .gl-tag").click()
    drag_over(canvas, "OUT09", "OUT10", "OUT11")
    assert queued(canvas).splitlines()[2] == "IN07-MID, OUT06-OUT08 @0-0.5 x0.8: a red: cube"


def test_text_strength_window_presets_and_lines(canvas):
    field = editor(canvas).locator(".gl-chips input[type=text]")
    field.first.fill("a blue ball")
    editor(canvas).get_by_role("spinbutton").first.fill("1.5")
    editor(canvas).locator(".gl-span input").nth(1).fill("0.4")
    assert queued(canvas).splitlines()[1] == "middle @0-0.4 x1.5: a blue ball"
    editor(canvas).get_by_role("button", name="down", exact=True).click()
    assert queued(canvas).splitlines()[1:] == ["down @0-0.4 x1.5: a blue ball", "OUT06-OUT11 @0-0.5 x0.8: a red: cube"]
    field.last.press("Enter")
    canvas.page.keyboard.type("a car")
    assert queued(canvas).splitlines()[3] == "MID: a car"
    editor(canvas).get_by_role("button", name="coarse → fine").click()
    assert [line.split(":")[0].split(" @")[0] for line in queued(canvas).splitlines()[1:]] == [
        "innermost 5", "IN04, IN05, OUT05-OUT08", "IN01, IN02, OUT09-OUT11",
    ]  # fmt: skip
    editor(canvas).get_by_role("button", name="Remove this line").first.click()  # the comment
    assert not queued(canvas).startswith("#")
    assert parse(queued(canvas), named_table("sd1"))


def test_keyboard(canvas):
    chip(canvas, 2).click()
    cell(canvas, "IN07").focus()
    press = canvas.page.keyboard.press
    press("ArrowRight")
    press("Space")
    assert "IN08" in queued(canvas).splitlines()[2]
    press("ArrowDown")
    press("Delete")
    assert queued(canvas).splitlines()[1] == "IN07, OUT03-OUT05: a green lizard"  # MID reads the base prompt
    press("ArrowUp")
    assert canvas.page.evaluate("() => app.graph.nodes.length") == 2  # Delete was meant for the cell, not for the node
    chip(canvas, 1).focus()
    press("Delete")
    assert prompts(canvas) == ["a red: cube"]


def test_typos_are_explained_in_their_row_before_anything_runs(canvas, screenshots, renderer_canvas):
    text = "midle: a lizard\nMID: b\nmiddle: c\n7 @0.5: d"
    editor(canvas).get_by_role("button", name="Edit as text").click()
    editor(canvas).locator("textarea").fill(text)
    told = editor(canvas).locator(".gl-textbox + div .gl-error").all_text_contents()
    first = _refusal(text)
    assert told[0] == first
    assert told[1] == "Line 3: layer MID already has a prompt in line 2."
    assert told[2] == _refusal("7 @0.5: d").replace("Line 1", "Line 4")
    assert editor(canvas).locator("pre .gl-wavy").all_text_contents() == ["midle: a lizard", "middle: c", "7 @0.5: d"]
    canvas.page.screenshot(path=screenshots / f"layer editor typos as text {renderer_canvas[1]}.png")
    assert queued(canvas) == text
    editor(canvas).get_by_role("button", name="Show the layers").click()
    assert editor(canvas).locator(".gl-chips .gl-error").all_text_contents()[0] == first.removeprefix("Line 1: ")
    canvas.page.screenshot(path=screenshots / f"layer editor typos {renderer_canvas[1]}.png")
    editor(canvas).locator(".gl-chips input[type=text]").first.fill("MID @0.9-1: a lizard")
    assert "already has a prompt" in editor(canvas).locator(".gl-chips .gl-error").all_text_contents()[1]


def _refusal(text: str) -> str:
    with pytest.raises(ValueError) as refused:
        parse(text, named_table("sd1"))
    return str(refused.value)


def test_saved_and_reloaded(canvas):
    chip(canvas, 2).click()
    cell(canvas, "MID").click()
    expected = queued(canvas)
    saved = canvas.to_workflow()
    assert expected in json.dumps(saved, ensure_ascii=False).replace("\\n", "\n")
    canvas.load_workflow(saved, "again")
    assert queued(canvas) == expected
    assert prompts(canvas) == ["a green lizard", "a red: cube"]


def test_a_new_node_shows_its_default_in_the_users_language(browser, server, screenshots):
    canvas = Canvas(browser, server.url, locale="ja")
    try:
        canvas.page.evaluate("name => { app.graph.clear(); app.graph.add(LiteGraph.createNode(name)); }", NODE)
        canvas.fit()
        canvas.page.screenshot(path=screenshots / "layer editor ja.png")
        assert prompts(canvas) == ["a green lizard"]
        assert editor(canvas).get_by_role("button", name="プロンプトを追加").is_visible()
        assert canvas.errors == []
    finally:
        canvas.close()


def test_the_layer_set_of_a_style_mix(canvas, screenshots, renderer_canvas):
    """XTI Style Mix with "layer set": the value stays the plain list of layers."""
    inputs = {"layers": "layer set", "layers.names": "IN08, MID, OUT03", "amount": 1.0}
    canvas.load_prompt({"1": {"class_type": "GuidanceLab_XTIStyleMix", "inputs": inputs}}, "mix")
    canvas.fit()
    names = lambda: canvas.to_prompt()["1"]["inputs"]["layers.names"]  # noqa: E731
    assert names() == "IN08, MID, OUT03"
    cell(canvas, "OUT04").click()
    assert names() == "IN08-OUT04"
    cell(canvas, "IN08").click()
    canvas.page.screenshot(path=screenshots / f"layer set {renderer_canvas[1]}.png")
    assert names() == "MID-OUT04"
    editor(canvas).locator(".gl-chips input[type=text]").fill("MID, INN8")
    assert names() == "MID, INN8"
    assert '"INN8" names no layer of sd1' in editor(canvas).locator(".gl-chips .gl-error").text_content()
