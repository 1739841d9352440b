"""What the tests of the layer editor do on the canvas: find its parts, put layers under the pointer, read what would
be queued.
"""

NODE = "GuidanceLab_PerBlockPrompt"
CONDITIONING = "GuidanceLab_PerBlockConditioning"
LINES = "# object inside\nmiddle: a green lizard\n0-3, 10-15 @0-0.5 x0.8: a red: cube"
SELECT = "type => app.canvas.selectNode(app.graph.nodes.find(node => node.type === type))"


def eventually(canvas, holds, seconds: float = 20) -> bool:
    """Whether holds() becomes true; a busy machine draws some frames later."""
    for _ in range(int(seconds * 10)):
        if holds():
            return True
        canvas.page.wait_for_timeout(100)
    return False


def prompt(lines: str = LINES) -> dict:
    """An API prompt of the demo models and one Per-Block Prompt Conditioning."""
    node = {"class_type": NODE, "inputs": {"model": ["1", 0], "clip": ["1", 1], "text": "a star", "layers": lines}}
    return {"1": {"class_type": "GuidanceLab_ShapesDemoModels", "inputs": {}}, "2": node}


def open_editor(canvas, lines: str = LINES) -> None:
    """A fresh graph with one editor in view."""
    canvas.errors.clear()
    canvas.load_prompt(prompt(lines), "layers")
    canvas.fit()


def queued(canvas, node_type: str = NODE) -> str:
    """The text that the canvas would queue; with several such nodes that of the last."""
    return [node["inputs"]["layers"] for node in canvas.to_prompt().values() if node["class_type"] == node_type][-1]


def editor(canvas):
    """The editor on the node; the panel may show a second one."""
    return canvas.page.locator(".guidance-lab-layer-editor:visible").first


def cell(canvas, name: str):
    return editor(canvas).locator(".gl-cell", has_text=name).first


def chip(canvas, number: int):
    """The round button of the chip with this number."""
    return editor(canvas).locator(".gl-chip:not(.gl-basechip) .gl-tag").nth(number - 1)


def prompts(canvas) -> list[str]:
    """What stands in the text fields of the chips."""
    return [field.input_value() for field in editor(canvas).locator(".gl-chips input[type=text]").all()]


def drag_over(canvas, *names: str) -> None:
    """Presses the pointer on the first cell, moves it over the others, lets go on the last."""
    mouse = canvas.page.mouse
    for i, name in enumerate(names):
        box = cell(canvas, name).bounding_box()
        mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
        if i == 0:
            mouse.down()
    mouse.up()
