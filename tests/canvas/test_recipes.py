"""Every recipe of `subgraphs/` on the real canvas: a person finds it in the node search, wires it into a workflow,
changes what it shows on its face, and runs it.
"""

import json

import pytest
import torch
from conftest import ROOT
from safetensors.torch import save_file

from tools.examples.recipes import RECIPES

FOLDER = ROOT / "subgraphs"
# Wires the recipe between the parts of the autoguidance example: its inputs by their names, its outputs by their types.
WIRE = """title => {
  const all = type => app.graph.nodes.filter(n => n.type === type);
  const recipe = app.graph.nodes.find(n => n.title === title);
  const [models] = all("GuidanceLab_ShapesDemoModels"), texts = all("CLIPTextEncode"), samplers = all("KSampler");
  const from = { model: [models, 0], clip: [models, 1], vae: [models, 2], scorer: [models, 5], galip: [models, 7],
    positive: [texts[0], 0], draft_text: [texts[0], 0], negative: [texts[1], 0], latents: [samplers[0], 0] };
  recipe.inputs.forEach((input, i) => { if (!input.widget) from[input.name][0].connect(from[input.name][1], recipe,
  i); });
  const to = { MODEL: [samplers.at(-1), 0], CONDITIONING: [samplers.at(-1), 1], IMAGE: [all("PreviewImage")[0], 0] };
  recipe.outputs.forEach((output, i) => { if (to[output.type]) recipe.connect(i,
  ...to[output.type]); delete to[output.type]; });
  for (const node of app.graph.nodes) for (const widget of node.widgets ?? []) {
    if (widget.name === "batch_size") widget.value = 1;
    if (widget.name === "steps") widget.value = 4;
  }
}"""
# Sets what the recipe shows; returns what it shows now.
SET = """([title, values]) => {
  const recipe = app.graph.nodes.find(n => n.title === title);
  for (const widget of recipe.widgets) if (widget.name in values) {
    widget.value = values[widget.name];
    widget.callback?.(widget.value);
  }
  return Object.fromEntries(recipe.widgets.map(widget => [widget.name, widget.value]));
}"""
# A value for everything that a recipe shows, another one than it comes with.
VALUES = {
    "weight": 1.5, "start_percent": 0.1, "end_percent": 0.9, "drop_fraction": 0.2, "seed": 3, "blur_sigma": 5.0,
    "sigma_shift": 0.2, "window": 0.5, "overlap": 0.25, "blocks": "input:4-5, output:6-8",
    "lora_name": "tiny.safetensors", "strength_model": 0.8, "text": "a red star on sand", "strength": 0.25,
    "gradient": "through model", "crops": 1, "every": 2, "layers": "up: a blue ball", "init_word": "cube",
    "lines": "a {} on white", "steps": 3, "learning_rate": 0.01, "batch": 2, "draft_seed": 4, "batch_size": 1,
    "truncation": 0.9, "scale_by": 2.0, "cfg": 2.0, "denoise": 0.5,
}  # fmt: skip


def put_down(canvas) -> None:
    """Where a ghost of the new node follows the pointer, put it down as a click on the empty canvas does. As long as
    it follows, Nodes 2.0 makes all nodes inert, in this workflow and in those that are opened after it.
    """
    canvas.page.wait_for_timeout(300)  # the ghost starts a moment after the node is in the graph
    canvas.page.evaluate("() => app.canvas.finalizeGhostPlacement(false)")
    assert canvas.page.evaluate("() => app.canvas.state.ghostNodeId") is None


@pytest.fixture(scope="module")
def tiny_lora(server):
    """A LoRA of one layer of the Shapes model."""
    folder = server.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    name = "diffusion_model.middle_block.1.proj_in"
    generator = torch.Generator().manual_seed(0)
    width = 128
    save_file(
        {
            f"{name}.lora_up.weight": torch.randn(width, 2, generator=generator),
            f"{name}.lora_down.weight": torch.randn(2, width, generator=generator),
        },
        folder / "tiny.safetensors",
    )


def test_every_recipe_has_its_program():
    assert {path.stem for path in FOLDER.glob("*.json")} == {recipe.name for recipe in RECIPES}
    assert all(len(recipe.name) <= 35 for recipe in RECIPES)  # what the node search still finds by its whole name


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_recipe_is_found_wired_changed_and_runs(recipe, renderer_canvas, screenshots, tiny_lora):
    canvas, renderer = renderer_canvas
    canvas.errors.clear()
    example = ROOT / "example_workflows" / "Autoguidance (Shapes).json"
    canvas.load_workflow(json.loads(example.read_text(encoding="utf-8")), "recipe")
    canvas.page.evaluate("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    canvas.page.wait_for_function("() => document.activeElement?.localName === 'input'")
    canvas.page.keyboard.type(recipe.name, delay=5)
    # Its own row: with Enter the first row is taken, which is a node of a like name for some.
    canvas.page.get_by_role("dialog").get_by_text(recipe.name, exact=True).first.click(timeout=30_000)
    canvas.page.wait_for_function("title => app.graph.nodes.some(n => n.title === title)", arg=recipe.name)
    put_down(canvas)
    canvas.page.evaluate(WIRE, recipe.name)
    shown = canvas.page.evaluate(SET, [recipe.name, VALUES])
    assert set(shown) >= set(recipe.shown.values())
    canvas.fit()
    canvas.page.screenshot(path=screenshots / f"recipe {recipe.name} {renderer}.png")
    # What the example had is wired to nothing now; the recipe's own nodes carry ids "recipe:node", numbered anew.
    inside = {entry["class_type"]: entry["inputs"] for key, entry in canvas.to_prompt().items() if ":" in key}
    assert set(inside) == {entry["class_type"] for entry in recipe.prompt.values()}
    for where, label in recipe.shown.items():
        number, field = where.split(".", 1)
        assert inside[recipe.prompt[number]["class_type"]][field] == VALUES[label], label
    result = canvas.queue()
    assert result["status"]["status_str"] == "success", result["status"]["messages"][-1]
    assert canvas.errors == []
