"""Draws a scene as a 128×128 picture: PIL shapes at four times the size, box-filtered down, then lit, textured and
set on a floor.

Nothing is learned. Every part of an object is a polygon in the object's unit box [-0.5, 0.5]²; light comes from the
upper left, each object has a dark rim of its own colour and a soft shadow at its foot. Every shade of an object keeps
its hue, which is how it is read.
"""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from .world import SIZE, Scene, Thing, rgb_of

SCALE = 4
RIM = 2.0  # pixels
DARK = 0.42  # brightness of a rim, a wheel, a door
CREAM = np.array((255, 247, 230), np.float32)  # stripes, dots and windows go towards it
# floor and wall of each background
GROUNDS = {
    "white": ((238, 238, 238), (248, 248, 248)),
    "gray": ((128, 128, 130), (150, 150, 152)),
    "black": ((40, 40, 44), (20, 20, 24)),
    "sand": ((222, 198, 154), (240, 230, 208)),
    "ice": ((176, 208, 230), (214, 232, 244)),
}
SMOOTH = ("ball", "car", "fish", "cup", "mushroom")  # these have a highlight
Polygon = tuple[tuple[float, float], ...]
# A part: polygon, brightness, whether it carries the texture, and how pale it is (0…1)
Part = tuple[Polygon, float, bool, float]


def _ellipse(
    cx: float, cy: float, rx: float, ry: float, start: float = 0.0, end: float = 360.0, turn: float = 0.0
) -> Polygon:
    a = np.radians(np.linspace(start, end, 48, endpoint=end - start < 360))
    x, y = rx * np.cos(a), ry * np.sin(a)
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    return tuple(zip((cx + c * x - s * y).tolist(), (cy + s * x + c * y).tolist(), strict=True))


def _star() -> list[Part]:
    """Ten facets, each lit by the side it looks to."""
    a = -np.pi / 2 + np.arange(11) * np.pi / 5
    r = np.where(np.arange(11) % 2 == 0, 0.54, 0.25)
    points = list(zip((r * np.cos(a)).tolist(), (r * np.sin(a) + 0.045).tolist(), strict=True))
    middle = (0.0, 0.045)
    # neighbouring facets lean to opposite sides of their spike
    return [((middle, points[i], points[i + 1]), 0.92 + 0.16 * (-1) ** i, True, 0.0) for i in range(10)]


