"""Reads a Shapes picture back into a scene, with no learned model: background, silhouettes, hues, textures, places.

The judge of every Shapes measurement, so it shares nothing with anything that guides. It knows the stage (light and
shadow only scale the floor's colour), the silhouettes of the objects, and that every shade of an object has the
object's hue.
"""

from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np
from PIL import Image
from scipy import ndimage

from .render import GROUNDS, parts, pattern, render
from .world import (
    BACKGROUNDS,
    COLOURS,
    LARGE,
    OBJECTS,
    PERIOD,
    SIZE,
    SMALL,
    STEP,
    TEXTURES,
    Scene,
    Thing,
    rgb_of,
)

GRID = 32  # silhouettes are compared on a GRID×GRID box, longer side filled
CONTRAST = 34.0  # RGB distance from every shade of the background that makes a pixel foreground
SMALLEST = 150  # pixels; anything smaller is a speck, not a thing
LARGEST = 112  # pixels, longer side; things never fill the picture
RECOGNIZED = 0.62  # intersection over union with the best template, below which a silhouette is nothing
MOST = 6  # silhouettes that are looked at, the largest
TEXTURED = 0.16  # how much paler stripes or dots must be than what is between them


@dataclass(frozen=True)
class Reading:
    """What a picture shows: its things (left to right), how well each silhouette fits (IoU), and the background."""

    things: tuple[Thing, ...]
    fits: tuple[float, ...]
    background: str


def boxed(mask: np.ndarray) -> np.ndarray:
    """A silhouette scaled so that its longer side fills the grid: float32 [GRID, GRID] in 0…1."""
    scale = GRID / max(mask.shape)
    height, width = (max(1, round(n * scale)) for n in mask.shape)
    small = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
    box = np.zeros((GRID, GRID), np.float32)
    top, left = (GRID - height) // 2, (GRID - width) // 2
    box[top : top + height, left : left + width] = np.asarray(small, np.float32) / 255
    return box


def foreground(picture: np.ndarray) -> tuple[np.ndarray, str]:
    """Pixels that are no shade of the background (holes closed): bool [128, 128], and the name of the background.

    Things stay away from the left and right border, so each row's border pixels show its background.
    """
    x = picture.astype(np.float32)
    rows = np.median(np.concatenate([x[:, :4], x[:, -4:]], 1), 1)
    rows = ndimage.median_filter(rows, (5, 1), mode="nearest")
    name = min(BACKGROUNDS, key=lambda k: np.abs(np.median(rows[52:], 0) - np.array(GROUNDS[k][0]) * 0.96).sum())
    rows = rows[:, None]
    shade = ((x * rows).sum(-1) / np.maximum((rows * rows).sum(-1), 1)).clip(0.5, 1.1)
    mask = np.square(x - shade[..., None] * rows).sum(-1) > CONTRAST**2
    mask = ndimage.binary_closing(np.pad(mask, 3), np.ones((3, 3)))
    return ndimage.binary_fill_holes(mask)[3:-3, 3:-3], name


def silhouettes(picture: np.ndarray) -> tuple[list[tuple[tuple[slice, slice], np.ndarray]], str]:
    """The connected parts of a picture that can be things, as (box, mask inside the box), and the name of the
    background."""
    mask, background = foreground(picture)
    labels, _ = ndimage.label(mask)
    found = [(box, labels[box] == index) for index, box in enumerate(ndimage.find_objects(labels), start=1)]
    found = [(box, part) for box, part in found if part.sum() >= SMALLEST and max(part.shape) <= LARGEST]
    return sorted(found, key=lambda each: -each[1].sum())[:MOST], background


