"""What exists in Shapes: objects, a circle of colours, textures, sizes, backgrounds, relations, counts; scenes and
their captions.

Hue, size and the scale and strength of a texture are continuous; words name ranges of them. A scene is data, a
caption is its exact
description, and `parse` inverts `caption`, so every prompt has a ground truth. Grammar, with THING = [small|large]
[COLOUR] [TEXTURE]:
`a THING OBJECT [left of|above a THING OBJECT [and above a THING OBJECT]] on BACKGROUND`, or `two|three THING OBJECTS
on BACKGROUND`.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

SIZE = 128  # pixels, both sides
PLURALS = {
    "ball": "balls", "cube": "cubes", "star": "stars", "house": "houses", "car": "cars", "lizard": "lizards",
    "tree": "trees", "fish": "fish", "cup": "cups", "mushroom": "mushrooms",
}  # fmt: skip
OBJECTS = tuple(PLURALS)
# The colour circle: these eight in order, 45 degrees apart, and straight lines between them.
COLOURS = {
    "red": (224, 38, 44),
    "orange": (244, 134, 28),
    "yellow": (250, 222, 44),
    "green": (46, 174, 66),
    "cyan": (44, 204, 216),
    "blue": (44, 92, 232),
    "purple": (142, 58, 214),
    "pink": (244, 88, 178),
}
STEP = 360 / len(COLOURS)
NAMED = 12.0  # degrees around a colour that have its name; the rest of the circle has none
TEXTURES = ("plain", "striped", "dotted")
PERIOD = (15.0, 20.0)  # pixels from stripe to stripe, from dot to dot
STRENGTH = (0.7, 1.0)  # how pale the stripes and dots are
BACKGROUNDS = ("white", "gray", "black", "sand", "ice")
RELATIONS = ("left of", "above")
SMALL, LARGE = 42.0, 72.0  # pixels: up to here a thing is called small, from here on large
NUMBERS = {"two": 2, "three": 3}
SIZES = {"small": 39.0, "": 56.0, "large": 82.0}  # what `parse` takes for the words


@dataclass(frozen=True)
class Thing:
    """One object: what it is (`name`, `hue`, `texture`) and where (`x`, `y`: centre, `size`: longer side; pixels).

    hue: degrees on the colour circle, 0 = red. period: pixels between stripes or dots. strength: how pale these are,
    0…1.
    """

    name: str
    hue: float = 0.0
    texture: str = "plain"
    x: float = SIZE / 2
    y: float = SIZE / 2 + 10
    size: float = SIZES[""]
    flip: bool = False
    period: float = 17.0
    strength: float = 0.9

    @property
    def colour(self) -> str:
        """The name of its hue, empty where the circle has none."""
        return colour_name(self.hue)

    @property
    def size_word(self) -> str:
        return "small" if self.size <= SMALL else "large" if self.size >= LARGE else ""

    def described(self, many: bool = False) -> str:
        """Its words without an article."""
        texture = "" if self.texture == "plain" else self.texture
        return " ".join(
            word for word in (self.size_word, self.colour, texture, PLURALS[self.name] if many else self.name) if word
        )

    @property
    def words(self) -> str:
        return f"a {self.described()}"


@dataclass(frozen=True)
class Scene:
    """One to three things on a background. `relation` ties things 0 and 1, and a third thing is then below thing 0;
    without one, several things are all alike and wherever they like."""

    things: tuple[Thing, ...]
    background: str
    relation: str | None = None

    @property
    def caption(self) -> str:
        words = self.things[0].words
        if self.relation is None and len(self.things) > 1:
            number = next(word for word, n in NUMBERS.items() if n == len(self.things))
            words = f"{number} {self.things[0].described(many=True)}"
        elif len(self.things) > 1:
            words += f" {self.relation} {self.things[1].words}"
        if self.relation and len(self.things) > 2:
            words += f" and above {self.things[2].words}"
        return f"{words} on {self.background}"


def colour_name(hue: float) -> str:
    """The colour within `NAMED` degrees of a hue, or nothing."""
    nearest = round(hue / STEP)
    return list(COLOURS)[nearest % len(COLOURS)] if abs(hue - nearest * STEP) <= NAMED else ""


def hue_of(colour: str) -> float:
    """The middle of a colour's range, degrees."""
    return list(COLOURS).index(colour) * STEP


def rgb_of(hue: float) -> np.ndarray:
    """RGB of a hue, float [3] in 0…255."""
    table = np.array(list(COLOURS.values()), np.float64)
    place = (hue / STEP) % len(table)
    low = int(place)
    return table[low % len(table)] * (1 - place + low) + table[(low + 1) % len(table)] * (place - low)


@cache
def held_out() -> frozenset[tuple[str, str, str]]:
    """(object, colour, texture) that no training scene has: `held_out.json`."""
    rows = json.loads((Path(__file__).parent / "held_out.json").read_text(encoding="utf-8"))
    return frozenset(tuple(row) for row in rows)


