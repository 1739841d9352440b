"""Reads a Shapes picture back into a scene, with no learned model: background, silhouettes, hues, textures, places.

The judge of every Shapes measurement, so it shares nothing with anything that guides. Tests hold it to 99 % on fresh
renders, plain and passed through the VAE, before it judges a model.
"""

from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np
from PIL import Image
from scipy import ndimage

from .render import render
from .world import BACKGROUNDS, COLOURS, OBJECTS, SIZE, TEXTURES, Scene, Thing

GRID = 32  # silhouettes are compared on a GRID×GRID box, longer side filled
CONTRAST = 42.0  # RGB distance from the background that makes a pixel foreground
SMALLEST = 40  # pixels; anything smaller is a speck, not a thing
LARGEST = 54  # pixels, longer side; things never fill the picture
RECOGNIZED = 0.6  # intersection over union with the best template, below which a silhouette is nothing


@dataclass(frozen=True)
class Reading:
    """What a picture shows: its things (left to right), how well each silhouette fits (IoU), and the background."""

    things: tuple[Thing, ...]
    fits: tuple[float, ...]
    background: str


def boxed(mask: np.ndarray) -> np.ndarray:
    """A silhouette scaled so that its longer side fills the grid: float [GRID, GRID] in 0…1."""
    ys, xs = np.nonzero(mask)
    crop = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    scale = GRID / max(crop.shape)
    height, width = (max(1, round(n * scale)) for n in crop.shape)
    small = Image.fromarray(crop.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
    box = np.zeros((GRID, GRID), np.float32)
    top, left = (GRID - height) // 2, (GRID - width) // 2
    box[top : top + height, left : left + width] = np.asarray(small) / 255
    return box


@cache
def templates() -> tuple[list[tuple[str, bool]], np.ndarray]:
    """Every object, both ways round, at three sizes, sharp and as soft as a VAE leaves it: labels and boxes [N, GRID,
    GRID].
    """
    labels, boxes = [], []
    for name in OBJECTS:
        for flip in (False, True):
            for size in (21, 25, 38):
                picture = render(Scene((Thing(name, "yellow", flip=flip, size=size),), "white")).astype(np.float32)
                for blur in (0.0, 1.0, 1.6):
                    labels.append((name, flip))
                    boxes.append(boxed(foreground(ndimage.gaussian_filter(picture, (blur, blur, 0)))[0]))
    return labels, np.stack(boxes)


def foreground(picture: np.ndarray) -> tuple[np.ndarray, str]:
    """Pixels that are not background (holes and one-pixel gaps closed): bool [64, 64], and the name of the
    background.
    """
    x = picture.astype(np.float32)
    border = np.concatenate(
        [x[:2].reshape(-1, 3), x[-2:].reshape(-1, 3), x[2:-2, :2].reshape(-1, 3), x[2:-2, -2:].reshape(-1, 3)]
    )
    ground = np.median(border, 0)
    name = min(BACKGROUNDS, key=lambda k: np.square(ground - BACKGROUNDS[k]).sum())
    mask = np.square(x - ground).sum(-1) > CONTRAST**2
    return ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(mask, 2), np.ones((2, 2))))[2:-2, 2:-2], name


def silhouettes(picture: np.ndarray) -> tuple[list[tuple[tuple[slice, slice], np.ndarray]], str]:
    """The connected parts of a picture that can be things, as (box, mask inside the box), and the name of the
    background.
    """
    mask, background = foreground(picture)
    parts, _ = ndimage.label(mask, np.ones((3, 3)))
    found = [(box, parts[box] == index) for index, box in enumerate(ndimage.find_objects(parts), start=1)]
    return [(box, part) for box, part in found if part.sum() >= SMALLEST and max(part.shape) <= LARGEST], background


