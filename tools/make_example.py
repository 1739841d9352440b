"""`python dev.py example [NAME ...]`: write example_workflows/NAME.json of the examples in tools/examples, all or the
named ones.

The real canvas measures the nodes in both renderers and writes the workflow, so it is what ComfyUI itself would save;
between the two, tools/examples places nodes, groups,
the note and the links. `--cards` draws the pictures of the template
browser too, with the models that ship; `--list` names the examples.
"""

import argparse
import json
import math
import sys
from pathlib import Path

from tools.canvas import Canvas, chromium
from tools.demo import EXAMPLES
from tools.examples.all import EXAMPLES_BY_NAME
from tools.examples.cards import draw_card
from tools.examples.layout import HEAD, NOTE, TITLE, Box, Layout, place
from tools.examples.links import Link, route
from tools.examples.plan import GROWS, Example
from tools.examples.recipes import RECIPES
from tools.examples.recipes import build as build_recipe
from tools.host import ROOT, DevError, Host, read_version
from tools.server import Server, running_server

# Sets the widths that were asked for and returns what each node needs below its title, and where its sockets are.
MEASURE = """async sizes => {
  const pause = () => new Promise(done => setTimeout(done, 400));
  for (const node of app.graph.nodes) {
    const [width, height] = sizes[node.id];
    node.setSize([width, 10]);
    node.setSize([Math.max(width, node.computeSize()[0]), Math.max(height, node.computeSize()[1])]);
  }
  app.canvas.ds.scale = 0.6; app.canvas.ds.offset = [100, 100]; app.canvas.setDirty(true, true);
  await pause();
  const read = node => {
    const element = document.querySelector(`[data-node-id="${node.id}"]`);
    const size = element ? [element.offsetWidth, element.offsetHeight - 30] : [...node.size];
    const at = ([x, y]) => [x - node.pos[0], y - node.pos[1]];
    return [String(node.id), {
      size: [Math.max(size[0], node.size[0]), Math.max(size[1], node.size[1])],
      inputs: node.inputs.map((_, i) => at(node.getInputPos(i))),
      outputs: node.outputs.map((_, i) => at(node.getOutputPos(i))),
    }];
  };
  const readAll = () => Object.fromEntries(app.graph.nodes.map(read));
  // Until nothing grows any more: a busy machine takes longer to draw.
  for (let before = null, tries = 0; tries < 25; tries++) {
    const now = JSON.stringify(readAll());
    if (now === before) break;
    before = now;
    await pause();
  }
  return readAll();
}"""
FIX_SEEDS = """() => app.graph.nodes.flatMap(node => node.widgets ?? [])
  .filter(widget => widget.name === "control_after_generate").forEach(widget => { widget.value = "fixed"; })"""
# What is free for the graph in a window of 1920×1080 pixels, beside and below the bars.
WINDOW = (70, 100, 1840, 950)
TALLEST = 1340  # what is seen whole at a zoom of 0.7 in it


def measure(canvas: Canvas, example: Example) -> dict[str, dict]:
    canvas.load_prompt(example.prompt, example.name)
    canvas.page.evaluate(FIX_SEEDS)
    return canvas.page.evaluate(MEASURE, {name: place.size for name, place in example.places.items()})


def build(example: Example, classic: Canvas, nodes2: Canvas) -> dict:
    """The workflow of an example in UI format."""
    vue, plain = measure(nodes2, example), measure(classic, example)
    return lay_out(example, classic.to_workflow(), plain, vue)[0]


def lay_out(example: Example, workflow: dict, plain: dict, vue: dict) -> tuple[dict, Layout, list[Link]]:
    """The canvas's own workflow with everything in its place; `plain` and `vue` are what both renderers measured."""
    sizes = {name: tuple(max(plain[name]["size"][i], vue[name]["size"][i]) for i in (0, 1)) for name in plain}
    layout = place(example, sizes)
    too_tall = layout.bounds.height - TALLEST
    if too_tall > 0:  # less room below nodes that grow; none, where that is not enough
        layout = place(example, sizes, {kind: max(0, room - math.ceil(too_tall)) for kind, room in GROWS.items()})
    if layout.bounds.height > TALLEST:
        layout = place(example, sizes, {})
    for node in workflow["nodes"]:
        box = layout.nodes[str(node["id"])]
        node["pos"], node["size"] = [box.x, box.y + TITLE], [box.width, box.height - TITLE]
        _name_files(node, example)
    links = _links(workflow, plain, vue, layout)
    titles = [Box(box.x, box.y, 14 * len(example.groups[key][0]), HEAD - TITLE) for key, box in layout.groups.items()]
    route(links, layout.nodes, layout.bounds, titles)
    workflow["groups"] = _groups(example, layout)
    workflow["nodes"].append(_note(example, layout, workflow))
    workflow["extra"] = _view(layout)
    if example.files:
        workflow["extra"]["guidance_lab"] = {"needs": [file.path for file in example.files]}
    _add_reroutes(workflow, links)
    return workflow, layout, links


