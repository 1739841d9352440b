"""The layer table of Per-Block Prompt Conditioning on the real canvas: what is typed is what is queued and saved, in both renderers."""

import json

import pytest

from tools.canvas import Canvas

NODE = "GuidanceLab_PerBlockPrompt"
LINES = "# object inside\nmiddle: a green lizard\n0-3, 10-15 @0-0.5 x0.8: a red: cube"
PROMPT = {
    "1": {"class_type": "GuidanceLab_ShapesDemoModels", "inputs": {}},
    "2": {"class_type": NODE, "inputs": {"model": ["1", 0], "clip": ["1", 1], "text": "a star", "layers": LINES}},
}


@pytest.fixture(params=["classic", "nodes2"])
def page(request, browser, server):
    canvas = Canvas(browser, server.url, nodes2=request.param == "nodes2")
    canvas.load_prompt(PROMPT, "layers")
    canvas.renderer = request.param
    yield canvas
    canvas.close()


def layers(canvas):
    return next(node["inputs"]["layers"] for node in canvas.to_prompt().values() if node["class_type"] == NODE)


def fields(canvas):
    return [field.input_value() for field in canvas.page.locator(".guidance-lab-layer-table input").all()]


def test_what_is_typed_is_queued_saved_and_reloaded(page, screenshots):
    page.fit()
    assert layers(page) == LINES
    assert fields(page) == ["# object inside", "middle", "a green lizard", "0-3, 10-15 @0-0.5 x0.8", "a red: cube"]
    table = page.page.locator(".guidance-lab-layer-table")
    table.get_by_placeholder("Prompt").first.fill("a blue ball")
    table.get_by_role("button", name="Add line").click()
    table.get_by_placeholder("Layers").last.fill("MID")
    table.get_by_placeholder("Prompt").last.press_sequentially("a car")
    table.get_by_role("button", name="Remove this line").first.click()
    expected = "middle: a blue ball\n0-3, 10-15 @0-0.5 x0.8: a red: cube\nMID: a car"
    assert layers(page) == expected
    page.page.screenshot(path=screenshots / f"layer table {page.renderer}.png")
    saved = page.to_workflow()
    assert expected in json.dumps(saved, ensure_ascii=False).replace("\\n", "\n")
    page.load_workflow(saved, "again")
    assert layers(page) == expected
    assert fields(page) == ["middle", "a blue ball", "0-3, 10-15 @0-0.5 x0.8", "a red: cube", "MID", "a car"]
    assert page.errors == []


def test_a_new_node_shows_its_default_in_the_users_language(browser, server, screenshots):
    canvas = Canvas(browser, server.url, locale="ja")
    try:
        canvas.page.evaluate("name => { app.graph.clear(); app.graph.add(LiteGraph.createNode(name)); }", NODE)
        canvas.fit()
        canvas.page.screenshot(path=screenshots / "layer table ja.png")
        assert fields(canvas) == ["middle", "a green lizard"]
        assert canvas.page.get_by_role("button", name="行を追加").is_visible()
        assert canvas.errors == []
    finally:
        canvas.close()