@cache
def outline(name: str) -> tuple[Part, ...]:
    """The parts of an object, back to front."""
    if name == "ball":
        return ((_ellipse(0, 0, 0.5, 0.5), 1.0, True, 0.0),)
    if name == "cube":
        return (
            (((-0.5, -0.22), (0.22, -0.22), (0.22, 0.5), (-0.5, 0.5)), 1.0, True, 0.0),
            (((-0.5, -0.22), (-0.2, -0.5), (0.5, -0.5), (0.22, -0.22)), 1.2, True, 0.0),
            (((0.22, -0.22), (0.5, -0.5), (0.5, 0.2), (0.22, 0.5)), 0.7, True, 0.0),
        )
    if name == "star":
        return tuple(_star())
    if name == "house":
        return (
            (((0.16, -0.46), (0.28, -0.46), (0.28, -0.1), (0.16, -0.1)), 0.7, False, 0.0),
            (((-0.37, -0.1), (0.37, -0.1), (0.37, 0.5), (-0.37, 0.5)), 1.05, True, 0.0),
            (((-0.5, -0.06), (0.0, -0.5), (0.5, -0.06)), 0.72, True, 0.0),
            (((-0.26, 0.14), (-0.06, 0.14), (-0.06, 0.5), (-0.26, 0.5)), DARK, False, 0.0),
            (((0.08, 0.1), (0.26, 0.1), (0.26, 0.28), (0.08, 0.28)), 1.0, False, 0.85),
        )
    if name == "car":
        return (
            (((-0.32, -0.02), (-0.2, -0.34), (0.16, -0.34), (0.32, -0.02)), 0.95, True, 0.0),
            (((-0.24, -0.04), (-0.15, -0.27), (-0.03, -0.27), (-0.03, -0.04)), 1.0, False, 0.85),
            (((0.03, -0.04), (0.03, -0.27), (0.12, -0.27), (0.24, -0.04)), 1.0, False, 0.85),
            (((-0.5, 0.03), (-0.46, -0.06), (0.36, -0.06), (0.47, 0.02), (0.5, 0.24), (-0.5, 0.24)), 1.05, True, 0.0),
            (_ellipse(-0.27, 0.24, 0.13, 0.13), DARK, False, 0.0),
            (_ellipse(0.27, 0.24, 0.13, 0.13), DARK, False, 0.0),
            (_ellipse(-0.27, 0.24, 0.05, 0.05), 1.0, False, 0.6),
            (_ellipse(0.27, 0.24, 0.05, 0.05), 1.0, False, 0.6),
        )
    if name == "lizard":  # seen from above, head right, tail curling left
        legs = (
            ((0.1, -0.04), (0.2, -0.06), (0.26, -0.24), (0.36, -0.28), (0.34, -0.36), (0.18, -0.32)),
            ((0.1, 0.04), (0.2, 0.06), (0.26, 0.24), (0.36, 0.28), (0.34, 0.36), (0.18, 0.32)),
            ((-0.18, -0.04), (-0.06, -0.06), (-0.1, -0.24), (-0.02, -0.3), (-0.06, -0.37), (-0.21, -0.31)),
            ((-0.18, 0.04), (-0.06, 0.06), (-0.1, 0.24), (-0.02, 0.3), (-0.06, 0.37), (-0.21, 0.31)),
        )
        tail = (
            (-0.1, -0.09),
            (-0.3, -0.04),
            (-0.4, -0.1),
            (-0.44, -0.24),
            (-0.5, -0.22),
            (-0.5, -0.06),
            (-0.4, 0.08),
            (-0.1, 0.1),
        )
        return (
            *((leg, 0.85, False, 0.0) for leg in legs),
            (tail, 0.95, True, 0.0),
            (_ellipse(0.0, 0, 0.27, 0.17), 1.05, True, 0.0),
            (_ellipse(0.34, 0, 0.16, 0.12), 1.05, False, 0.0),
            (_ellipse(0.38, -0.07, 0.03, 0.03), 1.0, False, 0.9),
            (_ellipse(0.38, 0.07, 0.03, 0.03), 1.0, False, 0.9),
        )
    if name == "tree":
        return (
            (((-0.07, 0.3), (0.07, 0.3), (0.07, 0.5), (-0.07, 0.5)), DARK, False, 0.0),
            (((-0.42, 0.34), (0.0, -0.06), (0.42, 0.34)), 0.84, True, 0.0),
            (((-0.33, 0.1), (0.0, -0.28), (0.33, 0.1)), 0.96, True, 0.0),
            (((-0.23, -0.14), (0.0, -0.5), (0.23, -0.14)), 1.1, True, 0.0),
        )
    if name == "fish":
        return (
            (((-0.2, 0.0), (-0.5, -0.27), (-0.43, 0.0), (-0.5, 0.27)), 0.8, False, 0.0),
            (((-0.16, -0.16), (0.0, -0.36), (0.2, -0.3), (0.22, -0.14)), 0.8, False, 0.0),
            (((-0.06, 0.18), (0.0, 0.34), (0.12, 0.18)), 0.8, False, 0.0),
            (_ellipse(0.11, 0.0, 0.39, 0.24), 1.05, True, 0.0),
            (_ellipse(0.34, -0.06, 0.055, 0.055), 1.0, False, 0.95),
            (_ellipse(0.35, -0.06, 0.028, 0.028), 0.3, False, 0.0),
        )
    if name == "cup":
        return (
            (_ellipse(0.24, 0.06, 0.26, 0.24), 0.8, False, 0.0),
            (_ellipse(0.24, 0.06, 0.14, 0.12), -1.0, False, 0.0),
            (((-0.42, -0.34), (0.26, -0.34), (0.2, 0.42), (0.1, 0.48), (-0.26, 0.48), (-0.36, 0.42)), 1.0, True, 0.0),
            (_ellipse(-0.08, -0.34, 0.34, 0.1), 1.15, False, 0.25),
            (_ellipse(-0.08, -0.33, 0.27, 0.065), DARK, False, 0.0),
        )
    if name == "mushroom":
        return (
            (((-0.13, 0.0), (0.13, 0.0), (0.17, 0.44), (0.1, 0.5), (-0.1, 0.5), (-0.17, 0.44)), 1.0, False, 0.55),
            (_ellipse(0, 0.05, 0.5, 0.1, 0, 180), 0.6, False, 0.0),
            (_ellipse(0, 0.06, 0.5, 0.54, 180, 360), 1.05, True, 0.0),
        )
    raise ValueError(f"Shapes has no object {name!r}.")