def _links(workflow: dict, plain: dict, vue: dict, layout: Layout) -> list[Link]:
    found = []
    for link_id, source, output, target, entry, _ in workflow["links"]:
        ends = []
        for measured in (plain, vue):
            for node, side, slot in ((source, "outputs", output), (target, "inputs", entry)):
                box, (x, y) = layout.nodes[str(node)], measured[str(node)][side][slot]
                ends.append((box.x + (box.width if side == "outputs" else x), box.y + TITLE + y))
        start, end, *also = ends
        found.append(Link(link_id, str(source), str(target), start, end, (str(source), output), tuple(also)))
    return found


def _add_reroutes(workflow: dict, links: list[Link]) -> None:
    """As the canvas saves them: a tree of points for each output, and for each link the last one it passes."""
    reroutes: dict[tuple, dict] = {}
    extensions = []
    for link in links:
        parent = None
        for point in link.points:
            key = (link.output, parent, point)
            if key not in reroutes:
                reroutes[key] = {"id": len(reroutes) + 1, "pos": list(point), "linkIds": []}
                if parent is not None:
                    reroutes[key]["parentId"] = parent
            reroutes[key]["linkIds"].append(link.id)
            parent = reroutes[key]["id"]
        if parent is not None:
            extensions.append({"id": link.id, "parentId": parent})
    if extensions:
        workflow["extra"] |= {"linkExtensions": extensions, "reroutes": list(reroutes.values())}


def _groups(example: Example, layout: Layout) -> list[dict]:
    found = []
    for key, box in layout.groups.items():
        title, colour = example.groups[key]
        bounding = [box.x, box.y, box.width, box.height]
        found.append(
            {"id": len(found) + 1, "title": title, "bounding": bounding, "color": colour, "font_size": 24, "flags": {}}
        )
    return found


def _note(example: Example, layout: Layout, workflow: dict) -> dict:
    box = layout.nodes[NOTE]
    number = workflow["last_node_id"] = workflow["last_node_id"] + 1
    return {
        "id": number, "type": "MarkdownNote", "title": "What to try", "pos": [box.x, box.y + TITLE],
        "size": [box.width, box.height - TITLE], "flags": {}, "order": 0, "mode": 0, "inputs": [], "outputs": [],
        "properties": {}, "widgets_values": [example.note], "color": "#432", "bgcolor": "#653",
    }  # fmt: skip


def _view(layout: Layout) -> dict:
    """The view it opens in: whole at 1920×1080, and legible on smaller windows, from the upper left."""
    left, top, width, height = WINDOW
    bounds = layout.bounds
    scale = min(width / bounds.width, height / bounds.height, 1)
    return {"ds": {"scale": scale, "offset": [left / scale - bounds.x, top / scale - bounds.y]}}


def _name_files(node: dict, example: Example) -> None:
    """`properties.models` of a loader: what the canvas offers to fetch when it is missing."""
    values = [value for value in node.get("widgets_values") or [] if isinstance(value, str)]
    models = [
        {"name": file.name, "url": file.url, "directory": file.folder}
        for file in example.files
        if file.url and any(value and value in (file.name, file.path) for value in values)
    ]
    if models:
        node["properties"]["models"] = models


def write(example: Example, workflow: dict) -> Path:
    path = EXAMPLES / f"{example.name}.json"
    path.write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def write_recipes(canvas: Canvas) -> None:
    folder = ROOT / "subgraphs"
    for old in folder.glob("*.json"):
        old.unlink()
    for recipe in RECIPES:
        path = folder / f"{recipe.name}.json"
        path.write_text(json.dumps(build_recipe(recipe, canvas), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path, flush=True)


def put_files(server: Server, example: Example) -> None:
    """An empty file is enough for the canvas not to call it missing."""
    for file in example.files:
        path = server.base / "models" / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py example", description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("names", nargs="*", metavar="NAME", help="the examples to write; none: all")
    parser.add_argument("--cards", action="store_true", help="draw their cards too")
    parser.add_argument("--only-cards", action="store_true", help="draw their cards, leave the workflows")
    parser.add_argument("--recipes", action="store_true", help="write subgraphs/ instead")
    parser.add_argument("--list", action="store_true", help="name the examples")
    options = parser.parse_args()
    if options.list:
        print("\n".join(EXAMPLES_BY_NAME))
        return
    unknown = [name for name in options.names if name not in EXAMPLES_BY_NAME]
    if unknown:
        raise DevError(f"no example '{unknown[0]}'; `python dev.py example --list` names them.")
    chosen = [EXAMPLES_BY_NAME[name] for name in options.names or EXAMPLES_BY_NAME]
    host = Host(options.comfyui, Path(sys.executable), read_version(options.comfyui))
    with running_server(host) as server:
        if options.recipes:
            with chromium() as browser:
                write_recipes(Canvas(browser, server.url))
            return
        if not options.only_cards:
            for example in chosen:
                put_files(server, example)
            with chromium() as browser:
                nodes2 = Canvas(browser, server.url, nodes2=True, width=1920, height=1080)
                classic = Canvas(browser, server.url, width=1920, height=1080)
                for example in chosen:
                    print(write(example, build(example, classic, nodes2)), flush=True)
        if options.cards or options.only_cards:
            for example in chosen:
                print(draw_card(server, example), flush=True)


if __name__ == "__main__":
    try:
        main()
    except DevError as error:
        sys.exit(f"error: {error}")
