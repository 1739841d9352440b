"""Every example workflow on the real canvas, in both renderers: it loads, says what it would queue, and runs from the button."""

import json

import pytest
from conftest import ROOT

from tools.canvas import Canvas
from tools.client import to_api


def test_example_runs_from_the_canvas(renderer_canvas, example, workflow, object_info, screenshots):
    canvas, renderer = renderer_canvas
    canvas.errors.clear()
    canvas.load_workflow(workflow, example.stem)
    prompt = canvas.to_prompt()
    # The frontend is the authority on what a saved workflow means; `dev.py demo` relies on the converter agreeing with it.
    assert values(prompt) == values(to_api(workflow, object_info))
    result = canvas.queue()
    canvas.fit()
    canvas.page.screenshot(path=screenshots / f"{example.stem} {renderer}.png")
    assert result["status"]["status_str"] == "success", result["status"]["messages"][-1]
    assert any(output.get("images") for output in result["outputs"].values())
    assert canvas.errors == []


def values(prompt: dict) -> dict:
    return {node_id: (node["class_type"], node["inputs"]) for node_id, node in prompt.items()}


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
