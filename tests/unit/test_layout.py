"""Which folder may import which: `python -m tools.layout` prints the arrows that this test holds."""

import subprocess
import sys

import pytest

from tools import layout
from tools.layout import FACES, ON_COMFYUI, ROOT, arrows, folder_of, imports, level, modules

COMFYUI = ("comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "latent_preview", "server", "nodes")
FEWEST_PEOPLE_CAN_HOLD = 40  # arrows between families


def test_no_arrow_points_up_or_to_the_side():
    wrong = [arrow for arrow in arrows() if level(arrow[0]) >= level(arrow[1]) and arrow not in FACES]
    assert not wrong


def test_an_arrow_upwards_is_seen(monkeypatch):
    """The test above can fail: with the layers in reverse every arrow is wrong."""
    graph = arrows()
    monkeypatch.setattr(layout, "LAYERS", layout.LAYERS[::-1])
    assert all(level(here) >= level(there) for here, there in graph)


def test_families_know_each_other_by_their_faces_only():
    """A family takes from another what that one's `__init__` names, not its insides."""
    wrong = []
    for path in modules():
        here = folder_of(path.relative_to(ROOT).with_suffix("").parts)
        if not here.startswith("nodes/"):
            continue
        for module in imports(path):
            there = folder_of(module[1:]) if module[0] == "." else ""
            if there.startswith("nodes/") and there not in (here, "nodes/host") and len(module) > 3:
                wrong.append((path.relative_to(ROOT).as_posix(), ".".join(module[1:])))
    assert not wrong


def test_few_arrows_between_families():
    between = [arrow for arrow in arrows() if all(end.startswith("nodes/") for end in arrow)]
    assert 0 < len(between) <= FEWEST_PEOPLE_CAN_HOLD


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_comfyui_is_imported_where_the_readme_says(path):
    here = path.relative_to(ROOT).parts[0] if path.parent != ROOT else ""
    named = {module[0] for module in imports(path)} & set(COMFYUI)
    assert here in ON_COMFYUI or not named


def test_nothing_that_ships_imports_what_the_archive_leaves_out():
    left_out = {line.strip("/\n") for line in (ROOT / ".comfyignore").read_text().splitlines()}
    assert {"experiments", "tests", "tools"} <= left_out
    for path in modules():
        if path.relative_to(ROOT).parts[0] not in left_out:
            for module in imports(path):
                assert not set(module[:2]) & left_out, path


def test_the_command_prints_every_arrow():
    done = subprocess.run([sys.executable, "-m", "tools.layout"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == len(arrows()) + 1
