"""How a photo of any size becomes a picture that a network can learn from: which size, and which part of the photo."""

import math
import random


def bucket(width: int, height: int, size: int) -> tuple[int, int]:
    """(width, height) with the area of size x size at most, nearest to the photo's aspect ratio: aspect bucketing.

    Both are multiples of 64, or of an eighth of a small `size`, and the ratio is 1:2 to 2:1.
    """
    step = max(8, min(64, size // 8 // 8 * 8))
    shapes = []
    for w in range(max(step, size // 2 // step * step), 2 * size + 1, step):
        h = max(step, size * size // w // step * step)
        shapes.append((min(w, 2 * h), min(h, 2 * w)))
    aspect = math.log(width / height)
    return min(shapes, key=lambda shape: (abs(math.log(shape[0] / shape[1]) - aspect), -shape[0] * shape[1]))


def crop(
    width: int, height: int, aspect: float, zoom: float = 1.0, across: float = 0.5, down: float = 0.5
) -> tuple[int, int, int, int]:
    """(left, top, width, height) of the part of a photo with this aspect ratio (width/height).

    zoom: 1 for the largest such part, above 0. across, down: 0 to 1, where it lies in the room there is, 0.5 the
    middle.
    """
    if width > height * aspect:
        inner = (max(1, round(height * aspect * zoom)), max(1, round(height * zoom)))
    else:
        inner = (max(1, round(width * zoom)), max(1, round(width / aspect * zoom)))
    inner = min(inner[0], width), min(inner[1], height)
    return round((width - inner[0]) * across), round((height - inner[1]) * down), *inner


def random_crop(width: int, height: int, aspect: float, key: str) -> tuple[int, int, int, int]:
    """A crop of 80 to 100 % of the largest one, anywhere; the same for the same key."""
    chance = random.Random(key)
    return crop(width, height, aspect, 0.8 + 0.2 * chance.random(), chance.random(), chance.random())
