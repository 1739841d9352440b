"""Concepts to learn in Shapes: looks and silhouettes that no word of its captions names, and a reader that recognizes
them.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from guidance_lab.shapes.read import RECOGNIZED, boxed, colour_of, hue, silhouettes, templates
from guidance_lab.shapes.render import outline, render
from guidance_lab.shapes.world import SIZE, Scene, Thing

HUE_WITHIN = 20.0  # degrees; the six named hues are 30 and more apart from the ones here
_RIM = [(0.5 * np.cos(a), 0.5 * np.sin(a)) for a in np.linspace(0.6, 2 * np.pi - 0.6, 30)]
_BITE = [(0.22 + 0.34 * np.cos(a), 0.34 * np.sin(a)) for a in np.linspace(2 * np.pi - 0.97, 0.97, 20)]
CRESCENT = [([(float(u), float(v)) for u, v in _RIM + _BITE], 1.0)]


@dataclass(frozen=True)
class Concept:
    """A thing to learn. polygons: its outline (shapes.render.outline). rgb: its colour. word: what training starts
    from.
    """

    name: str
    polygons: tuple
    rgb: tuple[int, int, int]
    texture: str
    word: str

    def picture(
        self,
        x: float = SIZE / 2,
        y: float = SIZE / 2,
        size: float = 36.0,
        background: str = "white",
        flip: bool = False,
    ):
        """Its rendering: uint8 [64, 64, 3]."""
        scene = Scene((Thing(self.name, self.name, self.texture, x, y, size, flip),), background)
        return render(scene, {self.name: list(self.polygons)}, {self.name: self.rgb})

    def pictures(self, count: int, seed: int, background: str = "white") -> np.ndarray:
        """Renderings at random places and sizes: uint8 [count, 64, 64, 3]."""
        rng = np.random.default_rng(seed)
        sizes = rng.uniform(30, 44, count)
        places = [rng.uniform(size / 2 + 3, SIZE - size / 2 - 3, 2) for size in sizes]
        flips = rng.integers(2, size=count)
        drawn = [
            self.picture(x, y, size, background, bool(flip))
            for (x, y), size, flip in zip(places, sizes, flips, strict=True)
        ]
        return np.stack(drawn)

    @cached_property
    def templates(self) -> np.ndarray:
        """Its silhouettes, both ways round, large and small: float [N, 32, 32]."""
        return np.stack(
            [boxed(silhouettes(self.picture(size=s, flip=f))[0][0][1]) for s in (22.0, 38.0) for f in (False, True)]
        )

    @cached_property
    def rivals(self) -> np.ndarray:
        """The silhouettes of all named objects but the one it is, if it is one: float [M, 32, 32]."""
        labels, boxes = templates()
        return np.stack(
            [box for (name, _), box in zip(labels, boxes, strict=True) if outline(name) != list(self.polygons)]
        )

    def found_in(self, picture: np.ndarray) -> dict[str, float]:
        """What of it is in a picture, each 0 or 1: `shape` (silhouette), `hue` and `texture` of the part that fits
        best, and `all`.
        """
        best, box, part = self._best_part(picture)
        if part is None:
            return dict.fromkeys(("shape", "hue", "texture", "all"), 0.0)
        pixels = picture[box][part].astype(np.float32)
        result = {
            "shape": float(best >= max(RECOGNIZED, _overlap(self.rivals, boxed(part)))),
            "hue": float(self._hue_distance(pixels) <= HUE_WITHIN),
            "texture": float(self._nearest_texture(picture, box) == self.texture),
        }
        return result | {"all": float(min(result.values()))}

    def colour_in(self, picture: np.ndarray) -> str | None:
        """The named colour of the part of a picture that fits its silhouette best; None in an empty picture."""
        _, box, part = self._best_part(picture)
        return None if part is None else colour_of(picture[box][part].astype(np.float32))

    def _best_part(self, picture: np.ndarray) -> tuple:
        """(intersection over union, box, mask) of the part that fits its silhouette best; (0, None, None) in an empty
        picture.
        """
        found = [(_overlap(self.templates, boxed(part)), box, part) for box, part in silhouettes(picture)[0]]
        return max(found, key=lambda each: each[0], default=(0.0, None, None))

    def _hue_distance(self, pixels: np.ndarray) -> float:
        """Degrees between its hue and the chroma-weighted mean hue of RGB rows [N, 3]."""
        angle, chroma = hue(pixels)
        own, _ = hue(np.array([self.rgb], np.float32))
        mean = np.arctan2((chroma * np.sin(angle)).sum(), (chroma * np.cos(angle)).sum())
        return float(np.degrees(np.abs(np.angle(np.exp(1j * (mean - own[0]))))))

    def _nearest_texture(self, picture: np.ndarray, box: tuple[slice, slice]) -> str:
        background = silhouettes(picture)[1]
        (top, bottom), (left, right) = ((s.start, s.stop) for s in box)
        place = ((left + right) / 2, (top + bottom) / 2, max(bottom - top, right - left), background)

        def distance(texture: str) -> float:
            same = Concept(self.name, self.polygons, self.rgb, texture, self.word)
            each = [same.picture(*place, flip)[box].astype(np.float32) for flip in (False, True)]
            return min(float(np.abs(drawn - picture[box]).mean()) for drawn in each)

        return min(("plain", "striped", "dotted"), key=distance)


def _overlap(boxes: np.ndarray, mask: np.ndarray) -> float:
    """The best intersection over union of a silhouette [32, 32] with any of [N, 32, 32]."""
    return float((np.minimum(boxes, mask).sum((1, 2)) / np.maximum(boxes, mask).sum((1, 2))).max())


CONCEPTS = (
    Concept("orange striped house", tuple(outline("house")), (246, 128, 24), "striped", "cube"),
    Concept("pink dotted star", tuple(outline("star")), (250, 96, 176), "dotted", "ball"),
    Concept("yellow crescent", tuple(CRESCENT), (244, 212, 36), "plain", "ball"),
)
