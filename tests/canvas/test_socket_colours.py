"""The pack's socket types have colours of their own, each another one, in both renderers and after another palette
was chosen.
"""

TYPES = ["OBJECTIVE", "CLIP_SCORER", "CAPTIONER", "XTI", "GALIP", "TRACE"]
GRAPH = {
    "1": {"class_type": "GuidanceLab_ShapesDemoModels", "inputs": {}},
    "2": {"class_type": "GuidanceLab_ObjectiveCLIPText", "inputs": {"scorer": ["1", 5], "text": "a star"}},
}
SHOWN = """types => types.map(type => [
  app.canvas.default_connection_color_byType[type],
  app.canvas.constructor.link_type_colors[type],
  getComputedStyle(document.documentElement).getPropertyValue(`--color-datatype-${type}`).trim(),
])"""
CORE = """() => Object.entries(app.canvas.default_connection_color_byType)
  .filter(([type]) => !type.startsWith("GUIDANCELAB_")).map(([, colour]) => colour)"""
CHOOSE = "palette => app.extensionManager.setting.set('Comfy.ColorPalette', palette)"


def test_each_type_has_its_colour(renderer_canvas, screenshots):
    canvas, renderer = renderer_canvas
    canvas.errors.clear()
    canvas.load_prompt(GRAPH, "colours")
    canvas.fit()
    canvas.page.screenshot(path=screenshots / f"socket colours {renderer}.png")
    names = [f"GUIDANCELAB_{name}" for name in TYPES]
    before = canvas.page.evaluate(SHOWN, names)
    try:
        canvas.page.evaluate(CHOOSE, "light")
        canvas.page.wait_for_timeout(500)
        after = canvas.page.evaluate(SHOWN, names)
    finally:
        canvas.page.evaluate(CHOOSE, "dark")
    assert before == after
    assert all(len(set(colours)) == 1 for colours in before)  # the same for dots, links and Nodes 2.0
    core = canvas.page.evaluate(CORE)
    ours = [colours[0] for colours in before]
    assert len(set(ours)) == len(TYPES)
    assert not set(ours) & set(core)
    assert canvas.errors == []
