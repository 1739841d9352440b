"""Without the one extra package each node that needs it says so in one sentence, and the others work."""

import sys

import folder_paths
import objective_tools
import pytest
import safetensors.torch


@pytest.fixture
def without_open_clip(monkeypatch):
    for name in [name for name in sys.modules if name == "open_clip" or name.startswith("open_clip.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "open_clip", None)


def test_the_shapes_scorer_says_so(without_open_clip, run_node):
    scorer = run_node("GuidanceLab_ShapesDemoModels")[5]
    with pytest.raises(ValueError, match="needs the Python package open_clip_torch: install it into ComfyUI's own"):
        run_node("GuidanceLab_ObjectiveCLIPText", scorer=scorer, text="a red star")


def test_the_scorer_loader_says_so(tmp_path, run_node, request):
    safetensors.torch.save_file(objective_tools.tiny_clip().state_dict(), tmp_path / "clip.safetensors")
    folder_paths.add_model_folder_path("clip_vision", str(tmp_path))
    request.getfixturevalue("without_open_clip")
    try:
        with pytest.raises(ValueError, match="needs the Python package open_clip_torch: install it"):
            run_node("GuidanceLab_CLIPScorerLoader", source={"source": "file", "file": "clip.safetensors"})
    finally:
        folder_paths.folder_names_and_paths["clip_vision"][0].remove(str(tmp_path))


def test_nodes_without_it_work(without_open_clip, pack_nodes):
    assert len(pack_nodes) > 20 and all(node.GET_SCHEMA() for node in pack_nodes.values())
