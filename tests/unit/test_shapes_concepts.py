"""The reader of concepts that Shapes has no word for: right on renderings, and not fooled by what is only like them."""

from itertools import product

import numpy as np
import pytest

from guidance_lab.experiments.concepts import CONCEPTS
from guidance_lab.shapes.render import render
from guidance_lab.shapes.world import BACKGROUNDS, COLOURS, OBJECTS, SIZE, TEXTURES, Scene, Thing, hue_of

HOUSE, STAR = CONCEPTS[:2]
NAMES = [concept.name for concept in CONCEPTS]
EMPTY = np.full((SIZE, SIZE, 3), 244, np.uint8)


@pytest.mark.parametrize("concept", CONCEPTS, ids=NAMES)
def test_renderings_are_recognized_on_every_background(concept):
    for background in BACKGROUNDS:
        found = [concept.found_in(picture) for picture in concept.pictures(6, 1, background)]
        assert all(each == {"shape": 1.0, "hue": 1.0, "texture": 1.0, "all": 1.0} for each in found)


@pytest.mark.parametrize("concept", CONCEPTS, ids=NAMES)
def test_other_concepts_are_not_taken_for_it(concept):
    for other in CONCEPTS:
        if other is not concept:
            found = [concept.found_in(picture) for picture in other.pictures(6, 2)]
            assert not any(each["shape"] or each["all"] for each in found)


def test_each_part_is_judged_by_itself():
    def seen(name, hue, texture):
        return STAR.found_in(render(Scene((Thing(name, hue, texture),), "white")))

    assert seen("star", STAR.hue, "dotted")["all"] == 1
    assert seen("star", hue_of("blue"), "dotted") == {"shape": 1.0, "hue": 0.0, "texture": 1.0, "all": 0.0}
    assert seen("star", STAR.hue, "plain") == {"shape": 1.0, "hue": 1.0, "texture": 0.0, "all": 0.0}
    assert seen("cube", STAR.hue, "dotted")["shape"] == 0
    assert STAR.found_in(EMPTY) == {"shape": 0.0, "hue": 0.0, "texture": 0.0, "all": 0.0}


def test_it_is_found_beside_another_thing():
    things = Thing("star", STAR.hue, "dotted", 34, 70, 46), Thing("ball", hue_of("blue"), "plain", 94, 70, 46)
    picture = render(Scene(things, "white"))
    assert STAR.found_in(picture)["all"] == 1 and HOUSE.found_in(picture)["shape"] == 0


def test_its_colour_has_a_name_after_an_edit():
    green = render(Scene((Thing("house", hue_of("green"), "striped"),), "white"))
    assert HOUSE.colour_in(green) == "green" and HOUSE.found_in(green)["hue"] == 0
    assert HOUSE.colour_in(EMPTY) is None


def test_no_word_names_a_concept():
    """Hue or outline is outside of the world's vocabulary."""
    words = product(OBJECTS, COLOURS, TEXTURES)
    scenes = [Scene((Thing(name, hue_of(colour), texture),), "white") for name, colour, texture in words]
    assert not any(concept.found_in(render(scene))["all"] for concept in CONCEPTS for scene in scenes)
