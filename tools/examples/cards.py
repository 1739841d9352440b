"""The pictures of the template browser: before and after, drawn by the example itself with the models that ship; a card
with words where an example needs the user's files.
"""

import io
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tools.client import fetch_image, run_prompt
from tools.demo import EXAMPLES
from tools.examples.plan import Example
from tools.server import Server

SIDE = 512  # pixels
HEAD = 40  # the line of labels
DARK, LIGHT, QUIET, BADGE = "#202124", "#f1f3f4", "#9aa0a6", "#e8743b"
SHOWN = 2  # pairs on a card: as many as are still legible


def draw_card(server: Server, example: Example) -> Path:
    """Writes example_workflows/NAME.jpg."""
    if example.needs:
        card = words(example)
    else:
        pictures = {key: run(server, example, source) for key, source in example.card.items()}
        card = (
            whole(pictures["whole"][0])
            if "whole" in pictures
            else pairs(pictures["before"], pictures["after"], example)
        )
    path = EXAMPLES / f"{example.name}.jpg"
    card.save(path, quality=90)
    return path


def run(server: Server, example: Example, source: list) -> list[Image.Image]:
    """The pictures of one output of the example, and of nothing that it does not need."""
    wanted: set[str] = set()
    waiting = [source[0]]
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            inputs = example.prompt[name]["inputs"].values()
            waiting += [value[0] for value in inputs if isinstance(value, list)]
    prompt = {name: example.prompt[name] for name in wanted}
    prompt["card"] = {"class_type": "SaveImage", "inputs": {"images": source, "filename_prefix": f"card{source[0]}"}}
    # Nodes on the way may show pictures of their own, a curve for example.
    images = [image for image in run_prompt(server.url, prompt) if image["filename"].startswith("card")]
    return [Image.open(io.BytesIO(fetch_image(server.url, image))).convert("RGB") for image in images]


def whole(picture: Image.Image) -> Image.Image:
    card = Image.new("RGB", (SIDE, SIDE), DARK)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    card.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return card


def pairs(before: list[Image.Image], after: list[Image.Image], example: Example) -> Image.Image:
    """Left without, right with, one row for each picture of the batch that still fits."""
    card = Image.new("RGB", (SIDE, SIDE), DARK)
    draw = ImageDraw.Draw(card)
    count = min(SHOWN, len(before), len(after))
    side = min((SIDE - HEAD - 12) // count - 4, SIDE // 2 - 12)
    top = HEAD + (SIDE - HEAD - count * (side + 4)) // 2
    for column, (label, pictures) in enumerate(zip(example.card_labels, (before, after), strict=True)):
        left = (SIDE // 2) * column + (SIDE // 2 - side) // 2
        draw.text((SIDE * (1 + 2 * column) // 4, top - 6), label, LIGHT, font(20), anchor="mb")
        for row in range(count):
            card.paste(pictures[row].resize((side, side), Image.Resampling.LANCZOS), (left, top + row * (side + 4)))
    return card


def words(example: Example) -> Image.Image:
    """The name, what it does (the heading of its note) and which files it needs."""
    card = Image.new("RGB", (SIDE, SIDE), DARK)
    draw = ImageDraw.Draw(card)
    name = "\n".join(textwrap.wrap(example.name, 17))
    draw.multiline_text((36, 48), name, LIGHT, font(46), spacing=10)
    heading = example.note.splitlines()[0].lstrip("# ")
    draw.multiline_text((36, 262), "\n".join(textwrap.wrap(heading, 32)), QUIET, font(27), spacing=8)
    box = draw.textbbox((58, 434), example.needs, font(30))
    draw.rounded_rectangle((box[0] - 22, box[1] - 14, box[2] + 22, box[3] + 14), 16, BADGE)
    draw.text((58, 434), example.needs, DARK, font(30))
    return card


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