@cache
def templates() -> tuple[list[tuple[str, bool, float, float, float]], np.ndarray]:
    """Every object, both ways round, at four sizes, sharp and soft: labels (name, flip, longer side of the box and the
    centre's offset from the box's, as shares of the size), and boxes [N, GRID, GRID]."""
    labels, boxes = [], []
    for name in OBJECTS:
        for flip in (False, True):
            for size in (39.0, 46.0, 62.0, 88.0):
                thing = Thing(name, 0.0, size=size, flip=flip)
                picture = render(Scene((thing,), "gray")).astype(np.float32)
                for blur in (0.0, 1.2, 2.2):
                    (top, left), part = _only(ndimage.gaussian_filter(picture, (blur, blur, 0)))
                    h, w = part.shape
                    labels.append(
                        (name, flip, max(h, w) / size, (thing.x - left - w / 2) / size, (thing.y - top - h / 2) / size)
                    )
                    boxes.append(boxed(part))
    return labels, np.stack(boxes)


def _only(picture: np.ndarray) -> tuple[tuple[int, int], np.ndarray]:
    """Top and left, and mask, of the one thing of a picture."""
    box, part = silhouettes(picture)[0][0]
    return (box[0].start, box[1].start), part


def angle_of(x: np.ndarray) -> np.ndarray:
    """Hue angle (radians) of RGB [..., 3]: the direction in the plane of no brightness."""
    r, g, b = x[..., 0], x[..., 1], x[..., 2]
    return np.arctan2(np.sqrt(3) * (g - b), 2 * r - g - b)


@cache
def _circle() -> tuple[np.ndarray, np.ndarray]:
    """Unwrapped hue angles of the colour circle and their degrees, for interpolation."""
    degrees = np.arange(-90.0, 450.0, 0.5)
    return np.unwrap(angle_of(np.stack([rgb_of(d % 360) for d in degrees]))), degrees


def hue_in(x: np.ndarray) -> float:
    """Degrees on the colour circle of RGB rows [N, 3]: the chroma-weighted mean hue."""
    chroma = x.max(1) - x.min(1)
    angle, weight = angle_of(x), chroma**2
    mean = np.arctan2((weight * np.sin(angle)).sum(), (weight * np.cos(angle)).sum())
    angles, degrees = _circle()
    at = angles[180] + (mean - angles[180]) % (2 * np.pi)  # [180]: 0 degrees
    return float(np.interp(at, angles, degrees) % 360)


def nearest_colour(hue: float) -> str:
    """The named colour nearest to a hue."""
    return list(COLOURS)[round(hue / STEP) % len(COLOURS)]


def texture_in(picture: np.ndarray, thing: Thing, outlines: dict | None = None) -> tuple[str, float]:
    """The texture of a thing that was found: stripes or dots of the period that fits best where the object carries
    them, or plain; and how much paler they are (0…1)."""
    cover, left, top = parts(thing, outlines)
    side = len(cover)
    y0, x0, y1, x1 = max(0, -top), max(0, -left), min(side, SIZE - top), min(side, SIZE - left)
    carries = ndimage.uniform_filter(cover[..., 1], 3) > 0.9  # one pixel inside
    ys, xs = np.nonzero(carries[y0:y1, x0:x1])
    if len(ys) < 30:
        return "plain", 0.0
    thin = 1 + len(ys) // 500  # every so many pixels are enough
    ys, xs = ys[::thin] + y0 + top, xs[::thin] + x0 + left
    pixels = picture[ys, xs].astype(np.float32)
    full = rgb_of(thing.hue)
    full = 1 - full.min() / full.max()
    pale = 1 - (1 - pixels.min(1) / np.maximum(pixels.max(1), 1)) / full
    pale -= pale.mean()
    best, strength = "plain", 0.0
    highest = 0.0
    for texture in TEXTURES[1:]:
        for period in np.linspace(*PERIOD, 6):
            for shift in (-1.5, 0.0, 1.5):
                wave = pattern(texture, xs + 0.5 - thing.x, ys + 0.5 - thing.y - shift, period)
                wave = wave - wave.mean()
                power = (wave * wave).sum()
                if power < 1:
                    continue
                explained = (wave * pale).sum() / np.sqrt(power)
                if explained > highest:
                    highest, slope = explained, float((wave * pale).sum() / power)
                    if slope > TEXTURED:
                        best, strength = texture, slope
    return best, strength


