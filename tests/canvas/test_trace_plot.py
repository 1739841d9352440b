"""Guidance Trace Plot on the canvas: after a run the node shows its curves, answers the pointer, and keeps the run
before as a ghost.
"""

import json

import pytest
from conftest import ROOT

EXAMPLE = ROOT / "example_workflows" / "CFG and autoguidance with a trace (Shapes).json"
RESEED = """() => app.graph.nodes.flatMap(n => n.widgets ?? [])
  .filter(w => /seed/.test(w.name)).forEach(w => { w.value += 1; })"""


@pytest.fixture
def canvas(renderer_canvas):
    page, _ = renderer_canvas
    page.errors.clear()
    page.load_workflow(json.loads(EXAMPLE.read_text(encoding="utf-8")), "trace")
    page.fit()
    yield page
    assert page.errors == []


def test_the_plot_appears_after_a_run_and_answers_the_pointer(canvas, screenshots, renderer_canvas):
    plot = canvas.page.locator(".guidance-lab-trace:visible")
    assert plot.locator(".gl-says").text_content() == "The plot appears here after a run."
    saved = canvas.to_workflow()
    canvas.page.evaluate(RESEED)
    assert canvas.queue()["status"]["status_str"] == "success"
    plot.locator("circle").first.wait_for()
    terms = plot.locator(".gl-terms button:not(.gl-scale)").all_text_contents()
    assert {"CFG", "Autoguidance"} <= set(terms)
    assert plot.locator(".gl-says").text_content().endswith(".")
    assert plot.locator(".gl-ghost").count() == 0
    canvas.fit()
    plot.locator("svg").hover()  # waits until it stands still and nothing lies over it
    told = plot.locator(".gl-read").text_content()
    assert told.startswith("step ")
    assert "CFG" in told
    assert "Autoguidance" in told
    circles = plot.locator("circle").count()
    plot.get_by_role("button", name="CFG", exact=True).click()
    assert plot.locator("circle").count() < circles
    plot.get_by_role("button", name="CFG", exact=True).click()
    plot.get_by_role("button", name="log").click()
    assert plot.get_by_role("button", name="linear").is_visible()
    plot.get_by_role("button", name="linear").click()
    canvas.page.evaluate(RESEED)
    assert canvas.queue()["status"]["status_str"] == "success"
    plot.locator(".gl-ghost").first.wait_for(state="attached")
    plot.locator("svg").hover()
    canvas.page.screenshot(path=screenshots / f"trace plot {renderer_canvas[1]}.png")
    plot.screenshot(path=screenshots / f"trace plot alone {renderer_canvas[1]}.png")
    # The plot is a picture, not an input: what is queued and saved has no trace of it.
    assert "trace_plot" not in json.dumps(canvas.to_prompt())
    names = lambda workflow: [node.get("widgets_values") for node in workflow["nodes"] if "TracePlot" in node["type"]]  # noqa: E731
    assert names(canvas.to_workflow()) == names(saved)
