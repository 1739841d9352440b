"""The labelled grid: every picture is where it belongs, whole and legible, and impossible ones are refused."""

import numpy as np
import pytest
from PIL import Image

from guidance_lab.plots.grid import MOST, labelled_grid

COLOURS = [["red", "lime", "blue"], ["cyan", "magenta", "yellow"]]


def filled(size=(64, 64)):
    return [[Image.new("RGB", size, colour) for colour in row] for row in COLOURS]


def boxes(sheet: Image.Image) -> dict:
    """Colour → (left, top, right, bottom) of its cell on the sheet."""
    found = {}
    for row in COLOURS:
        for colour in row:
            alike = (np.asarray(sheet) == np.asarray(Image.new("RGB", (1, 1), colour))[0, 0]).all(-1)
            found[colour] = Image.fromarray(alike).getbbox()
    return found


def test_pictures_grow_by_whole_pixels_and_stand_in_rows_and_columns():
    found = boxes(labelled_grid(filled(), ["a", "b", "c"], ["one", "two"]))
    assert {(right - left, bottom - top) for left, top, right, bottom in found.values()} == {(256, 256)}
    assert found["red"][0] < found["lime"][0] < found["blue"][0]
    assert found["red"][0] == found["cyan"][0]
    assert found["red"][1] == found["blue"][1] < found["cyan"][1] == found["yellow"][1]


def test_large_pictures_keep_their_size_and_a_sheet_stays_below_its_limit():
    found = boxes(labelled_grid(filled((300, 200))))
    assert {(right - left, bottom - top) for left, top, right, bottom in found.values()} == {(300, 200)}
    many = [[Image.new("RGB", (1024, 1024), "red") for _ in range(16)] for _ in range(2)]
    assert max(labelled_grid(many, ["x"] * 16).size) <= MOST


def test_labels_are_drawn_above_their_column_and_beside_their_row():
    plain = labelled_grid(filled())
    headed = labelled_grid(filled(), ["", "guided", ""])
    assert headed.height > plain.height
    left, top, right, _ = boxes(headed)["lime"]
    ink = headed.convert("L").crop((0, 0, headed.width, top)).point(lambda value: 255 if value < 128 else 0).getbbox()
    assert left < ink[0] and ink[2] < right
    sided = labelled_grid(filled(), (), ["first", "second"])
    edge = boxes(sided)["red"][0]
    ink = sided.convert("L").crop((0, 0, edge, sided.height)).point(lambda value: 255 if value < 128 else 0).getbbox()
    assert ink is not None and ink[2] < edge


@pytest.mark.parametrize("label", ["a very long label of many words " * 9, "x" * 400])
def test_a_long_label_stays_within_its_column(label):
    sheet = labelled_grid(filled(), ["", label, ""])
    found = boxes(sheet)
    left, top, right, _ = found["lime"]
    ink = sheet.convert("L").crop((0, 0, sheet.width, top)).point(lambda value: 255 if value < 128 else 0).getbbox()
    assert left - 1 <= ink[0] and ink[2] <= right + 1
    assert top < 130  # three lines


@pytest.mark.parametrize(
    ("rows", "columns", "sides"),
    [
        ([], (), ()),
        ([[]], (), ()),
        (filled(), ["a"], ()),
        (filled(), (), ["a"]),
        ([filled()[0], filled()[1][:2]], (), ()),
    ],
)
def test_what_is_no_grid_is_refused(rows, columns, sides):
    with pytest.raises(ValueError, match="grid"):
        labelled_grid(rows, columns, sides)
