"""One headless ComfyUI with only this pack: every example workflow runs, schemas stay compatible, mistakes are
explained.
"""

import io
import json

import pytest
from conftest import ROOT
from PIL import Image
from schema_snapshot import breaks, snapshot

from tools.client import fetch_image, run_prompt, to_api
from tools.host import DevError

SNAPSHOT = ROOT / "tests" / "object_info.json"


def test_example_runs_to_images(workflow, server, object_info):
    images = run_prompt(server.url, to_api(workflow, object_info), timeout=600)
    assert images
    for image in images:
        picture = Image.open(io.BytesIO(fetch_image(server.url, image))).convert("RGB")
        assert any(low < high for low, high in picture.getextrema()), f"{image['filename']} is one flat colour"


def node_types(workflow: dict) -> set[str]:
    graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
    return {node["type"] for graph in graphs for node in graph["nodes"]}


def test_every_node_is_in_an_example(object_info):
    shown = set()
    for path in (ROOT / "example_workflows").glob("*.json"):
        shown |= node_types(json.loads(path.read_text(encoding="utf-8")))
    ours = {name for name in object_info if name.startswith("GuidanceLab_")}
    assert ours - shown == set()


def test_examples_have_a_picture(object_info):
    for path in (ROOT / "example_workflows").glob("*.json"):
        assert path.with_suffix(".jpg").is_file(), f"{path.stem}.jpg is missing"


def test_saved_workflows_keep_working(object_info, request):
    now = snapshot(object_info)
    if request.config.getoption("--update-object-info"):
        SNAPSHOT.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    recorded = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    assert breaks(recorded, now) == []
    assert now == recorded, "compatible, but not recorded yet: python dev.py test server --update-object-info"


def test_templates_and_translations_are_served(server):
    assert sorted(server.get("/workflow_templates").get("comfyui-guidance-lab", [])) == sorted(
        path.stem for path in (ROOT / "example_workflows").glob("*.json")
    )
    assert "Guidance Lab" in server.get("/i18n")["ja"]["nodeCategories"]


def test_unknown_node_is_refused(server):
    with pytest.raises(DevError, match="ComfyUI refused the prompt: Node 'Nothing' not found"):
        run_prompt(
            server.url, {"1": {"class_type": "GuidanceLab_Nothing", "inputs": {}, "_meta": {"title": "Nothing"}}}
        )


def test_bad_value_names_node_and_input(server):
    prompt = {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": -1, "height": 8, "batch_size": 1, "color": 0},
            "_meta": {"title": "x"},
        },
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}, "_meta": {"title": "y"}},
    }
    with pytest.raises(DevError, match=r"node 1 \(EmptyImage\): Value -1 smaller than min.*width"):
        run_prompt(server.url, prompt)


def test_failing_node_is_named(server):
    (server.base / "models" / "checkpoints" / "half.safetensors").write_bytes(b"half a file")
    prompt = {
        "1": {
            "class_type": "CheckpointLoaderSimple",
            "inputs": {"ckpt_name": "half.safetensors"},
            "_meta": {"title": "x"},
        },
        "2": {
            "class_type": "EmptyImage",
            "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0},
            "_meta": {"title": "y"},
        },
        "3": {"class_type": "VAEEncode", "inputs": {"pixels": ["2", 0], "vae": ["1", 2]}, "_meta": {"title": "e"}},
        "4": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["1", 2]}, "_meta": {"title": "d"}},
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}, "_meta": {"title": "p"}},
    }
    with pytest.raises(DevError, match=r"node 1 \(CheckpointLoaderSimple\) failed: .*header too large"):
        run_prompt(server.url, prompt, timeout=120)