def read(picture: np.ndarray) -> Reading:
    """Reads a picture: uint8 [128, 128, 3] → Reading. Never fails: an unreadable picture has no things."""
    if picture.shape != (SIZE, SIZE, 3) or picture.dtype != np.uint8:
        raise ValueError(f"A Shapes picture is uint8 [{SIZE}, {SIZE}, 3], not {picture.dtype} {list(picture.shape)}.")
    parts_found, background = silhouettes(picture)
    labels, boxes = templates()
    found = []
    for box, part in parts_found:
        silhouette = boxed(part)
        both = np.tensordot(boxes, silhouette, 2)  # the product of coverages, near enough to their minimum
        either = boxes.sum((1, 2)) + silhouette.sum() - both
        best = int((both / either).argmax())
        fit = float(np.minimum(boxes[best], silhouette).sum() / np.maximum(boxes[best], silhouette).sum())
        if fit < RECOGNIZED:
            continue
        name, flip, side, dx, dy = labels[best]
        size = max(part.shape) / side
        y, x = ((s.start + s.stop) / 2 for s in box)
        hue = hue_in(picture[box][part].astype(np.float32))
        thing = Thing(name, hue, "plain", x + dx * size, y + dy * size, size, flip)
        texture, strength = texture_in(picture, thing)
        found.append((Thing(name, hue, texture, thing.x, thing.y, size, flip, strength=strength), fit))
    found.sort(key=lambda pair: pair[0].x)
    return Reading(tuple(t for t, _ in found), tuple(f for _, f in found), background)


def related(a: Thing, b: Thing, relation: str) -> bool:
    """Whether a stands in the relation to b."""
    return a.x < b.x if relation == "left of" else a.y < b.y


def _same_colour(wanted: Thing, seen: Thing) -> bool:
    """A hue without a name asks for nothing."""
    return not wanted.colour or nearest_colour(seen.hue) == wanted.colour


def judge(scene: Scene, reading: Reading) -> dict[str, float]:
    """How well a reading fits the scene that was asked for, each in 0…1: the share of its things with the right
    `object`, `colour` (of a right object), `texture` (of a right object and colour), the `relation`, the `background`,
    the exact `count`, and `all` of these at once; beside them `size`, the share of the things called small or large
    that are (4 pixels of tolerance).

    Things are matched one to one in the assignment that is kindest to the picture, so a second red ball never counts
    for two.
    """
    n = len(scene.things)
    candidates = [*reading.things, *[None] * n]  # None: the thing is missing
    related_to = [None, scene.relation, "above" if scene.relation else None]  # of thing 0 to things 1 and 2

    def score(found: tuple[Thing | None, ...]) -> tuple[int, int]:
        points = 0
        for wanted, thing in zip(scene.things, found, strict=True):
            if thing is not None and thing.name == wanted.name:
                points += 4 + 2 * _same_colour(wanted, thing) + (thing.texture == wanted.texture)
        return points, relations(found)

    def relations(found: tuple[Thing | None, ...]) -> int:
        return (
            sum(bool(found[0] and found[i] and related(found[0], found[i], related_to[i])) for i in range(1, n))
            if scene.relation
            else 0
        )

    best = max(set(permutations(candidates, n)), key=score)
    pairs = [(w, t if t is not None and t.name == w.name else None) for w, t in zip(scene.things, best, strict=True)]
    coloured = [(w, t if t is not None and _same_colour(w, t) else None) for w, t in pairs]
    right = {
        "object": sum(t is not None for _, t in pairs) / n,
        "colour": sum(t is not None for _, t in coloured) / n,
        "texture": sum(t is not None and t.texture == w.texture for w, t in coloured) / n,
        "background": float(reading.background == scene.background),
        "count": float(len(reading.things) == n),
    }
    if scene.relation:
        right["relation"] = float(relations(tuple(t for _, t in pairs)) == n - 1)
    right["all"] = float(all(v == 1.0 for v in right.values()))
    sized = [(w, t) for w, t in pairs if w.size_word]
    if sized:
        right["size"] = sum(
            t is not None and (t.size <= SMALL + 4 if w.size_word == "small" else t.size >= LARGE - 4) for w, t in sized
        ) / len(sized)
    return right
