"""Shapes without a model: captions and scenes, what training never sees, the renderer, the readers that judge
everything, the distances between sets of pictures.
"""

import numpy as np
import pytest

from guidance_lab.experiments.data import SCENES, scene
from guidance_lab.experiments.features import diversity, features, frechet
from guidance_lab.shapes.read import Reading, judge, nearest_colour, read
from guidance_lab.shapes.render import render
from guidance_lab.shapes.words import MAX_TOKENS, loose_caption, tokens, vocabulary
from guidance_lab.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    LARGE,
    OBJECTS,
    SIZE,
    SMALL,
    TEXTURES,
    Scene,
    Thing,
    colour_name,
    held_out,
    hue_of,
    parse,
    random_scene,
    rgb_of,
)  # fmt: skip


def scenes(number: int, seed: int = 0, **kinds) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [random_scene(rng, **kinds) for _ in range(number)]


def said(scene: Scene) -> tuple:
    return scene.background, scene.relation, [(t.name, t.colour, t.texture, t.size_word) for t in scene.things]


def test_a_caption_says_all_of_a_scene():
    for drawn in scenes(500):
        assert said(parse(drawn.caption)) == said(drawn)
        assert parse(drawn.caption).caption == drawn.caption


def test_every_kind_of_caption_occurs():
    captions = [drawn.caption for drawn in scenes(500)]
    for word in (
        "two ",
        "three ",
        "left of",
        " above ",
        "and above",
        "small",
        "large",
        "striped",
        "dotted",
        "fish",
        *COLOURS,
        *BACKGROUNDS,
    ):
        assert any(word in caption for caption in captions), word


NO_CAPTIONS = [
    "a red cube", "a red cube on mars", "a brown cube on white", "red cube on white", "a red striped on sand",
    "two red ball on white", "a red balls on white", "four red balls on white", "a striped red ball on white",
    "a red ball and above a blue cube on white",
]  # fmt: skip


@pytest.mark.parametrize("caption", NO_CAPTIONS)
def test_what_is_no_caption_is_refused(caption):
    with pytest.raises(ValueError, match="Shapes caption"):
        parse(caption)


def test_every_caption_is_known_words_within_the_context():
    unknown, rng = vocabulary()["<unk>"], np.random.default_rng(0)
    thing = "a small purple striped mushroom"
    longest = f"{thing} left of {thing} and above {thing} on white"
    for caption in [longest, *(loose_caption(drawn, rng)[0] for drawn in scenes(300))]:
        row = tokens([caption])[0]
        assert unknown not in row and len(row) == MAX_TOKENS
        assert row[-1] == vocabulary()["<end>"], caption
    assert unknown in tokens(["a red unicorn"])[0]


def test_training_never_shows_what_is_held_out():
    assert len(held_out()) == 3 * len(OBJECTS)
    for index in range(2000):
        for thing in scene(index).things:
            assert (thing.name, thing.colour, thing.texture) not in held_out()
    for drawn in scenes(50, outside=True):
        assert all((t.name, t.colour, t.texture) in held_out() for t in drawn.things)


def test_training_scenes_are_fixed_and_others_lie_beyond():
    scene.cache_clear()
    first = scene(3)
    scene.cache_clear()
    assert scene(3) == first and scene(SCENES) != first


def test_hues_without_a_name_are_shown_and_names_are_ranges():
    assert [colour_name(hue_of(colour)) for colour in COLOURS] == list(COLOURS)
    assert colour_name(359) == "red" and colour_name(12) == "red" and colour_name(13) == ""
    things = [thing for drawn in scenes(600) for thing in drawn.things]
    assert 0.05 < np.mean([not thing.colour for thing in things]) < 0.25
    assert np.allclose(rgb_of(22.5), (np.array(COLOURS["red"]) + COLOURS["orange"]) / 2)
    assert "  " not in Scene((Thing("ball", 22.5),), "white").caption


def test_things_stay_apart_and_inside_and_relations_hold():
    for drawn in scenes(600):
        for i, a in enumerate(drawn.things):
            assert a.size / 2 + 4 <= min(a.x, a.y, SIZE - a.x, SIZE - a.y), drawn.caption
            for b in drawn.things[:i]:
                assert max(abs(a.x - b.x), abs(a.y - b.y)) > (a.size + b.size) / 2 + 5, drawn.caption
        if drawn.relation:
            a, b = drawn.things[:2]
            assert a.x < b.x if drawn.relation == "left of" else a.y < b.y
            assert len(drawn.things) < 3 or a.y < drawn.things[2].y


def test_the_same_scene_is_the_same_picture():
    drawn = scenes(1)[0]
    assert np.array_equal(render(drawn), render(drawn))
    assert render(drawn).shape == (SIZE, SIZE, 3) and render(drawn).dtype == np.uint8


