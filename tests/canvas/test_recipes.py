"""Every recipe of `subgraphs/` on the real canvas: a person finds it in the node search, wires it into a workflow and runs it."""

import json

import pytest
from conftest import ROOT

RECIPES = sorted((ROOT / "subgraphs").glob("*.json"))
WIRE = """title => {
  const node = type => app.graph.nodes.find(n => n.type === type);
  const recipe = app.graph.nodes.find(n => n.title === title);
  node("GuidanceLab_ShapesDemoModels").connect(0, recipe, 0);
  recipe.connect(0, app.graph.nodes.filter(n => n.type === "KSampler").at(-1), 0);
}"""


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_found_wired_and_runs(recipe, renderer_canvas, screenshots):
    canvas, renderer = renderer_canvas
    canvas.errors.clear()
    example = ROOT / "example_workflows" / "Autoguidance (Shapes).json"
    canvas.load_workflow(json.loads(example.read_text(encoding="utf-8")), "recipe")
    canvas.page.evaluate("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    canvas.page.keyboard.type(recipe.stem, delay=5)
    canvas.page.wait_for_timeout(1500)
    canvas.page.keyboard.press("Enter")
    canvas.page.mouse.click(1200, 700)  # where a ghost of the node follows the pointer, this puts it down
    canvas.page.wait_for_function("title => app.graph.nodes.some(n => n.title === title)", arg=recipe.stem)
    canvas.page.evaluate(WIRE, recipe.stem)
    canvas.fit()
    canvas.page.screenshot(path=screenshots / f"recipe {recipe.stem} {renderer}.png")
    prompt = canvas.to_prompt()
    # The Model Pair that the example had is wired to nothing now; the recipe's own nodes carry ids "recipe:node".
    inside = {entry["class_type"] for key, entry in prompt.items() if ":" in key}
    assert inside == {node["type"] for node in json.loads(recipe.read_text("utf-8"))["definitions"]["subgraphs"][0]["nodes"]}
    result = canvas.queue()
    assert result["status"]["status_str"] == "success", result["status"]["messages"][-1]
    assert canvas.errors == []
