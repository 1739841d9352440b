"""What a value of the layer editor lives through: undo, copies, subgraphs, connections, the panel, the pointer's
gestures, a run.
"""

import json
import re
import uuid

import pytest
from editor_tools import (
    CONDITIONING,
    LINES,
    NODE,
    SELECT,
    cell,
    chip,
    editor,
    eventually,
    open_editor,
    prompt,
    prompts,
    queued,
)  # fmt: skip
from playwright.sync_api import TimeoutError, expect

from tools.canvas import Canvas

SUBGRAPH = """type => {
  const node = app.graph.nodes.find(node => node.type === type);
  app.canvas.selectNode(node);
  const made = app.graph.convertToSubgraph(new Set([node])).node;
  app.canvas.selectNode(made);
  return String(made.id);
}"""
PROMOTE = """id => {
  const host = app.graph.nodes.find(node => String(node.id) === id);
  const inner = host.subgraph.nodes[0];
  const slot = inner.inputs.findIndex(input => input.name === "layers");
  const input = host.subgraph.addInput("layers", "STRING");
  input.connect(inner.inputs[slot], inner);
}"""

# A node in place of the one that is there, recorded before its editor has its height, as one from the node search is.
NEW = """type => {
  app.graph.remove(app.graph.nodes.find(node => node.type === type));
  const node = LiteGraph.createNode(type);
  app.graph.add(node);
  node.pos = [500, 100];
  app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState();
}"""
TEXT = "type => app.graph.nodes.find(n => n.type === type)?.widgets.find(w => w.name === 'layers').value"

# Ctrl+Z by a fast hand on a slow machine: both keys are let go before the canvas comes to look at them.
FAST_UNDO = """async () => {
  const frame = () => new Promise(requestAnimationFrame);
  const key = (type, key) => window.dispatchEvent(new KeyboardEvent(type, {key, ctrlKey: true, bubbles: true}));
  key("keydown", "Control");
  await frame(); await frame();
  key("keydown", "z"); key("keyup", "z"); key("keyup", "Control");
}"""

# What a test that waits in vain would have to know: what is recorded and differs from record to record, what there is,
# where the keys go.
HISTORY = """type => {
  const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
  const states = [...tracker.undoQueue, tracker.activeState, app.rootGraph.serialize(), ...tracker.redoQueue];
  const nodes = states.map(graph => graph.nodes.find(node => node.type === type));
  const changes = states.slice(1).map((graph, i) => graph.nodes.filter(node =>
    JSON.stringify(node) !== JSON.stringify(states[i].nodes.find(one => one.id === node.id))));
  const rest = ({nodes, ...graph}) => graph;
  const others = states.slice(1).map((graph, i) => Object.entries(rest(graph)).filter(([key, value]) =>
    JSON.stringify(value) !== JSON.stringify(states[i][key])).map(([key, value]) => [key, states[i][key], value]));
  const { undoQueue, redoQueue, changeCount, _restoringState } = tracker;
  const focus = document.activeElement.outerHTML.slice(0, 200);
  const counts = [undoQueue.length, redoQueue.length, changeCount, _restoringState];
  return JSON.stringify([...counts, focus, others, nodes, changes]);
}"""

TALLER = """type => {
  const node = app.graph.nodes.find(node => node.type === type);
  node.setSize([node.size[0], node.size[1] + 40]);
}"""

DISCONNECT = """type => {
  const node = app.graph.nodes.find(node => node.type === type);
  node.disconnectInput(node.inputs.findIndex(input => input.name === "layers"));
}"""


@pytest.fixture
def canvas(renderer_canvas):
    page, _ = renderer_canvas
    open_editor(page)
    yield page
    assert page.errors == []


def wait_for_text(canvas, text: str) -> None:
    """Until the editor's value is `text`; else says what the history of the canvas holds."""
    try:
        canvas.page.wait_for_function(f"([type, text]) => ({TEXT})(type) === text", arg=[NODE, text], timeout=30_000)
    except TimeoutError as error:
        raise AssertionError(canvas.page.evaluate(HISTORY, NODE)) from error