def hue(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hue angle (radians) and chroma (0…1) of RGB rows [N, 3]."""
    r, g, b = (x / 255).T
    angle = np.arctan2(np.sqrt(3) * (g - b), 2 * r - g - b)
    return angle, x.max(1) / 255 - x.min(1) / 255


def colour_of(x: np.ndarray) -> str:
    """The palette colour whose hue is nearest to most of the chroma of RGB rows [N, 3]."""
    angle, chroma = hue(x)
    names = list(COLOURS)
    palette, _ = hue(np.array([COLOURS[name] for name in names], np.float32))
    nearest = np.cos(angle[:, None] - palette).argmax(1)
    return names[int(np.bincount(nearest, chroma**2, minlength=len(names)).argmax())]


def _texture(picture: np.ndarray, box: tuple[slice, slice], thing: Thing, background: str) -> str:
    """The texture whose render of the same thing in the same place is nearest to the picture."""

    def distance(texture: str) -> float:
        drawn = render(
            Scene((Thing(thing.name, thing.colour, texture, thing.x, thing.y, thing.size, thing.flip),), background)
        )
        return float(np.abs(drawn[box].astype(np.float32) - picture[box]).mean())

    return min(TEXTURES, key=distance)


def read(picture: np.ndarray) -> Reading:
    """Reads a picture: uint8 [64, 64, 3] → Reading. Never fails: an unreadable picture has no things."""
    if picture.shape != (SIZE, SIZE, 3) or picture.dtype != np.uint8:
        raise ValueError(f"A Shapes picture is uint8 [{SIZE}, {SIZE}, 3], not {picture.dtype} {list(picture.shape)}.")
    parts, background = silhouettes(picture)
    labels, boxes = templates()
    found = []
    for box, part in parts:
        silhouette = boxed(part)
        overlap = np.minimum(boxes, silhouette).sum((1, 2)) / np.maximum(boxes, silhouette).sum((1, 2))
        best = int(overlap.argmax())
        if overlap[best] < RECOGNIZED:
            continue
        name, flip = labels[best]
        y, x = ((s.start + s.stop) / 2 for s in box)
        colour = colour_of(picture[box][part].astype(np.float32))
        size = max(part.shape)
        thing = Thing(name, colour, "plain", x, y, size, flip)
        thing = Thing(name, colour, _texture(picture, box, thing, background), x, y, size, flip)
        found.append((thing, float(overlap[best])))
    found.sort(key=lambda pair: pair[0].x)
    return Reading(tuple(t for t, _ in found), tuple(f for _, f in found), background)


def related(a: Thing, b: Thing, relation: str) -> bool:
    """Whether a stands in the relation to b."""
    return a.x < b.x if relation == "left of" else a.y < b.y


def judge(scene: Scene, reading: Reading) -> dict[str, float]:
    """How well a reading fits the scene that was asked for, each in 0…1: the share of its things with the right
    `object`, `colour` (of a right object), `texture` (of a right object and colour), the `relation`, the `background`,
    the exact `count`, and `all` at once.

    Things are matched one to one in the assignment that is kindest to the picture, so a second red ball never counts
    for two.
    """
    n = len(scene.things)
    candidates = [*reading.things, *[None] * n]  # None: the thing is missing
    related_to = [None, scene.relation, "above"]  # of thing 0 to things 1 and 2

    def score(found: tuple[Thing | None, ...]) -> tuple[int, int]:
        points = 0
        for wanted, thing in zip(scene.things, found, strict=True):
            if thing is not None and thing.name == wanted.name:
                points += 4 + 2 * (thing.colour == wanted.colour) + (thing.texture == wanted.texture)
        return points, relations(found)

    def relations(found: tuple[Thing | None, ...]) -> int:
        return sum(bool(found[0] and found[i] and related(found[0], found[i], related_to[i])) for i in range(1, n))

    best = max(set(permutations(candidates, n)), key=score)
    pairs = [(w, t if t is not None and t.name == w.name else None) for w, t in zip(scene.things, best, strict=True)]
    right = {
        "object": sum(t is not None for _, t in pairs) / n,
        "colour": sum(t is not None and t.colour == w.colour for w, t in pairs) / n,
        "texture": sum(t is not None and t.colour == w.colour and t.texture == w.texture for w, t in pairs) / n,
        "background": float(reading.background == scene.background),
        "count": float(len(reading.things) == n),
    }
    if n > 1:
        right["relation"] = float(relations(tuple(t for _, t in pairs)) == n - 1)
    right["all"] = float(all(v == 1.0 for v in right.values()))
    return right
