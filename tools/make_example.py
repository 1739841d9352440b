"""`python dev.py example PROMPT.json NAME`: turn an API prompt into example_workflows/NAME.json and its picture NAME.jpg.

The real canvas places the nodes and writes the workflow, so it is what ComfyUI itself would save; then the prompt is run and
its last picture becomes the card in the template browser. One that needs the user's files gets a picture of its graph instead.
"""

import argparse
import io
import json
import sys
from pathlib import Path

from PIL import Image

from tools.canvas import Canvas, chromium
from tools.client import fetch_image, run_prompt, to_api
from tools.demo import EXAMPLES
from tools.host import DevError, Host, read_version
from tools.server import running_server

# Room for what Nodes 2.0 draws wider and for the result; a fixed seed, so that everyone sees the picture of the card.
TIDY = """() => {
  for (const node of app.graph.nodes) {
    const shows = ["SaveImage", "PreviewImage"].includes(node.type);
    node.setSize([Math.max(node.size[0], shows ? 300 : 240), Math.max(node.size[1], shows ? 340 : 0)]);
    for (const widget of node.widgets ?? []) if (widget.name === "control_after_generate") widget.value = "fixed";
  }
  app.graph.arrange(60);
}"""
CARD = 512  # pixels, the longer side of the card


def card(data: bytes) -> Image.Image:
    """The picture of a card: 512 pixels on the longer side; small pictures grow by whole pixels."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    factor = CARD / max(picture.size)
    size = (round(picture.width * factor), round(picture.height * factor))
    return picture.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py example", description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("prompt", type=Path)
    parser.add_argument("name")
    parser.add_argument("--needs", nargs="*", default=[], metavar="FILE", help="files under models/ that the user must bring; not run then")
    options = parser.parse_args()
    prompt = json.loads(options.prompt.read_text(encoding="utf-8"))
    host = Host(options.comfyui, Path(sys.executable), read_version(options.comfyui))
    with running_server(host) as server:
        for name in options.needs:  # an empty file is enough for the canvas not to call it missing
            path = server.base / "models" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        with chromium() as browser:
            canvas = Canvas(browser, server.url, width=1900, height=900)
            canvas.load_prompt(prompt, options.name)
            canvas.page.evaluate(TIDY)
            workflow = canvas.to_workflow()
            canvas.fit()
            graph = canvas.page.screenshot(clip={"x": 60, "y": 85, "width": 1820, "height": 740})
        workflow["extra"] = {"guidance_lab": {"needs": options.needs}} if options.needs else {}
        if options.needs:
            picture = graph
        else:
            picture = fetch_image(server.url, run_prompt(server.url, to_api(workflow, server.get("/object_info")))[-1])
    card(picture).save(EXAMPLES / f"{options.name}.jpg", quality=90)
    path = EXAMPLES / f"{options.name}.json"
    path.write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    try:
        main()
    except DevError as error:
        sys.exit(f"error: {error}")