def test_undo_and_redo(canvas):
    for _ in range(2):  # the frontend itself counts it as a change that nodes of a prompt get an empty list of values
        canvas.load_workflow(canvas.to_workflow(), "history")
    canvas.fit()
    cell(canvas, "IN01").click()
    painted = queued(canvas)
    assert painted != LINES
    canvas.page.keyboard.press("Control+z")
    wait_for_text(canvas, LINES)
    assert queued(canvas) == LINES
    canvas.page.keyboard.press("Control+y")
    wait_for_text(canvas, painted)
    assert queued(canvas) == painted
    # Nodes 2.0 draws the new graph some frames later.
    expect(cell(canvas, "IN01")).to_have_attribute("title", re.compile("a green lizard"), timeout=10_000)


def test_a_new_node_that_grew_with_its_editor_leaves_the_redo_alone(canvas):
    for _ in range(2):
        canvas.load_workflow(canvas.to_workflow(), "growth")
    canvas.page.evaluate(NEW, NODE)
    canvas.fit()
    fresh = canvas.page.evaluate(TEXT, NODE)
    cell(canvas, "IN01").click()
    painted = canvas.page.evaluate(TEXT, NODE)
    assert painted != fresh
    canvas.page.keyboard.press("Control+z")
    wait_for_text(canvas, fresh)
    canvas.page.wait_for_timeout(800)
    canvas.page.keyboard.press("Shift")  # a key let go records what changed
    canvas.page.keyboard.press("Control+y")
    wait_for_text(canvas, painted)


def test_an_editor_that_shrank_leaves_the_undo_alone(canvas):
    for _ in range(2):
        canvas.load_workflow(canvas.to_workflow(), "shrink")
    canvas.fit()
    cell(canvas, "IN01").click()
    size = "type => app.graph.nodes.find(n => n.type === type).size[1]"
    before = canvas.page.evaluate(size, NODE)
    editor(canvas).locator(".gl-bar").evaluate("bar => bar.style.marginBottom = '80px'")
    canvas.page.wait_for_function(
        f"([type, before]) => ({size})(type) > before + 60", arg=[NODE, before], timeout=20_000
    )
    canvas.page.keyboard.press("Shift")  # a key let go records what changed
    canvas.page.wait_for_timeout(300)
    editor(canvas).locator(".gl-bar").evaluate("bar => bar.style.marginBottom = ''")
    canvas.page.wait_for_timeout(800)
    canvas.page.evaluate(FAST_UNDO)
    wait_for_text(canvas, LINES)


def test_a_height_set_between_a_key_and_the_record_leaves_the_undo_alone(canvas):
    """A slow machine draws a frame, in which the canvas fits the node, after a key goes down and before it comes up."""
    for _ in range(2):
        canvas.load_workflow(canvas.to_workflow(), "between")
    canvas.fit()
    cell(canvas, "IN01").click()
    canvas.page.keyboard.down("Shift")
    canvas.page.evaluate(TALLER, NODE)
    canvas.page.keyboard.up("Shift")
    canvas.page.keyboard.press("Control+z")
    wait_for_text(canvas, LINES)


def test_a_copy_and_a_bypassed_node_keep_their_own_value(canvas):
    canvas.page.evaluate(SELECT, NODE)
    canvas.page.evaluate("() => { app.canvas.copyToClipboard(); app.canvas.pasteFromClipboard(); }")
    values = (
        "type => app.graph.nodes.filter(n => n.type === type).map(n => n.widgets.find(w => w.name === 'layers').value)"
    )
    assert eventually(canvas, lambda: canvas.page.evaluate(values, NODE) == [LINES, LINES])
    canvas.page.evaluate(
        "type => { const n = app.graph.nodes.filter(n => n.type === type).at(-1); n.pos = [n.pos[0] + 600, 0]; }", NODE
    )
    canvas.fit()
    cell(canvas, "IN01").click()
    assert eventually(canvas, lambda: canvas.page.evaluate(values, NODE) != [LINES, LINES])
    assert LINES in canvas.page.evaluate(values, NODE)
    canvas.page.evaluate("type => app.graph.nodes.filter(n => n.type === type).forEach(n => { n.mode = 4; })", NODE)
    saved = canvas.to_workflow()
    canvas.load_workflow(saved, "bypassed")
    assert eventually(canvas, lambda: LINES in canvas.page.evaluate(values, NODE))


