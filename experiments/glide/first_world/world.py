"""What exists in Shapes: objects, colours, textures, backgrounds, relations; scenes and their captions.

A scene is data, a caption is its exact description, and `parse` inverts `caption`, so every prompt has a ground truth.
Grammar: `a COLOUR [striped|dotted] OBJECT [left of|above a …] [and above a …] on BACKGROUND`.
"""

from dataclasses import dataclass

import numpy as np

OBJECTS = ("ball", "cube", "star", "house", "car", "lizard")
COLOURS = {
    "red": (226, 38, 38),
    "green": (40, 176, 56),
    "blue": (44, 92, 236),
    "yellow": (244, 212, 36),
    "purple": (158, 60, 206),
    "cyan": (48, 208, 214),
}
TEXTURES = ("plain", "striped", "dotted")
BACKGROUNDS = {"white": (244, 244, 244), "gray": (118, 118, 118), "black": (14, 14, 14), "sand": (222, 196, 150)}
RELATIONS = ("left of", "above")
SIZE = 64  # pixels, both sides


@dataclass(frozen=True)
class Thing:
    """One object: what it is (`name`, `colour`, `texture`) and where (`x`, `y`: centre, `size`: longer side;
    pixels).
    """

    name: str
    colour: str
    texture: str = "plain"
    x: float = SIZE / 2
    y: float = SIZE / 2
    size: float = 36.0
    flip: bool = False

    @property
    def words(self) -> str:
        texture = "" if self.texture == "plain" else self.texture + " "
        return f"a {self.colour} {texture}{self.name}"


@dataclass(frozen=True)
class Scene:
    """One to three things on a background. `relation` ties things 0 and 1; a third thing is always below thing 0."""

    things: tuple[Thing, ...]
    background: str
    relation: str | None = None

    @property
    def caption(self) -> str:
        words = self.things[0].words
        if len(self.things) > 1:
            words += f" {self.relation} {self.things[1].words}"
        if len(self.things) > 2:
            words += f" and above {self.things[2].words}"
        return f"{words} on {self.background}"


def _thing(rng: np.random.Generator, x: float, y: float, size: float) -> Thing:
    return Thing(
        name=str(rng.choice(OBJECTS)),
        colour=str(rng.choice(list(COLOURS))),
        texture=str(rng.choice(TEXTURES, p=(0.5, 0.25, 0.25))),
        x=float(x),
        y=float(y),
        size=float(size),
        flip=bool(rng.integers(2)),
    )


def random_scene(rng: np.random.Generator, count: int | None = None) -> Scene:
    """A scene of `count` (1–3) things, or of 60 % one, 30 % two, 10 % three; things never touch each other or the
    border.
    """
    count = count or int(rng.choice((1, 2, 3), p=(0.6, 0.3, 0.1)))
    background = str(rng.choice(list(BACKGROUNDS)))
    if count == 1:
        size = rng.uniform(30, 46)
        x, y = rng.uniform(size / 2 + 3, SIZE - size / 2 - 3, 2)
        return Scene((_thing(rng, x, y, size),), background)
    if count == 3:  # 0 top left, 1 top right (left of), 2 below 0
        sizes = rng.uniform(20, 24, 3)
        corners = np.array([(17, 17), (47, 17), (17, 47)]) + rng.uniform(-1.5, 1.5, (3, 2))
        return Scene(tuple(_thing(rng, *p, s) for p, s in zip(corners, sizes, strict=True)), background, "left of")
    relation = str(rng.choice(RELATIONS))
    sizes = rng.uniform(21, 25, 2)
    along = np.array([17, 47]) + rng.uniform(-1.5, 1.5, 2)
    across = 32 + rng.uniform(-12, 12) + rng.uniform(-4, 4, 2)
    places = zip(along, across, strict=True) if relation == "left of" else zip(across, along, strict=True)
    return Scene(tuple(_thing(rng, *p, s) for p, s in zip(places, sizes, strict=True)), background, relation)


def parse(caption: str) -> Scene:
    """The scene that a caption describes (places and sizes at their defaults). Raises ValueError for anything outside
    the grammar.
    """
    text = caption.strip().lower()
    head, found, background = text.rpartition(" on ")
    if not found or background not in BACKGROUNDS:
        raise ValueError(f"Shapes caption {caption!r} must end in 'on' and one of {', '.join(BACKGROUNDS)}.")
    head, _, third = head.partition(" and above ")
    relation = next((r for r in RELATIONS if f" {r} a " in head), None)
    parts = head.split(f" {relation} ") if relation else [head]
    things = []
    for words in parts + ([third] if third else []):
        tokens = words.split()
        texture = tokens.pop(2) if len(tokens) == 4 and tokens[2] in TEXTURES else "plain"
        if len(tokens) != 3 or tokens[0] != "a" or tokens[1] not in COLOURS or tokens[2] not in OBJECTS:
            raise ValueError(f"Shapes caption {caption!r}: {words!r} is not 'a COLOUR [striped|dotted] OBJECT'.")
        things.append(Thing(tokens[2], tokens[1], texture))
    return Scene(tuple(things), background, relation)
