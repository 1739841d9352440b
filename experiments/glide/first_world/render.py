"""Draws a scene as a 64×64 picture: PIL shapes at four times the size, box-filtered down (no aliasing, nothing
learned). The same drawing filtered down less, or more, is a larger or a smaller picture of the scene.
"""

from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from .world import BACKGROUNDS, COLOURS, SIZE, Scene, Thing

SCALE = 4


def _ellipse(cx: float, cy: float, rx: float, ry: float, turn: float = 0.0) -> list[tuple[float, float]]:
    a = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x, y = rx * np.cos(a), ry * np.sin(a)
    c, s = np.cos(turn), np.sin(turn)
    return [(cx + c * u - s * v, cy + s * u + c * v) for u, v in zip(x, y, strict=True)]


def _star() -> list[tuple[float, float]]:
    a = -np.pi / 2 + np.arange(10) * np.pi / 5
    r = np.where(np.arange(10) % 2 == 0, 0.52, 0.22)
    return [(float(u), float(v)) for u, v in zip(r * np.cos(a), r * np.sin(a) + 0.04, strict=True)]


def outline(name: str) -> list[tuple[list[tuple[float, float]], float]]:
    """The polygons of an object in its unit box [-0.5, 0.5]², each with its brightness (1 = the colour itself, 0 =
    almost black).
    """
    if name == "ball":
        return [(_ellipse(0, 0, 0.5, 0.5), 1.0)]
    if name == "cube":
        front = [(-0.5, -0.2), (0.2, -0.2), (0.2, 0.5), (-0.5, 0.5)]
        top = [(-0.5, -0.2), (-0.2, -0.5), (0.5, -0.5), (0.2, -0.2)]
        side = [(0.2, -0.2), (0.5, -0.5), (0.5, 0.2), (0.2, 0.5)]
        return [(front, 1.0), (top, 0.8), (side, 0.6)]
    if name == "star":
        return [(_star(), 1.0)]
    if name == "house":
        wall = [(-0.36, -0.08), (0.36, -0.08), (0.36, 0.5), (-0.36, 0.5)]
        roof = [(-0.5, -0.08), (0.0, -0.5), (0.5, -0.08)]
        door = [(-0.1, 0.16), (0.1, 0.16), (0.1, 0.5), (-0.1, 0.5)]
        return [(wall, 1.0), (roof, 0.65), (door, 0.0)]
    if name == "car":
        body = [
            (-0.5, -0.02),
            (-0.3, -0.02),
            (-0.2, -0.26),
            (0.16, -0.26),
            (0.28, -0.02),
            (0.5, 0.02),
            (0.5, 0.2),
            (-0.5, 0.2),
        ]
        return [(body, 1.0), (_ellipse(-0.27, 0.2, 0.13, 0.13), 0.0), (_ellipse(0.27, 0.2, 0.13, 0.13), 0.0)]
    if name == "lizard":  # seen from above, head right, tail curling left
        legs = [
            [(0.14, -0.02), (0.22, -0.04), (0.3, -0.34), (0.2, -0.34)],
            [(0.14, 0.02), (0.22, 0.04), (0.3, 0.34), (0.2, 0.34)],
            [(-0.14, -0.02), (-0.06, -0.04), (-0.1, -0.34), (-0.2, -0.34)],
            [(-0.14, 0.02), (-0.06, 0.04), (-0.1, 0.34), (-0.2, 0.34)],
        ]
        tail = [(-0.1, -0.08), (-0.34, -0.02), (-0.5, -0.22), (-0.46, 0.02), (-0.34, 0.1), (-0.1, 0.09)]
        return [(p, 1.0) for p in [*legs, tail, _ellipse(0.04, 0, 0.24, 0.12), _ellipse(0.38, 0, 0.12, 0.1)]]
    raise ValueError(f"Shapes has no object {name!r}.")


def _place(points: list[tuple[float, float]], thing: Thing) -> list[tuple[float, float]]:
    sign = -1 if thing.flip else 1
    return [((thing.x + sign * u * thing.size) * SCALE, (thing.y + v * thing.size) * SCALE) for u, v in points]


@cache
def _pattern(texture: str) -> Image.Image:
    """Where a texture's second shade goes (stripes of 4 in 8 pixels; dots of radius 2.3 every 7 pixels), as a full-size
    mask.
    """
    y, x = np.mgrid[0 : SIZE * SCALE, 0 : SIZE * SCALE] / SCALE
    if texture == "striped":
        inside = (y % 8) < 4
    else:
        row = np.floor(y / 7)
        inside = ((x + 3.5 * (row % 2)) % 7 - 3.5) ** 2 + (y % 7 - 3.5) ** 2 < 2.3**2
    return Image.fromarray(inside)


def _shade(colour: tuple[int, int, int], brightness: float) -> tuple[int, int, int]:
    return tuple(round(c * brightness) for c in colour) if brightness > 0 else (40, 40, 40)


def render(scene: Scene, outlines: dict | None = None, colours: dict | None = None, size: int = SIZE) -> np.ndarray:
    """The picture of a scene: uint8 [size, size, 3], size a divisor of 256. `outlines` and `colours` add things that
    the world has no word for.
    """
    background = BACKGROUNDS[scene.background]
    picture = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), background)
    # the second shade of a texture goes away from the background, so that a silhouette never dissolves into it
    second = 24 if sum(background) > 3 * 127 else 246
    for thing in scene.things:
        colour = {**COLOURS, **(colours or {})}[thing.colour]
        for polygon, brightness in (outlines or {}).get(thing.name) or outline(thing.name):
            mask = Image.new("1", picture.size)
            ImageDraw.Draw(mask).polygon(_place(polygon, thing), fill=1)
            picture.paste(_shade(colour, brightness), mask=mask)
            if thing.texture != "plain" and brightness > 0:
                tint = tuple(round(0.15 * c + 0.85 * second) for c in colour)
                picture.paste(tint, mask=ImageChops.logical_and(mask, _pattern(thing.texture)))
    return np.asarray(picture.reduce(SCALE * SIZE // size))