def test_inside_a_subgraph_and_on_its_face(canvas, screenshots, renderer_canvas):
    # A graph of its own: the frontend keeps the values of widgets by graph, node and name, also those of graphs that
    # are gone.
    canvas.load_workflow({**canvas.to_workflow(), "id": str(uuid.uuid4())}, "subgraph")
    host = canvas.page.evaluate(SUBGRAPH, NODE)
    assert eventually(canvas, lambda: queued(canvas) == LINES)
    canvas.page.evaluate(PROMOTE, host)
    canvas.page.wait_for_timeout(800)
    canvas.fit()
    canvas.page.screenshot(path=screenshots / f"layer editor on a subgraph {renderer_canvas[1]}.png")
    assert queued(canvas) == LINES
    assert eventually(canvas, lambda: prompts(canvas) == ["a green lizard", "a red: cube"])
    cell(canvas, "IN01").click()
    painted = queued(canvas)
    assert painted.splitlines()[1] == "IN01, IN07-OUT05: a green lizard"
    saved = canvas.to_workflow()
    canvas.load_workflow(saved, "again")
    canvas.fit()
    assert queued(canvas) == painted
    assert "a green lizard" in cell(canvas, "IN01").get_attribute("title")
    canvas.page.screenshot(path=screenshots / f"layer editor on a subgraph, loaded {renderer_canvas[1]}.png")
    canvas.page.evaluate("id => app.canvas.openSubgraph(app.graph.nodes.find(n => String(n.id) === id).subgraph)", host)
    expect(editor(canvas).locator(".gl-locked")).to_contain_text("the face of the subgraph", timeout=20_000)
    canvas.page.evaluate("() => app.canvas.setGraph(app.rootGraph)")


def test_a_connected_text_is_shown_and_cannot_be_changed(canvas, screenshots, renderer_canvas):
    text = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "down: from afar"}}
    graph = {**prompt(), "3": text}
    graph["2"]["inputs"]["layers"] = ["3", 0]
    canvas.load_prompt(graph, "linked")
    canvas.fit()
    canvas.page.screenshot(path=screenshots / f"layer editor linked {renderer_canvas[1]}.png")
    assert "These lines come from" in editor(canvas).locator(".gl-locked").text_content()
    assert prompts(canvas) == ["from afar"]
    before = prompts(canvas)
    box = cell(canvas, "OUT11").bounding_box()
    canvas.page.mouse.click(box["x"] + 5, box["y"] + 5)
    assert prompts(canvas) == before
    assert canvas.to_prompt()["2"]["inputs"]["layers"] == ["3", 0]
    canvas.page.evaluate(DISCONNECT, NODE)
    expect(editor(canvas).locator(".gl-locked")).to_be_hidden(timeout=20_000)
    cell(canvas, "OUT11").click()
    assert "OUT11" in queued(canvas)


def test_the_panel_shows_and_edits_it(canvas, screenshots, renderer_canvas):
    canvas.page.evaluate(SELECT, NODE)
    canvas.page.evaluate("() => app.extensionManager.setting.set('Comfy.RightSidePanel.IsOpen', true)")
    try:
        panel = canvas.page.locator(".widget-item .guidance-lab-layer-editor")
        panel.locator(".gl-cell", has_text="IN01").click()
        assert queued(canvas).splitlines()[1] == "IN01, IN07-OUT05: a green lizard"
        panel.locator(".gl-chips input[type=text]").first.fill("a car")
        assert prompts(canvas)[0] == "a car"
        canvas.page.screenshot(path=screenshots / f"layer editor panel {renderer_canvas[1]}.png")
    finally:
        canvas.page.evaluate("() => app.extensionManager.setting.set('Comfy.RightSidePanel.IsOpen', false)")
    width = "type => app.graph.nodes.find(n => n.type === type).size[0] * app.canvas.ds.scale"
    own = lambda: (editor(canvas).bounding_box() or {}).get("width", 0)  # noqa: E731
    # The panel's width does not stay.
    assert eventually(canvas, lambda: own() > 0.85 * canvas.page.evaluate(width, NODE))


