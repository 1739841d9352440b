"""What nodes show of their runs, on the real canvas: it grows while they run, is in no prompt and in no saved workflow,
and is there again after a reload of the page.
"""

import json
import uuid

import pytest
from conftest import ROOT

SET = """([name, value]) => app.graph.nodes.flatMap(n => n.widgets ?? []).filter(w => w.name === name)
  .forEach(w => { w.value = value; })"""


def example(name: str) -> dict:
    """An example with an id of its own, as a workflow that was saved once has it."""
    workflow = json.loads((ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))
    return {**workflow, "id": str(uuid.uuid4())}


@pytest.fixture
def canvas(renderer_canvas):
    page, _ = renderer_canvas
    page.errors.clear()
    yield page
    assert page.errors == []


def open_again(canvas, workflow: dict) -> None:
    """Reloads the page and opens the same workflow, which a browser does by itself unless told otherwise."""
    canvas.page.reload()
    canvas.page.wait_for_function(
        "() => Boolean(window.app?.graph && window.LiteGraph?.registered_node_types['KSampler'])"
    )
    canvas.page.wait_for_timeout(2500)
    canvas.load_workflow(workflow, "live")


def is_no_input(canvas, before: dict) -> None:
    after = canvas.to_workflow()
    values = lambda workflow: [node.get("widgets_values") for node in workflow["nodes"]]  # noqa: E731
    assert values(after) == values(before)
    assert "guidance-lab" not in json.dumps(canvas.to_prompt()) and "data:image" not in json.dumps(after)


def test_clip_guidance_shows_its_run_and_shows_it_again(canvas, renderer_canvas, screenshots):
    workflow = example("UPainting CLIP Guider (Shapes)")
    canvas.load_workflow(workflow, "live")
    canvas.fit()
    canvas.page.evaluate(SET, ["strength", 4])  # too much
    canvas.page.evaluate(SET, ["cfg", 2])  # something to compare the push with
    saved = canvas.to_workflow()
    live = canvas.page.locator(".guidance-lab-live:visible")
    assert live.count() == 0
    assert canvas.queue()["status"]["status_str"] == "success"
    live.locator("polyline").first.wait_for(state="attached")
    assert live.locator("img").count() == 1 and live.locator(".gl-estimate rect").count() >= 1
    said = live.text_content()
    assert "step" in said and "score" in said
    assert "larger than CFG's" in live.locator(".gl-warn").text_content()
    lines = live.locator("polyline").count()
    points = len(live.locator("polyline").first.get_attribute("points").split())
    assert lines == 3 and points > 5
    is_no_input(canvas, saved)
    canvas.fit()
    canvas.page.screenshot(path=screenshots / f"clip guidance live {renderer_canvas[1]}.png")
    open_again(canvas, workflow)
    live.locator("polyline").first.wait_for(state="attached")
    assert len(live.locator("polyline").first.get_attribute("points").split()) == points
    assert live.locator("img").count() == 1
    canvas.load_workflow(example("UPainting CLIP Guider (Shapes)"), "another")
    assert live.count() == 0  # another workflow, which has not run


def test_training_and_words_are_drawn_and_drawn_again(canvas, renderer_canvas, screenshots):
    workflow = example("Train an XTI and use it (Shapes)")
    canvas.load_workflow(workflow, "live")
    canvas.page.evaluate(SET, ["steps", 12])
    canvas.fit()  # what is off the screen draws nothing
    saved = canvas.to_workflow()
    assert canvas.queue()["status"]["status_str"] == "success"
    live = canvas.page.locator(".guidance-lab-live:visible")
    live.locator("polyline").first.wait_for(state="attached")
    assert "step 12 of 12" in live.text_content()
    assert live.locator("circle").count() == 12
    words = canvas.page.locator(".guidance-lab-words:visible")
    cells = words.locator(".gl-cell")
    cells.first.wait_for(state="attached")
    table = canvas.page.evaluate(
        "() => app.graph.nodes.find(n => n.comfyClass === 'GuidanceLab_XTIInfo').widgets.length"
    )
    assert table and cells.count() > 3
    assert all(cell.strip() for cell in words.locator(".gl-cell em").all_text_contents())
    canvas.fit()
    cells.last.dispatch_event("pointerover")
    assert "norm" in words.locator(".gl-list").text_content()
    is_no_input(canvas, saved)
    canvas.page.screenshot(path=screenshots / f"training live {renderer_canvas[1]}.png")
    count = cells.count()
    open_again(canvas, workflow)
    canvas.fit()
    live.locator("polyline").first.wait_for(state="attached")
    assert live.locator("circle").count() == 12 and cells.count() == count


