"""Concepts to learn in Shapes: hues between two names and a silhouette that no word of its captions says, and a reader
that recognizes them.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from guidance_lab.shapes.read import RECOGNIZED, boxed, hue_in, nearest_colour, silhouettes, templates, texture_in
from guidance_lab.shapes.render import outline, render
from guidance_lab.shapes.world import SIZE, SIZES, Scene, Thing

HUE_WITHIN = 14.0  # degrees; the hues of the names are 22.5 and more away from a hue half-way between two of them
_RIM = [(0.5 * np.cos(a), 0.5 * np.sin(a)) for a in np.linspace(0.6, 2 * np.pi - 0.6, 30)]
_BITE = [(0.22 + 0.34 * np.cos(a), 0.34 * np.sin(a)) for a in np.linspace(2 * np.pi - 0.97, 0.97, 20)]
CRESCENT = ((tuple((float(u), float(v)) for u, v in _RIM + _BITE), 1.0, True, 0.0),)


@dataclass(frozen=True)
class Concept:
    """A thing to learn. parts: what it is drawn from (shapes.render.outline). hue: degrees on the colour circle. word:
    what training starts from.
    """

    name: str
    parts: tuple
    hue: float
    texture: str
    word: str

    def picture(
        self,
        x: float = SIZE / 2,
        y: float = SIZE / 2 + 10,
        size: float = SIZES[""],
        background: str = "white",
        flip: bool = False,
        blur: float = 0.0,
    ) -> np.ndarray:
        """Its rendering: uint8 [128, 128, 3]."""
        drawn = render(Scene((self._thing(x, y, size, flip),), background), {self.name: self.parts})
        return ndimage.gaussian_filter(drawn, (blur, blur, 0)) if blur else drawn

    def pictures(self, count: int, seed: int, background: str = "white") -> np.ndarray:
        """Renderings at random places and sizes: uint8 [count, 128, 128, 3]."""
        rng, drawn = np.random.default_rng(seed), []
        for _ in range(count):
            size = rng.uniform(46, 70)
            x = rng.uniform(size / 2 + 7, SIZE - size / 2 - 7)
            y = rng.uniform(max(size / 2 + 6, 54 - size / 2), SIZE - size / 2 - 8)
            drawn.append(self.picture(x, y, size, background, bool(rng.integers(2))))
        return np.stack(drawn)

    @cached_property
    def templates(self) -> tuple[list[tuple[bool, float, float, float]], np.ndarray]:
        """Its silhouettes, both ways round, at three sizes, sharp and soft: labels (flip, longer side of the box and
        the centre's offset from the box's, as shares of the size), and boxes [N, 32, 32].
        """
        labels, boxes = [], []
        for flip in (False, True):
            for size in (42.0, 58.0, 80.0):
                for blur in (0.0, 1.2, 2.2):
                    box, part = silhouettes(self.picture(64.0, 74.0, size, "gray", flip, blur))[0][0]
                    x, y, side = _place(box)
                    labels.append((flip, side / size, (64.0 - x) / size, (74.0 - y) / size))
                    boxes.append(boxed(part))
        return labels, np.stack(boxes)

    @cached_property
    def rivals(self) -> np.ndarray:
        """The silhouettes of all named objects but the one it is, if it is one: float [M, 32, 32]."""
        labels, boxes = templates()
        return np.stack([box for label, box in zip(labels, boxes, strict=True) if outline(label[0]) != self.parts])

    def found_in(self, picture: np.ndarray) -> dict[str, float]:
        """What of it is in a picture, each 0 or 1: `shape` (silhouette), `hue` and `texture` of the part that fits
        best, and `all`.
        """
        best, label, box, part = self._best_part(picture)
        if part is None:
            return dict.fromkeys(("shape", "hue", "texture", "all"), 0.0)
        hue = hue_in(picture[box][part].astype(np.float32))
        flip, share, dx, dy = label
        x, y, side = _place(box)
        size = side / share
        thing = Thing(self.name, hue, "plain", x + dx * size, y + dy * size, size, flip)
        result = {
            "shape": float(best >= max(RECOGNIZED, _overlap(self.rivals, boxed(part)).max())),
            "hue": float(abs((hue - self.hue + 180) % 360 - 180) <= HUE_WITHIN),
            "texture": float(texture_in(picture, thing, {self.name: self.parts})[0] == self.texture),
        }
        return result | {"all": float(min(result.values()))}

    def colour_in(self, picture: np.ndarray) -> str | None:
        """The named colour nearest to the part of a picture that fits its silhouette best; None in an empty picture."""
        _, _, box, part = self._best_part(picture)
        return None if part is None else nearest_colour(hue_in(picture[box][part].astype(np.float32)))

    def _thing(self, x: float, y: float, size: float, flip: bool) -> Thing:
        return Thing(self.name, self.hue, self.texture, x, y, size, flip)

    def _best_part(self, picture: np.ndarray) -> tuple:
        """(intersection over union, label of the template, box, mask) of the part that fits its silhouette best; (0,
        None, None, None) in an empty picture.
        """
        labels, boxes = self.templates
        found = []
        for box, part in silhouettes(picture)[0]:
            overlaps = _overlap(boxes, boxed(part))
            found.append((float(overlaps.max()), labels[int(overlaps.argmax())], box, part))
        return max(found, key=lambda each: each[0], default=(0.0, None, None, None))


def _place(box: tuple[slice, slice]) -> tuple[float, float, int]:
    """Centre (x, y) and longer side of a box."""
    y, x = ((s.start + s.stop) / 2 for s in box)
    return x, y, max(s.stop - s.start for s in box)


def _overlap(boxes: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Intersection over union of a silhouette [32, 32] with each of [N, 32, 32]."""
    return np.minimum(boxes, mask).sum((1, 2)) / np.maximum(boxes, mask).sum((1, 2))


# Hues half-way between two names; the last has a silhouette that the models never saw, as a control.
CONCEPTS = (
    Concept("teal striped house", outline("house"), 157.5, "striped", "cube"),
    Concept("rose dotted star", outline("star"), 337.5, "dotted", "ball"),
    Concept("amber plain fish", outline("fish"), 67.5, "plain", "car"),
    Concept("lime dotted cup", outline("cup"), 112.5, "dotted", "cube"),
    Concept("azure striped tree", outline("tree"), 202.5, "striped", "mushroom"),
    Concept("violet plain lizard", outline("lizard"), 247.5, "plain", "fish"),
    Concept("magenta striped car", outline("car"), 292.5, "striped", "house"),
    Concept("yellow crescent", CRESCENT, 90.0, "plain", "ball"),
)