def test_wheel_and_middle_button_move_the_canvas(canvas):
    view = "() => [app.canvas.ds.scale, ...app.canvas.ds.offset]"
    box = cell(canvas, "MID").bounding_box()
    mouse = canvas.page.mouse
    mouse.move(box["x"] + 5, box["y"] + 5)
    before = canvas.page.evaluate(view)
    mouse.wheel(0, 120)
    assert eventually(canvas, lambda: canvas.page.evaluate(view)[0] < before[0])
    canvas.page.wait_for_timeout(300)
    zoomed = canvas.page.evaluate(view)
    mouse.down(button="middle")
    mouse.move(box["x"] + 85, box["y"] + 45, steps=8)
    mouse.up(button="middle")
    moved = lambda: canvas.page.evaluate(view)[1] - zoomed[1]  # noqa: E731
    assert eventually(canvas, lambda: moved() == pytest.approx(80 / zoomed[0], rel=0.05)), moved()
    assert canvas.page.evaluate(view)[0] == zoomed[0]
    assert queued(canvas) == LINES


def test_a_run_tells_the_layers_of_the_model(canvas):
    """The demo model is a small UNet of its own; its layers, not SD1.5's, are drawn after a run, and after a reload."""
    graph = prompt("all: a red star")
    graph["3"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    graph["4"] = {
        "class_type": "KSampler",
        "inputs": {
            "model": ["2", 0], "positive": ["2", 1], "negative": ["2", 1], "latent_image": ["3", 0], "seed": 0,
            "steps": 1, "cfg": 1.0,
            "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
        },
    }  # fmt: skip
    graph["5"] = {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}}
    graph["6"] = {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}}
    canvas.load_prompt(graph, "run")
    canvas.fit()
    result = canvas.queue()
    assert result["status"]["status_str"] == "success", result["status"]["messages"][-1]
    told = "type => app.graph.nodes.find(n => n.type === type).properties.guidance_lab_layers"
    recipe = canvas.page.wait_for_function(told, arg=NODE).json_value()
    count = _layers(recipe)
    expect(editor(canvas).locator(".gl-cell")).to_have_count(count, timeout=20_000)
    canvas.load_workflow(canvas.to_workflow(), "again")
    expect(editor(canvas).locator(".gl-cell")).to_have_count(count, timeout=20_000)


def _layers(recipe: str) -> int:
    from guidance_lab.xti.layers import table_for

    return len(table_for(json.loads(recipe)))


def test_conditionings_are_called_by_the_letter_of_their_socket(canvas, screenshots, renderer_canvas):
    def encode(text: str) -> dict:
        return {
            "class_type": "CLIPTextEncode",
            "inputs": {"clip": ["1", 1], "text": text},
            "_meta": {"title": text},
        }

    graph = {
        "1": {"class_type": "GuidanceLab_ShapesDemoModels", "inputs": {}},
        "2": encode("base"), "3": encode("a lizard"), "4": encode("a cube"),
        "5": {
            "class_type": CONDITIONING,
            "inputs": {
                "model": ["1", 0], "base": ["2", 0], "layers": "middle: A", "conditionings.A": ["3", 0],
                "conditionings.B": ["4", 0],
            },
        },
    }  # fmt: skip
    canvas.load_prompt(graph, "letters")
    canvas.fit()
    canvas.page.screenshot(path=screenshots / f"layer editor letters {renderer_canvas[1]}.png")
    choices = editor(canvas).locator(".gl-chips select").first
    assert choices.locator("option").all_text_contents() == ["A: a lizard", "B: a cube"]
    choices.select_option("B")
    assert queued(canvas, CONDITIONING) == "middle: B"
    chip(canvas, 1).click()
    cell(canvas, "IN01").click()
    assert queued(canvas, CONDITIONING) == "IN01, IN07-OUT05: B"


def test_over_plain_http_on_another_machines_name(browser, server, lan_url):
    """A page from http://NAME of the local network is no secure context; the editor works there too."""
    canvas = Canvas(browser, server.url)
    try:
        canvas.page.goto(lan_url)
        canvas.page.wait_for_function(
            "type => Boolean(window.app?.graph && window.LiteGraph?.registered_node_types[type])", arg=NODE
        )
        canvas.page.wait_for_timeout(1500)
        assert canvas.page.evaluate("() => [isSecureContext, typeof crypto.randomUUID]") == [False, "undefined"]
        open_editor(canvas)
        cell(canvas, "IN01").click()
        assert queued(canvas).splitlines()[1] == "IN01, IN07-OUT05: a green lizard"
        assert canvas.errors == []
    finally:
        canvas.close()