def test_a_trace_and_a_line_of_text_are_there_again(canvas):
    workflow = example("CFG and autoguidance with a trace (Shapes)")
    canvas.load_workflow(workflow, "live")
    canvas.page.evaluate(SET, ["seed", 4321])
    assert canvas.queue()["status"]["status_str"] == "success"
    plot = canvas.page.locator(".guidance-lab-trace:visible")
    plot.locator("circle").first.wait_for(state="attached")
    circles = plot.locator("circle").count()
    open_again(canvas, workflow)
    plot.locator("circle").first.wait_for(state="attached")
    assert plot.locator("circle").count() == circles
    width = canvas.page.evaluate("() => app.graph.nodes.find(n => n.comfyClass.endsWith('TracePlot')).size[0]")
    assert width >= 420
    said = canvas.page.locator(".guidance-lab-said:visible")
    assert "sigma" in said.text_content()
    canvas.page.evaluate(SET, ["seed", 4322])
    assert canvas.queue()["status"]["status_str"] == "success"
    said.wait_for(state="detached")  # core shows the new line itself


def test_a_comparison_shows_its_sheet_and_grows_a_socket(canvas, renderer_canvas, screenshots):
    canvas.load_workflow(example("Guidance Compare (Shapes)"), "compare")
    canvas.page.evaluate(SET, ["steps", 4])
    compare = "app.graph.nodes.find(n => n.comfyClass.endsWith('Compare'))"
    slots = f"() => {compare}.inputs.filter(i => /^models/.test(i.name)).length"
    assert canvas.page.evaluate(slots) == 4
    canvas.page.evaluate(
        """() => app.graph.nodes.find(n => n.comfyClass.endsWith('DemoModels'))
          .connect(4, app.graph.nodes.find(n => n.comfyClass.endsWith('Compare')), 3)"""
    )
    canvas.page.wait_for_function(f"() => ({slots})() === 5")
    result = canvas.queue()
    assert result["status"]["status_str"] == "success", result["status"]["messages"][-1]
    # The sheet, on the node itself and in the preview of the example.
    images = [image for output in result["outputs"].values() for image in output.get("images", [])]
    assert {image["type"] for image in images} == {"temp"}
    canvas.page.wait_for_timeout(1000)
    canvas.fit()
    canvas.page.screenshot(path=screenshots / f"guidance compare {renderer_canvas[1]}.png")


def test_a_curve_of_the_curve_editor_is_drawn_over_the_steps(canvas, renderer_canvas, screenshots):
    canvas.load_workflow(example("Guidance Compare (Shapes)"), "curve")
    canvas.page.evaluate(SET, ["steps", 4])
    canvas.page.evaluate(
        """() => {
          const editor = LiteGraph.createNode("CurveEditor");
          editor.pos = [60, 620];
          app.graph.add(editor);
          const pair = app.graph.nodes.find(n => n.comfyClass.endsWith("ModelPair"));
          editor.connect(0, pair, pair.inputs.findIndex(i => i.name === "weight_curve"));
        }"""
    )
    result = canvas.queue()
    assert result["status"]["status_str"] == "success", result["status"]["messages"][-1]
    live = canvas.page.locator(".guidance-lab-live:visible")
    live.locator("circle").first.wait_for(state="attached")
    assert live.count() == 1 and live.locator("circle").count() == 4
    canvas.fit()
    canvas.page.screenshot(path=screenshots / f"weight curve {renderer_canvas[1]}.png")