def _thing(rng: np.random.Generator, x: float, y: float, size: float, outside: bool) -> Thing:
    """A random thing; `outside`: one of the combinations that training never shows."""
    if outside:
        name, colour, texture = sorted(held_out())[rng.integers(len(held_out()))]
        hue = hue_of(colour) + rng.uniform(-NAMED, NAMED)
    else:
        while True:
            name = str(rng.choice(OBJECTS))
            texture = str(rng.choice(TEXTURES, p=(0.5, 0.25, 0.25)))
            # one in eight has a hue without a name, so that the model can draw what no word of its captions says
            spread = (NAMED, STEP - NAMED) if rng.random() < 0.125 else (-NAMED, NAMED)
            hue = float(rng.integers(len(COLOURS)) * STEP + rng.uniform(*spread))
            if (name, colour_name(hue), texture) not in held_out():
                break
    return Thing(
        name,
        float(hue) % 360,
        texture,
        float(x),
        float(y),
        float(size),
        bool(rng.integers(2)),
        rng.uniform(*PERIOD),
        rng.uniform(*STRENGTH),
    )


def random_scene(
    rng: np.random.Generator, count: int | None = None, alike: bool | None = None, outside: bool = False
) -> Scene:
    """A scene of `count` (1–3) things, or of 55 % one, 30 % two, 15 % three; things never touch each other or the
    border.

    alike: several things of one kind without a relation (a third of the scenes of several, unless said). outside: of
    held-out things.
    """
    count = count or int(rng.choice((1, 2, 3), p=(0.55, 0.3, 0.15)))
    background = str(rng.choice(BACKGROUNDS))
    if count == 1:
        size = rng.uniform(38, 92)
        x = rng.uniform(size / 2 + 7, SIZE - size / 2 - 7)
        y = rng.uniform(max(size / 2 + 6, 54 - size / 2), SIZE - size / 2 - 8)  # its foot stands on the floor
        return Scene((_thing(rng, x, y, size, outside),), background)
    if rng.random() < 1 / 3 if alike is None else alike:
        cells = np.array([(34, 37), (94, 37), (34, 93), (94, 93)])[rng.permutation(4)[:count]] + rng.uniform(
            -2, 2, (count, 2)
        )
        kind = _thing(rng, 0, 0, rng.uniform(38, 46), outside)
        things = tuple(
            Thing(
                kind.name,
                kind.hue,
                kind.texture,
                float(x),
                float(y),
                kind.size,
                bool(rng.integers(2)),
                kind.period,
                kind.strength,
            )
            for x, y in cells
        )
        return Scene(things, background)
    if count == 3:  # 0 top left, 1 top right (left of), 2 below 0
        corners = np.array([(34, 37), (94, 37), (34, 93)]) + rng.uniform(-2, 2, (3, 2))
        return Scene(tuple(_thing(rng, *p, rng.uniform(38, 46), outside) for p in corners), background, "left of")
    relation = str(rng.choice(RELATIONS))
    sizes = rng.uniform(38, 48, 2)
    if relation == "left of":
        across = 68 + rng.uniform(-22, 22) + rng.uniform(-7, 7, 2)
        places = zip(np.array([33, 95]) + rng.uniform(-2, 2, 2), across, strict=True)
    else:
        across = 64 + rng.uniform(-26, 26) + rng.uniform(-7, 7, 2)
        places = zip(across, np.array([37, 95]) + rng.uniform(-2, 2, 2), strict=True)
    return Scene(tuple(_thing(rng, *p, s, outside) for p, s in zip(places, sizes, strict=True)), background, relation)


def _parsed(tokens: list[str], names: dict[str, str], caption: str) -> Thing:
    """The thing of `[small|large] [COLOUR] [striped|dotted] OBJECT`."""
    rest = list(tokens)
    size = rest.pop(0) if rest and rest[0] in ("small", "large") else ""
    colour = rest.pop(0) if rest and rest[0] in COLOURS else ""
    texture = rest.pop(0) if rest and rest[0] in TEXTURES[1:] else "plain"
    if len(rest) != 1 or rest[0] not in names:
        raise ValueError(
            f"Shapes caption {caption!r}: {' '.join(tokens)!r} is not '[small|large] [COLOUR] [striped|dotted] "
            f"OBJECT'; colours: {', '.join(COLOURS)}; objects: {', '.join(names)}."
        )
    # without a colour word the hue is one that has no name
    return Thing(names[rest[0]], hue_of(colour) if colour else STEP / 2, texture, size=SIZES[size])


def parse(caption: str) -> Scene:
    """The scene that a caption describes (places and whatever it does not say at their defaults). Raises ValueError
    outside the grammar."""
    text = caption.strip().lower()
    head, found, background = text.rpartition(" on ")
    if not found or background not in BACKGROUNDS:
        raise ValueError(f"Shapes caption {caption!r} must end in 'on' and one of {', '.join(BACKGROUNDS)}.")
    first, _, rest = head.partition(" ")
    if first in NUMBERS:
        return Scene((_parsed(rest.split(), {v: k for k, v in PLURALS.items()}, caption),) * NUMBERS[first], background)
    head, _, third = head.partition(" and above a ")
    relation = next((r for r in RELATIONS if f" {r} a " in head), None)
    parts = head.split(f" {relation} ") if relation else [head]
    if third:
        parts.append(f"a {third}")
    if any(not words.startswith("a ") for words in parts) or len(parts) > 1 and relation is None:
        raise ValueError(f"Shapes caption {caption!r} must say 'a …', 'a … left of a …', 'two …' and the like.")
    return Scene(
        tuple(_parsed(words.split()[1:], {name: name for name in OBJECTS}, caption) for words in parts),
        background,
        relation,
    )
