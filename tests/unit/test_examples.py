"""The examples' workflows are what tools/examples says, their notes carry the figures of the evidence pages, and the
placing and routing does what it promises.
"""

import itertools
import json
import re

import pytest
from conftest import ROOT

from tools.examples.all import EXAMPLES_BY_NAME
from tools.examples.evidence import share
from tools.examples.layout import Box, place
from tools.examples.links import Link, blocked, curve, drawn, route
from tools.examples.plan import Example

FOLDER = ROOT / "example_workflows"
AGAIN = "written otherwise by now: python dev.py example"


def saved(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def test_every_workflow_has_its_example_and_its_card():
    assert {path.stem for path in FOLDER.glob("*.json")} == set(EXAMPLES_BY_NAME)
    assert {path.stem for path in FOLDER.glob("*.jpg")} == set(EXAMPLES_BY_NAME)


@pytest.mark.parametrize("name", EXAMPLES_BY_NAME)
def test_the_workflow_is_the_example(name):
    example, workflow = EXAMPLES_BY_NAME[name], saved(name)
    nodes = {str(node["id"]): node for node in workflow["nodes"]}
    notes = [node["widgets_values"][0] for node in nodes.values() if node["type"] == "MarkdownNote"]
    assert notes == [example.note], AGAIN
    classes = {key: node["type"] for key, node in nodes.items() if node["type"] != "MarkdownNote"}
    assert classes == {key: entry["class_type"] for key, entry in example.prompt.items()}, AGAIN
    assert [group["title"] for group in workflow["groups"]] == [
        example.groups[key][0] for column in example.columns for key in column
    ]
    assert len({group["color"] for group in workflow["groups"]}) >= min(3, len(workflow["groups"]))
    assert workflow["extra"].get("guidance_lab", {}).get("needs", []) == [file.path for file in example.files]


@pytest.mark.parametrize("name", [name for name, example in EXAMPLES_BY_NAME.items() if example.files])
def test_what_the_user_must_bring_is_said(name):
    example, workflow = EXAMPLES_BY_NAME[name], saved(name)
    assert example.needs
    models = [model for node in workflow["nodes"] for model in node["properties"].get("models", [])]
    single = [file for file in example.files if file.url and file.path.count("/") == 1]
    assert {(model["directory"], model["name"]) for model in models} == {(file.folder, file.name) for file in single}
    for file in example.files:
        assert file.path.rsplit("/", 1)[0] in example.note
        assert file.path.rsplit("/", 1)[1] in example.note
    assert all(re.match(r"https://", model["url"]) for model in models)


def test_notes_say_what_to_try_and_how_often():
    for example in EXAMPLES_BY_NAME.values():
        assert "**Try:**" in example.note, example.name
        assert "試す" in example.note, example.name
        assert re.search(r"How often is it|there to check", example.note), example.name


def test_cards_differ():
    cards = [path.read_bytes() for path in FOLDER.glob("*.jpg")]
    assert len(set(cards)) == len(cards)


def test_figures_come_from_the_tables():
    assert share("autoguidance", "ag early 2.0", "complex all") == "38 of 100"
    assert share("xti", "11", "hue") == "0 of 100"
    with pytest.raises(KeyError, match="no row 'no such setting'"):
        share("autoguidance", "no such setting", "complex all")


def two_groups() -> tuple[Example, dict]:
    example = Example("x", "### Note", columns=[["models"], ["without", "with"]])
    for group, column in itertools.product(("models", "without", "with"), (0, 0, 1)):
        example.node("KSampler", at=(group, column))
    return example, {name: (270.0, 262.0) for name in example.places}


def test_nothing_lies_over_another():
    layout = place(*two_groups())
    for boxes in (layout.nodes, layout.groups):
        for a, b in itertools.combinations(boxes.values(), 2):
            assert a.right <= b.x or b.right <= a.x or a.bottom <= b.y or b.bottom <= a.y
    for name, place_ in two_groups()[0].places.items():
        node, group = layout.nodes[name], layout.groups[place_.group]
        assert group.x < node.x and node.right < group.right and group.y < node.y and node.bottom < group.bottom


def test_a_link_is_led_around_what_is_in_its_way_and_no_other():
    boxes = {"a": Box(0, 0, 100, 100), "wall": Box(200, -200, 100, 500), "b": Box(400, 0, 100, 100)}
    ends = ((100.0, 50.0), (400.0, 50.0))
    link = Link(1, "a", "b", *ends, ("a", 0), ends)
    assert blocked(curve(*ends), [boxes["wall"]], 0)
    route([link], boxes, Box(-50, -250, 650, 600))
    assert link.points
    way = drawn([link.start, *link.points, link.end]).reshape(-1, 2)
    assert not blocked(way, [boxes["wall"]], 0)
    free = Link(2, "a", "b", *ends, ("a", 0), ends)
    route([free], {name: box for name, box in boxes.items() if name != "wall"}, Box(-50, -250, 650, 600))
    assert free.points == []