@pytest.mark.parametrize("name", OBJECTS)
def test_every_object_is_read_in_every_colour_texture_and_place(name):
    rng = np.random.default_rng(OBJECTS.index(name))
    for colour in COLOURS:
        for texture in TEXTURES:
            background = str(rng.choice(BACKGROUNDS))
            wanted = Scene(
                (
                    Thing(
                        name, hue_of(colour), texture, size=float(rng.choice((40, 56, 85))), flip=bool(rng.integers(2))
                    ),
                ),
                background,
            )
            assert judge(wanted, read(render(wanted)))["all"] == 1.0, wanted.caption


def test_readers_are_right_on_fresh_renders():
    wanted = scenes(300, seed=9)
    rows = [judge(drawn, read(render(drawn))) for drawn in wanted]
    for key, bar in dict.fromkeys(("object", "colour", "background", "count"), 0.99).items() | {
        ("texture", 0.97),
        ("relation", 0.97),
    }:
        assert np.mean([row[key] for row in rows if key in row]) >= bar, key


def test_readers_tell_hue_and_size():
    for drawn in scenes(40, seed=3, count=1):
        seen = read(render(drawn)).things[0]
        assert abs((seen.hue - drawn.things[0].hue + 180) % 360 - 180) < 6
        assert abs(seen.size - drawn.things[0].size) < 5


def test_readers_see_what_is_wrong():
    wanted = parse("a red ball left of a blue cube on white")
    right = Scene((Thing("ball", 0, x=33, y=70, size=44), Thing("cube", 225, x=95, y=70, size=44)), "white", "left of")
    assert judge(wanted, read(render(right)))["all"] == 1.0
    changes = {
        "object": (Thing("star", 0, x=33, y=70, size=44), right.things[1]),
        "colour": (Thing("ball", 135, x=33, y=70, size=44), right.things[1]),
        "texture": (Thing("ball", 0, "dotted", x=33, y=70, size=44), right.things[1]),
        "relation": (Thing("ball", 0, x=95, y=70, size=44), Thing("cube", 225, x=33, y=70, size=44)),
        "count": right.things[:1],
    }
    for key, things in changes.items():
        row = judge(wanted, read(render(Scene(things, "white"))))
        assert row[key] < 1.0 and row["all"] == 0.0 and row["background"] == 1.0, key
    assert judge(wanted, read(render(Scene(right.things, "ice"))))["background"] == 0.0


def test_the_judge_counts_each_thing_once():
    wanted = parse("two red balls on white")
    one = Reading((Thing("ball", 0, x=40),), (1.0,), "white")
    assert judge(wanted, one)["object"] == 0.5 and judge(wanted, one)["count"] == 0.0
    assert "relation" not in judge(wanted, one)
    assert judge(parse("a ball on white"), one)["all"] == 1.0  # no colour asked, none judged


def test_sizes_are_judged_where_they_are_named():
    wanted = parse("a small red ball on white")
    assert judge(wanted, Reading((Thing("ball", 0, size=SMALL),), (1.0,), "white"))["size"] == 1.0
    assert judge(wanted, Reading((Thing("ball", 0, size=LARGE),), (1.0,), "white"))["size"] == 0.0
    assert "size" not in judge(parse("a red ball on white"), Reading((), (), "white"))


def test_an_unreadable_picture_has_no_things():
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    assert read(noise).things == ()
    assert read(np.full((SIZE, SIZE, 3), 40, np.uint8)) == Reading((), (), "black")
    with pytest.raises(ValueError, match="uint8"):
        read(np.zeros((64, 64, 3), np.uint8))
    assert nearest_colour(350) == "red"


def test_frechet_distance_of_gaussians():
    """Two Gaussians with the same covariance S and means m apart are |m|² apart; with S and 4S, tr(S)(1 - 2)² more."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((200_000, 3)) * (1.0, 0.5, 2.0)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet(a, a + (3, 0, 4)) == pytest.approx(25, rel=1e-9)
    assert frechet(a, 2 * a) == pytest.approx(np.trace(np.cov(a.T)) + np.square(a.mean(0)).sum(), rel=1e-9)


def test_features_and_diversity_tell_sets_apart():
    some, others = (np.stack([render(s) for s in scenes(150, seed)]) for seed in (1, 2))
    cubes = np.stack([render(Scene((Thing("cube", x=s.things[0].x),), "white")) for s in scenes(150, 4, count=1)])
    real, same, collapsed = (features(pictures) for pictures in (some, others, cubes))
    assert np.array_equal(real, features(some))
    assert frechet(real, same) < 0.2 * frechet(real, collapsed)
    assert diversity(real, same)["recall"] > 0.6 > diversity(real, collapsed)["recall"]
    assert diversity(real, same)["coverage"] > 0.6 > diversity(real, collapsed)["coverage"]
