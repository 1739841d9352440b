"""The snapshot comparison sees every change that breaks a saved workflow, and lets the harmless ones pass."""

import copy

import pytest
from schema_snapshot import breaks, snapshot

GAIN = {"key": "gain", "inputs": {"required": {"gain": ["FLOAT", {"default": 0.9}]}}}
INFO = {
    "GuidanceLab_A": {
        "input": {
            "required": {
                "model": ["MODEL", {"tooltip": "x"}],
                "weight": ["FLOAT", {"default": 2.0, "min": 0.0}],
                "method": [["skip", "blur"], {"default": "skip"}],
                "kind": ["COMFY_DYNAMICCOMBO_V3", {"options": [GAIN]}],
            },
            "optional": {"start": ["FLOAT", {"default": 0.0}], "end": ["FLOAT", {"default": 1.0}]},
        },
        "output": ["MODEL", "TRACE"],
        "output_name": ["model", "trace"],
    },
    "KSampler": {"input": {"required": {}}, "output": [], "output_name": []},
}


def changed(change):
    info = copy.deepcopy(INFO)
    change(info["GuidanceLab_A"])
    return breaks(snapshot(INFO), snapshot(info))


def reorder(inputs):
    inputs.update({name: inputs.pop(name) for name in reversed(list(inputs))})


BREAKING = {
    "input removed": lambda node: node["input"]["required"].pop("weight"),
    "input renamed": lambda node: node["input"]["required"].update(w=node["input"]["required"].pop("weight")),
    "required reordered": lambda node: reorder(node["input"]["required"]),
    "optional reordered": lambda node: reorder(node["input"]["optional"]),
    "type": lambda node: node["input"]["required"].update(weight=["INT", {"default": 2.0}]),
    "default": lambda node: node["input"]["required"].update(weight=["FLOAT", {"default": 1.5}]),
    "optional became required": lambda node: node["input"]["required"].update(end=node["input"]["optional"].pop("end")),
    "new required": lambda node: node["input"]["required"].update(new=["FLOAT", {"default": 0.0}]),
    "inserted optional": lambda node: node["input"].update(
        optional={"new": ["FLOAT", {}], **node["input"]["optional"]}
    ),
    "option removed": lambda node: node["input"]["required"]["method"][0].pop(),
    "option renamed": lambda node: node["input"]["required"]["method"].__setitem__(0, ["skip", "blurred"]),
    "options reordered": lambda node: node["input"]["required"]["method"][0].reverse(),
    "dynamic option renamed": lambda node: node["input"]["required"]["kind"][1]["options"][0].update(key="amount"),
    "nested default": lambda node: node["input"]["required"]["kind"][1]["options"][0]["inputs"]["required"].update(
        gain=["FLOAT", {}]
    ),
    "output removed": lambda node: (node["output"].pop(), node["output_name"].pop()),
    "output renamed": lambda node: node["output_name"].__setitem__(0, "m"),
    "outputs reordered": lambda node: (node["output"].reverse(), node["output_name"].reverse()),
}
HARMLESS = {
    "nothing": lambda node: None,
    "tooltip": lambda node: node["input"]["required"].update(model=["MODEL", {"tooltip": "y"}]),
    "appended optional": lambda node: node["input"]["optional"].update(new=["FLOAT", {"default": 0.0}]),
    "appended option": lambda node: node["input"]["required"]["method"][0].append("shuffle"),
    "appended output": lambda node: (node["output"].append("IMAGE"), node["output_name"].append("plot")),
}


@pytest.mark.parametrize("name", BREAKING)
def test_breaking_change_is_seen(name):
    assert len(changed(BREAKING[name])) >= 1


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_change_passes(name):
    assert changed(HARMLESS[name]) == []


def test_removed_node_is_seen():
    assert breaks(snapshot(INFO), {}) == ["GuidanceLab_A: node removed"]
