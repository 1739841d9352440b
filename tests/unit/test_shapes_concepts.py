"""The reader of concepts that Shapes has no word for: right on renderings, and not fooled by what is only like them."""

from itertools import product

import numpy as np
import pytest

from guidance_lab.experiments.concepts import CONCEPTS
from guidance_lab.shapes.render import render
from guidance_lab.shapes.world import BACKGROUNDS, Scene, Thing

HOUSE, STAR, CRESCENT = CONCEPTS
NAMES = [concept.name for concept in CONCEPTS]


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
    def seen(name, colour, texture):
        return STAR.found_in(render(Scene((Thing(name, colour, texture),), "white"), colours={"pink": STAR.rgb}))

    assert seen("star", "pink", "dotted")["all"] == 1
    assert seen("star", "blue", "dotted") == {"shape": 1.0, "hue": 0.0, "texture": 1.0, "all": 0.0}
    assert seen("star", "pink", "plain") == {"shape": 1.0, "hue": 1.0, "texture": 0.0, "all": 0.0}
    assert seen("cube", "pink", "dotted")["shape"] == 0
    assert STAR.found_in(np.full((64, 64, 3), 244, np.uint8)) == {"shape": 0.0, "hue": 0.0, "texture": 0.0, "all": 0.0}


def test_it_is_found_beside_another_thing():
    beside = Scene((Thing("star", "pink", "dotted", 17, 32, 24), Thing("ball", "blue", "plain", 47, 32, 24)), "white")
    picture = render(beside, colours={"pink": STAR.rgb})
    assert STAR.found_in(picture)["all"] == 1 and HOUSE.found_in(picture)["shape"] == 0


def test_its_colour_has_a_name_after_an_edit():
    green = render(Scene((Thing("house", "green", "striped"),), "white"))
    assert HOUSE.colour_in(green) == "green" and HOUSE.found_in(green)["hue"] == 0
    assert HOUSE.colour_in(np.full((64, 64, 3), 244, np.uint8)) is None


def test_no_word_names_a_concept():
    """Hue or outline is outside of the world's vocabulary."""
    words = product(("house", "star", "ball"), ("red", "yellow", "purple"), ("plain", "striped", "dotted"))
    scenes = [Scene((Thing(*each),), "white") for each in words]
    assert not any(concept.found_in(render(scene))["all"] for concept in CONCEPTS for scene in scenes)
