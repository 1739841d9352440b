"""The first edition of Shapes, which Shapes GLIDE draws: captions and scenes, the renderer, the readers."""

import numpy as np
import pytest

from guidance_lab.experiments.glide.first_world.read import Reading, judge, read
from guidance_lab.experiments.glide.first_world.render import render
from guidance_lab.experiments.glide.first_world.world import (
    BACKGROUNDS,
    COLOURS,
    OBJECTS,
    TEXTURES,
    Scene,
    Thing,
    parse,
    random_scene,
)


def scenes(count: int, seed: int = 0, things: int | None = None) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [random_scene(rng, things) for _ in range(count)]


def test_a_caption_says_all_of_a_scene():
    for scene in scenes(300):
        said = parse(scene.caption)
        assert said.caption == scene.caption
        assert (said.background, said.relation) == (scene.background, scene.relation)
        assert [(t.name, t.colour, t.texture) for t in said.things] == [
            (t.name, t.colour, t.texture) for t in scene.things
        ]


NO_CAPTIONS = ["a red cube", "a red cube on mars", "a pink cube on white", "red cube on white", "a red striped on sand"]


@pytest.mark.parametrize("caption", NO_CAPTIONS)
def test_what_is_no_caption_is_refused(caption):
    with pytest.raises(ValueError, match="Shapes caption"):
        parse(caption)


def test_relations_hold_and_things_stay_apart():
    for scene in scenes(300, things=2):
        a, b = scene.things
        assert a.x < b.x if scene.relation == "left of" else a.y < b.y
        assert max(abs(a.x - b.x), abs(a.y - b.y)) > (a.size + b.size) / 2 + 1
    for scene in scenes(100, things=3):
        a, b, c = scene.things
        assert a.x < b.x and a.y < c.y


def test_the_same_scene_is_the_same_picture():
    scene = scenes(1)[0]
    assert np.array_equal(render(scene), render(scene))
    assert render(scene).shape == (64, 64, 3) and render(scene).dtype == np.uint8


@pytest.mark.parametrize("name", OBJECTS)
def test_every_combination_of_one_thing_is_read(name):
    for colour in COLOURS:
        for texture in TEXTURES:
            for background in BACKGROUNDS:
                scene = Scene((Thing(name, colour, texture),), background)
                seen = read(render(scene))
                assert seen.background == background, scene.caption
                assert [t.words for t in seen.things] == [scene.things[0].words], scene.caption


def test_readers_are_right_on_99_percent_of_fresh_renders():
    wanted = scenes(500, seed=9)
    rows = [judge(scene, read(render(scene))) for scene in wanted]
    for key in ("object", "colour", "texture", "background", "count", "relation", "all"):
        assert np.mean([row[key] for row in rows if key in row]) >= 0.99, key


def test_sizes_are_read_to_the_pixel():
    for scene in scenes(50, seed=3, things=1):
        if scene.things[0].name in ("ball", "cube", "house"):  # their outlines fill the box that `size` means
            seen = read(render(scene)).things[0]
            assert abs(seen.size - scene.things[0].size) <= 2  # a partly covered pixel at each end


def test_the_judge_counts_each_thing_once_and_tells_what_is_wrong():
    scene = parse("a red ball left of a red ball on white")
    one = Reading((Thing("ball", "red", x=20, y=32),), (1.0,), "white")
    assert judge(scene, one)["object"] == 0.5
    assert judge(scene, one)["relation"] == 0.0 and judge(scene, one)["count"] == 0.0
    both = Reading((Thing("ball", "red", x=20, y=32), Thing("ball", "red", x=44, y=32)), (1.0, 1.0), "white")
    assert judge(scene, both)["all"] == 1.0
    turned = parse("a red ball left of a blue cube on white")
    wrong = Reading((Thing("cube", "blue", x=20, y=32), Thing("ball", "red", x=44, y=32)), (1.0, 1.0), "gray")
    assert judge(turned, wrong) == {
        "object": 1.0, "colour": 1.0, "texture": 1.0, "background": 0.0, "count": 1.0, "relation": 0.0, "all": 0.0,
    }  # fmt: skip
    other = Reading((Thing("ball", "blue", x=20, y=32), Thing("cube", "blue", x=44, y=32)), (1.0, 1.0), "white")
    assert judge(turned, other)["colour"] == 0.5
    assert judge(turned, Reading((), (), "white"))["object"] == 0.0


def test_an_unreadable_picture_has_no_things():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert read(noise).things == ()
    assert read(np.full((64, 64, 3), 14, np.uint8)) == Reading((), (), "black")
    with pytest.raises(ValueError, match="uint8"):
        read(np.zeros((32, 32, 3), np.uint8))
