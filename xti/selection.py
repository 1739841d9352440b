"""Choosing layers by words: "middle", "IN08, MID", "0-5,10-15", "innermost 3"."""

import re

from .layers import LayerTable

COARSE = ("coarse", "middle", "inner")
FINE = ("fine", "outer")


def coarse_layers(table: LayerTable) -> tuple[int, ...]:
    """Indices of the layers that decide the object: those no finer than the deepest down layer.

    SD1 4-9 (16 and 8 cells), SDXL 2-7 (32 cells). The P+ project page shows that the inner layers decide the object and
    the outer ones its colour; the exact border of its figure is not published, this one is ours. Raises ValueError for
    a flat model.
    """
    sides = [(layer, layer.resolution) for layer in table.layers if layer.resolution is not None]
    down = [side for layer, side in sides if layer.direction == "down"]
    if not down:
        raise ValueError(
            f"{table.architecture} works at one resolution and has no coarse or fine layers: name layers by number, "
            f"0-{len(table) - 1}."
        )
    return tuple(layer.index for layer, side in sides if side <= min(down))


def select(text: str, table: LayerTable) -> tuple[int, ...]:
    """Layer indices, ascending and without repeats, for a comma-separated selector.

    Each part is a number ("6"), a range of numbers ("0-5") or of names ("IN07-OUT05"), a name ("MID", "IN08", any case;
    a name without block number means all its blocks), "all", "coarse" = "middle" = "inner", "fine" = "outer", "down",
    "up", "double" or "single" (the two kinds of blocks of Flux), or "innermost K". Raises ValueError naming the part
    that is not understood.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ValueError(f'"{text.strip()}" names no layer between two commas.' if any(parts) else "No layer is named.")
    chosen: set[int] = set()
    for part in parts:
        picked = _select_part(part, table)
        if not picked:
            raise ValueError(f'"{part}" names no layer of this model ({table.architecture}): it has none of that kind.')
        chosen.update(picked)
    return tuple(sorted(chosen))


def _select_part(part: str, table: LayerTable) -> tuple[int, ...]:
    word = part.lower()
    if word == "all":
        return tuple(range(len(table)))
    if word in COARSE:
        return coarse_layers(table)
    if word in FINE:
        coarse = coarse_layers(table)
        return tuple(i for i in range(len(table)) if i not in coarse)
    if word in ("down", "up"):
        return tuple(layer.index for layer in table.layers if layer.direction == word)
    if word in ("double", "single"):
        return tuple(layer.index for layer in table.layers if layer.block[0] == f"{word}_block")
    inner = re.fullmatch(r"innermost\s+(\d+)", word)
    if inner:
        return innermost(int(inner[1]), table)
    first, dash, last = word.partition("-")
    begin = _indices(first.strip(), part, table)
    if not dash:
        return begin
    end = _indices(last.strip(), part, table)
    if begin[0] > end[-1]:
        raise ValueError(f'The layer range "{part}" runs backwards.')
    return tuple(range(begin[0], end[-1] + 1))


def _indices(word: str, part: str, table: LayerTable) -> tuple[int, ...]:
    if re.fullmatch(r"\d+", word):
        if int(word) >= len(table):
            raise ValueError(f"There is no layer {word}: {table.architecture} has layers 0-{len(table) - 1}.")
        return (int(word),)
    named = tuple(
        layer.index for layer in table.layers if layer.name.lower() == word or layer.name.lower().startswith(word + ".")
    )
    # A flat model's blocks share one stem ("blocks"), which is not the name of a layer.
    if not named or (table.layers[0].direction == "flat" and len(named) > 1):
        raise ValueError(
            f'"{part}" names no layer of {table.architecture}: use 0-{len(table) - 1}, a name from {table.names[0]} to '
            f"{table.names[-1]}, all, middle, outer, down, up or innermost K."
        )
    return named


def innermost(count: int, table: LayerTable) -> tuple[int, ...]:
    """The `count` innermost layers in inside-out order (LayerTable.inside_out); 2 gives MID, IN08 in SD1 and SDXL."""
    if not 0 <= count <= len(table):
        raise ValueError(f"Cannot take the innermost {count} layers: {table.architecture} has {len(table)}.")
    return table.inside_out()[:count]
