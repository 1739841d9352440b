"""Every example workflow on the real canvas, in both renderers: it loads, can be read, says what it would queue, and
runs from the button.
"""

import json

import pytest
from conftest import ROOT
from contact_sheet import WINDOWS, write_sheet

from tools.canvas import Canvas
from tools.client import to_api
from tools.examples.measure import measure, zoom

LEAST_ZOOM = 0.7  # at 1920×1080
MOST_BEHIND = 0.1  # share of links that run behind a third node; 0 is not reached on every machine's fonts


@pytest.fixture(scope="module")
def example_shots(screenshots):
    """Screenshots of the examples after their runs, what was measured of them, and one sheet of all at the end."""
    folder = screenshots / "examples"
    folder.mkdir(exist_ok=True)
    measured = {}
    yield folder, measured
    (folder / "measured.json").write_text(json.dumps(measured, indent=1, ensure_ascii=False), encoding="utf-8")
    write_sheet(folder)


def test_example_runs_from_the_canvas(renderer_canvas, example, workflow, object_info, example_shots):
    canvas, renderer = renderer_canvas
    canvas.errors.clear()
    canvas.load_workflow(workflow, example.stem)
    prompt = canvas.to_prompt()
    # The frontend is the authority on what a saved workflow means; `dev.py demo` relies on the converter agreeing with
    # it.
    assert values(prompt) == values(to_api(workflow, object_info))
    before = measure(canvas)
    assert before["drawn"] >= 0.9 * before["segments"]  # else links were not measured
    result = canvas.queue()
    canvas.page.wait_for_timeout(500)
    after = measure(canvas)
    folder, measured = example_shots
    measured[f"{example.stem} {renderer}"] = {"zoom": zoom(after)} | after
    window = canvas.page.viewport_size
    for name, (width, height) in WINDOWS.items():
        canvas.page.set_viewport_size({"width": width, "height": height})
        canvas.page.wait_for_timeout(300)
        canvas.page.screenshot(path=folder / f"{example.stem} {renderer} {name}.png")
    canvas.page.set_viewport_size(window)
    assert result["status"]["status_str"] == "success", result["status"]["messages"][-1]
    assert any(output.get("images") for output in result["outputs"].values())
    assert canvas.errors == []
    assert zoom(before) >= LEAST_ZOOM
    assert before["linksBehind"] <= MOST_BEHIND * before["links"], before["behind"]
    assert before["over"] == after["over"] == []  # results make nodes grow


def values(prompt: dict) -> dict:
    """Class and inputs of every node; the slider of Compare Images is a view and has no value to agree on."""
    return {
        node_id: (node["class_type"], {name: value for name, value in node["inputs"].items() if name != "compare_view"})
        for node_id, node in prompt.items()
    }


@pytest.mark.parametrize("locale", ["en", "ja"])
def test_titles_are_in_the_users_language(locale, browser, server, object_info, screenshots):
    ours = sorted(name for name in object_info if name.startswith("GuidanceLab_"))
    titles = {name: object_info[name]["display_name"] for name in ours}
    if locale == "ja":
        titles = {name: entry["display_name"] for name, entry in read_locale("ja").items()}
    canvas = Canvas(browser, server.url, locale=locale)
    try:
        shown = canvas.page.evaluate(PLACE, ours)
        canvas.fit()
        canvas.page.screenshot(path=screenshots / f"all nodes {locale}.png")
    finally:
        canvas.close()
    assert shown == titles
    assert canvas.errors == []


PLACE = """names => {
  app.graph.clear();
  return Object.fromEntries(names.map((name, i) => {
    const node = LiteGraph.createNode(name);
    node.pos = [420 * (i % 4), 420 * Math.floor(i / 4)];
    app.graph.add(node);
    return [name, node.title];
  }));
}"""


def read_locale(locale: str) -> dict:
    return json.loads((ROOT / "locales" / locale / "nodeDefs.json").read_text(encoding="utf-8"))