@cache
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) + 0.5
    return y, x


def ground(background: str, horizon: float = 33.0) -> np.ndarray:
    """The empty stage: float32 [128, 128, 3]. Wall above the horizon (pixels from the top), floor below, both a
    little lighter at it."""
    floor, wall = (np.array(c, np.float32) for c in GROUNDS[background])
    y = np.arange(SIZE, dtype=np.float32)[:, None] + 0.5
    share = 1 / (1 + np.exp(-(y - horizon) / 1.6))
    far = np.clip((y - horizon) / (SIZE - horizon), 0, 1)
    rows = (1 - share) * wall * (1 - 0.05 * np.clip((horizon - y) / horizon, 0, 1)) + share * floor * (
        1.02 - 0.12 * far
    )
    return np.repeat(rows[:, None], SIZE, 1)


def horizon_of(scene: Scene) -> float:
    """Where wall and floor meet, pixels from the top: it follows the first thing a little, so that it needs no word
    of its own."""
    return 28.0 + 8.0 * float((scene.things[0].x * 7.31 + scene.things[0].size * 3.17) % 1.0) if scene.things else 33.0


def parts(thing: Thing, outlines: dict | None = None) -> tuple[np.ndarray, int, int]:
    """What covers what: float32 [h, w, 4] of brightness, texture, paleness, cover (0…1), and the patch's left and top
    pixel."""
    side = int(np.ceil(thing.size)) + 10
    left, top = int(round(thing.x - side / 2)), int(round(thing.y - side / 2))
    sign = -1 if thing.flip else 1
    scaled = []
    for polygon, tone, textured, pale in (outlines or {}).get(thing.name) or outline(thing.name):
        p = np.array(polygon)
        p = (p * (sign * thing.size, thing.size) + (thing.x - left, thing.y - top)) * SCALE
        scaled.append(([tuple(q) for q in p.tolist()], tone, textured, pale))
    rim = (round(DARK * 128), 0, 0, 255)
    picture = Image.new("CMYK", (side * SCALE, side * SCALE), (*rim[:3], 0))  # any four channels
    draw = ImageDraw.Draw(picture)
    for polygon, tone, _, _ in scaled:
        if tone >= 0:
            _stroke(draw, polygon, rim, RIM * SCALE)
    for polygon, tone, textured, pale in scaled:
        if tone < 0:  # a hole with a rim
            draw.polygon(polygon, fill=(*rim[:3], 0))
            _stroke(draw, polygon, rim, RIM * SCALE / 2)
        else:
            draw.polygon(polygon, fill=(round(tone * 128), 255 * textured, round(pale * 255), 255))
    small = np.asarray(picture.reduce(SCALE), np.float32)
    return small * np.array((1 / 128, 1 / 255, 1 / 255, 1 / 255), np.float32), left, top


