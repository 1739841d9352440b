"""The picture of the toy: what each kind of guidance does to the samples, on top of the density of the data."""

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from guidance_lab.experiments.toy.distribution import Mixture, mixture

# The paper draws the contour of each class at this distance (in standard deviations of a Gaussian) from its peak.
_CONTOUR_DISTANCE = 2.12
_LEFT, _LOW, _WIDTH = -0.7, -0.69, 2.22
_PANEL, _TITLE, _GAP = 400, 34, 8
# Drawn larger and scaled down, so that points and edges are smooth.
_OVERSAMPLING = 2
_POINTS, _RADIUS = 6000, 1.6
_COLOURS = {"A": (250, 190, 120), "B": (205, 205, 205)}
_OUTLINES = {"A": (217, 95, 2), "B": (128, 128, 128)}


def _inside_contour(density: Mixture, pixels: int) -> torch.Tensor:
    """Which pixels of a square panel lie inside the contour of a class, [pixels, pixels], first row at the top."""
    along = torch.linspace(0, 1, pixels) * _WIDTH
    x, y = torch.meshgrid(_LEFT + along, (_LOW + along).flip(0), indexing="xy")
    log_density = density.log_density(torch.stack([x, y], -1).reshape(-1, 2)).reshape(pixels, pixels)
    return log_density > log_density.max() - _CONTOUR_DISTANCE**2


def _background(pixels: int) -> Image.Image:
    canvas = torch.full((pixels, pixels, 3), 255, dtype=torch.uint8)
    for name in "BA":
        inside = _inside_contour(mixture(name), pixels)
        eroded = -torch.nn.functional.max_pool2d(-inside[None, None].float(), 3, stride=1, padding=1)[0, 0]
        canvas[inside] = torch.tensor(_OUTLINES[name], dtype=torch.uint8)
        canvas[eroded > 0] = torch.tensor(_COLOURS[name], dtype=torch.uint8)
    return Image.fromarray(canvas.numpy())


def _panel(background: Image.Image, title: str, points: torch.Tensor) -> Image.Image:
    pixels = background.width
    strip = _TITLE * _OVERSAMPLING
    image = Image.new("RGB", (pixels, pixels + strip), "white")
    image.paste(background, (0, strip))
    draw = ImageDraw.Draw(image)
    place = (points[:_POINTS] - torch.tensor([_LEFT, _LOW])) / _WIDTH * pixels
    seen = ((place >= 0) & (place < pixels)).all(1)
    for x, y in place[seen].tolist():
        y = strip + pixels - y
        draw.ellipse((x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS), fill=(20, 20, 60))
    draw.rectangle((0, strip, pixels - 1, strip + pixels - 1), outline=(120, 120, 120), width=_OVERSAMPLING)
    font = ImageFont.load_default(17 * _OVERSAMPLING)
    draw.text((pixels / 2, strip / 2), title, fill="black", font=font, anchor="mm")
    if not seen.all():
        text = f"{int((~seen).sum())} of {len(place)} outside the picture"
        font = ImageFont.load_default(13 * _OVERSAMPLING)
        corner = (pixels - 16, strip + pixels - 12)
        draw.rectangle(draw.textbbox(corner, text, font=font, anchor="rd"), fill="white")
        draw.text(corner, text, fill="black", font=font, anchor="rd")
    return image.resize((pixels // _OVERSAMPLING, (pixels + strip) // _OVERSAMPLING), Image.Resampling.LANCZOS)


def draw(panels: list[tuple[str, torch.Tensor]], path: Path, columns: int = 3) -> None:
    """Write one panel per (title, samples [N,2]) to `path`, `columns` to a row; at most 6,000 points of each are drawn.

    Orange: where class A, the one that is sampled, has its mass. Grey: class B.
    """
    background = _background(_PANEL * _OVERSAMPLING)
    rows = -(-len(panels) // columns)
    step_x, step_y = _PANEL + _GAP, _PANEL + _TITLE + _GAP
    sheet = Image.new("RGB", (columns * step_x + _GAP, rows * step_y + _GAP), "white")
    for index, (title, points) in enumerate(panels):
        row, column = divmod(index, columns)
        sheet.paste(_panel(background, title, points), (_GAP + column * step_x, _GAP + row * step_y))
    sheet.save(path, optimize=True)
