"""The vocabulary of Shapes captions, one token a word, and captions that leave something out."""

from functools import cache

import numpy as np

from .world import BACKGROUNDS, COLOURS, NUMBERS, PLURALS, RELATIONS, TEXTURES, Scene

MAX_TOKENS = 24


@cache
def vocabulary() -> dict[str, int]:
    """Word → id."""
    relations = [word for relation in RELATIONS for word in relation.split()]
    words = ["<start>", "<end>", "<unk>", "a", "on", "and", *relations, *NUMBERS, "small", "large"]
    words += [*COLOURS, *TEXTURES, *PLURALS, *PLURALS.values(), *BACKGROUNDS]
    return {word: i for i, word in enumerate(dict.fromkeys(words))}


def tokens(captions: list[str]) -> np.ndarray:
    """Token ids, started, ended and padded with `<end>`, cut at the context length: int64 [B, MAX_TOKENS]."""
    known = vocabulary()
    rows = np.full((len(captions), MAX_TOKENS), known["<end>"], np.int64)
    rows[:, 0] = known["<start>"]
    for row, caption in zip(rows, captions, strict=True):
        ids = [known.get(word, known["<unk>"]) for word in caption.lower().replace(",", " ").replace(".", " ").split()][
            : MAX_TOKENS - 2
        ]
        row[1 : 1 + len(ids)] = ids
    return rows


def loose_caption(scene: Scene, rng: np.random.Generator) -> tuple[str, set[str]]:
    """A caption that sometimes leaves out the background (20 %), all sizes (30 %) or all colours (10 %), and which it
    left out.

    People prompt "a red cube", and per-layer prompts do so on purpose; a model that only ever saw full captions would
    not know them.
    """
    caption, left_out = scene.caption, set()
    if rng.random() < 0.2:
        caption = caption.rpartition(" on ")[0]
        left_out.add("background")
    if rng.random() < 0.3:
        caption = " ".join(word for word in caption.split() if word not in ("small", "large"))
        left_out.add("size")
    if rng.random() < 0.1:
        caption = " ".join(word for word in caption.split() if word not in COLOURS)
        left_out.add("colour")
    return caption, left_out