def _stroke(draw: ImageDraw.ImageDraw, polygon: list, fill: tuple, radius: float) -> None:
    """A closed line with round corners (PIL's own are many times slower)."""
    draw.line([*polygon, polygon[0]], fill=fill, width=round(2 * radius))
    if len(polygon) < 20:
        for x, y in polygon:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def pattern(texture: str, x: np.ndarray, y: np.ndarray, period: float) -> np.ndarray:
    """How much of the pale shade is where, 0…1, for coordinates from the thing's centre: bands, or dots on a
    hexagonal lattice."""
    if texture == "plain":
        return np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32)
    if texture == "striped":
        return np.clip(0.5 + 0.25 * period * np.cos(2 * np.pi * y / period), 0, 1) + 0 * x
    row_height = period * 0.866
    row = np.round(y / row_height)
    dx = (x + 0.5 * period * (row % 2) + 0.5 * period) % period - 0.5 * period
    return np.clip(0.31 * period - np.hypot(dx, y - row * row_height) + 0.5, 0, 1)


def render(scene: Scene, outlines: dict | None = None) -> np.ndarray:
    """The picture of a scene: uint8 [128, 128, 3]. `outlines` adds objects that the world has no word for (name →
    parts)."""
    canvas = ground(scene.background, horizon_of(scene))
    for thing in scene.things:
        cover, left, top = parts(thing, outlines)
        side = len(cover)
        gy, gx = _grid(side)
        x, y = (gx + left - thing.x) / thing.size, (gy + top - thing.y) / thing.size
        alpha = cover[..., 3]
        foot = np.nonzero(alpha.max(1) > 0.5)[0][-1] + top + 1  # lowest covered row
        _shadow(canvas, thing.x, foot, thing.size)
        light = 1.0 - 0.22 * (x + y)
        shine = np.exp(-((x + 0.17) ** 2 + (y + 0.2) ** 2) / 0.012) * (0.5 if thing.name in SMOOTH else 0.0)
        if thing.name == "ball":
            light = 1.14 - 0.9 * ((x + 0.16) ** 2 + (y + 0.18) ** 2)
            shine *= 1.5
        tint = (
            pattern(thing.texture, gx + left - thing.x, gy + top - thing.y, thing.period)
            * (0.8 * thing.strength)
            * cover[..., 1]
        )
        pale = np.maximum(np.maximum(cover[..., 2], tint), shine * cover[..., 1] * (cover[..., 0] > 0.6))[..., None]
        bright = (cover[..., 0] * light)[..., None]
        colour = rgb_of(thing.hue).astype(np.float32)
        shade = np.minimum(colour * np.minimum(bright, 1) + (255 - colour) * np.clip(bright - 1, 0, 1) * 0.5, 255)
        lit = shade * (1 - pale) + CREAM * np.clip(0.5 + 0.5 * bright, 0.5, 1) * pale
        y0, x0, y1, x1 = max(0, -top), max(0, -left), min(side, SIZE - top), min(side, SIZE - left)
        here = canvas[top + y0 : top + y1, left + x0 : left + x1]
        a = alpha[y0:y1, x0:x1, None]
        here += a * (lit[y0:y1, x0:x1] - here)
    return (canvas + 0.5).clip(0, 255).astype(np.uint8)


def _shadow(canvas: np.ndarray, x: float, foot: float, size: float) -> None:
    """Darkens the floor around a foot: a soft ellipse that leans away from the light."""
    x, y, rx, ry = x + 0.07 * size, foot - 0.03 * size, 0.5 * size, 0.13 * size
    y0, y1 = max(0, int(y - 2 * ry)), min(SIZE, int(y + 2 * ry) + 1)
    x0, x1 = max(0, int(x - 2 * rx)), min(SIZE, int(x + 2 * rx) + 1)
    v = (np.arange(y0, y1, dtype=np.float32)[:, None] + 0.5 - y) / ry
    u = (np.arange(x0, x1, dtype=np.float32)[None] + 0.5 - x) / rx
    canvas[y0:y1, x0:x1] *= (1 - 0.42 * np.exp(-((u * u + v * v) ** 2)))[..., None]
