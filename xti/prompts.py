"""The text form of a per-layer prompt: one line per group of layers.

    # the object in the inner layers, the colour in the outer ones
    middle: a green lizard
    0-3, 10-15: a red cube
    MID @0-0.4 x0.8: a lizard        (only the first 40 % of the steps, at strength 0.8)

A line is `LAYERS [@START-END] [xSTRENGTH]: PROMPT`. Layers without a line keep the base prompt.
"""

import math
import re
from dataclasses import dataclass
from itertools import pairwise

from .layers import LayerTable
from .selection import select

_HEAD = re.compile(r"(?P<layers>[^@]*?)(?:@\s*(?P<window>[^@\s]+))?(?:\s+x\s*(?P<strength>\S+))?\s*")


@dataclass(frozen=True)
class LayerPrompt:
    """One line: layer indices, its prompt, strength (0 = base prompt, 1 = this prompt), window in fractions of the
    steps, line.
    """

    layers: tuple[int, ...]
    text: str
    strength: float
    start: float
    end: float
    line: int


@dataclass(frozen=True)
class Segment:
    """A stretch of the sampling (fractions 0-1) in which every layer keeps its prompt; None where the base prompt
    holds.
    """

    start: float
    end: float
    prompts: tuple[LayerPrompt | None, ...]


def parse(text: str, table: LayerTable) -> list[LayerPrompt]:
    """Read the lines of a per-layer prompt.

    Blank lines and lines that begin with # are skipped. An empty prompt is allowed: it is the empty text, not the base
    prompt. Raises ValueError "Line N: ..." for a line that is not understood or gives a layer twice at the same time.
    """
    prompts: list[LayerPrompt] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            prompt = _parse_line(line, number, table)
            _refuse_overlap(prompt, prompts, table)
        except ValueError as error:
            raise ValueError(f"Line {number}: {error}") from None
        prompts.append(prompt)
    return prompts


def schedule(prompts: list[LayerPrompt], table: LayerTable) -> list[Segment]:
    """Cut the sampling where any window begins or ends (a layer x step table, as ProSpect and MATTE use over time).

    Returns segments that cover 0-1 without gaps, at least one.
    """
    cuts = sorted({0.0, 1.0, *(prompt.start for prompt in prompts), *(prompt.end for prompt in prompts)})
    segments = []
    for start, end in pairwise(cuts):
        row: list[LayerPrompt | None] = [None] * len(table)
        for prompt in prompts:
            if prompt.start <= start and end <= prompt.end:
                for layer in prompt.layers:
                    row[layer] = prompt
        segments.append(Segment(start, end, tuple(row)))
    return segments


def _parse_line(line: str, number: int, table: LayerTable) -> LayerPrompt:
    head, colon, prompt = line.partition(":")
    if not colon:
        raise ValueError(f'"{line.strip()}" has no colon; write LAYERS: PROMPT, as in "middle: a green lizard".')
    match = _HEAD.fullmatch(head)
    if match is None:
        raise ValueError(f'"{head.strip()}" is not LAYERS [@START-END] [xSTRENGTH].')
    start, end = _window(match["window"])
    strength = 1.0 if match["strength"] is None else _number(match["strength"], "strength")
    return LayerPrompt(select(match["layers"], table), prompt.strip(), strength, start, end, number)


def _window(text: str | None) -> tuple[float, float]:
    if text is None:
        return 0.0, 1.0
    first, dash, last = text.partition("-")
    if not dash:
        raise ValueError(f'The window "@{text}" is not START-END, as in @0-0.4.')
    start, end = _number(first, "window"), _number(last, "window")
    if not 0.0 <= start < end <= 1.0:
        raise ValueError(f'The window "@{text}" must run forwards between 0 and 1.')
    return start, end


def _number(text: str, what: str) -> float:
    if not re.fullmatch(r"-?(\d+\.?\d*|\.\d+)", text):
        raise ValueError(f'The {what} "{text}" is not a number.')
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"The {what} is too large a number.")
    return number


def _refuse_overlap(prompt: LayerPrompt, earlier: list[LayerPrompt], table: LayerTable) -> None:
    for other in earlier:
        shared = [table.layers[i].name for i in prompt.layers if i in other.layers]
        if shared and prompt.start < other.end and other.start < prompt.end:
            raise ValueError(f"layer {shared[0]} already has a prompt in line {other.line}.")
