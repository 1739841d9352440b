"""Shared by every layer: import paths, one marker per layer, and the headless server of the server and canvas
layers.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("unit", "host", "server", "canvas")
# Folder under models/ → the fixture that is a file for it, or that makes one of its name.
TINY_FILES = {
    "checkpoints": "tiny_checkpoint_file", "galip": "tiny_galip_file", "text_encoders": "tiny_clip_file",
    "clip_vision": "tiny_scorer_file", "classifiers": "tiny_scorer_file", "captioners": "tiny_scorer_file",
    "diffusion_models": "tiny_glide_file", "aesthetic": "tiny_scorer_file",
}  # fmt: skip

# The repository goes to the END of the path: ComfyUI has top-level modules with our names (`nodes`, `tests`) and they
# must win.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT] + [str(ROOT), str(ROOT / "tests")]

from tools.pack import load_pack  # noqa: E402

load_pack()

import tiny_galip  # noqa: E402
import tiny_glide  # noqa: E402
import tiny_scorers  # noqa: E402

from tools.client import needed_files  # noqa: E402
from tools.host import Host, read_version  # noqa: E402
from tools.server import Server, running_server  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-object-info", action="store_true", help="write tests/object_info.json from the running server"
    )
    parser.addoption("--update-api-prompts", action="store_true", help="write docs/api from example_workflows")


def pytest_configure(config: pytest.Config) -> None:
    for layer in LAYERS:
        config.addinivalue_line("markers", f"{layer}: a test of the {layer} layer (set by its folder)")
    config.addinivalue_line("markers", "side(cells): height and width of the latents of these tests, 8 without it")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """With several processes (`-n`): file by file to whoever is free, all tests of the one server to one of them."""
    from xdist.scheduler import LoadFileScheduling

    class FilesAndServer(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "server" if nodeid.startswith(("tests/server/", "tests/canvas/")) else super()._split_scope(nodeid)

    return FilesAndServer(config, log)


def _layer(item: pytest.Item) -> str:
    return item.path.relative_to(ROOT / "tests").parts[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(_layer(item))
    items.sort(key=lambda item: LAYERS.index(_layer(item)))  # what is quick to fail first


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "example" in metafunc.fixturenames:
        paths = sorted((ROOT / "example_workflows").glob("*.json"))
        metafunc.parametrize("example", paths, ids=[path.stem for path in paths])


@pytest.fixture
def generator() -> torch.Generator:
    """A CPU generator with a fixed seed; the global random state stays untouched."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The ComfyUI folder that `python dev.py test` found."""
    if "COMFYUI_PATH" not in os.environ:
        pytest.fail("this layer needs ComfyUI: run `python dev.py test`, or set COMFYUI_PATH to its folder")
    return Path(os.environ["COMFYUI_PATH"])


@pytest.fixture(scope="session")
def server(comfyui):
    """One headless ComfyUI with only this pack, for the whole run."""
    with running_server(Host(comfyui, Path(sys.executable), read_version(comfyui)), cpu=True) as running:
        yield running


@pytest.fixture(scope="session")
def object_info(server) -> dict:
    """Node id → V1 information, of this pack's nodes and ComfyUI's."""
    return server.get("/object_info")


@pytest.fixture(scope="session")
def tiny_checkpoint_file(comfyui, tmp_path_factory) -> Path:
    """A whole SD1.5 checkpoint of random weights on disk, made in a process of its own."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    paths = os.pathsep.join((str(comfyui), str(ROOT / "tests")))
    subprocess.run(
        [sys.executable, ROOT / "tests" / "tiny_checkpoint.py", path],
        check=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    return path


@pytest.fixture(scope="session")
def tiny_galip_file(tmp_path_factory) -> Path:
    """A GALIP checkpoint of random weights in the official layout; it draws 224 pixels."""
    path = tmp_path_factory.mktemp("galip") / "tiny.pth"
    tiny_galip.write_generator(path)
    return path


@pytest.fixture(scope="session")
def tiny_clip_file(tmp_path_factory) -> Path:
    """The CLIP that belongs to `tiny_galip_file`."""
    path = tmp_path_factory.mktemp("clip") / "tiny.safetensors"
    tiny_galip.write_clip(path)
    return path


@pytest.fixture(scope="session")
def tiny_scorer_file(tmp_path_factory):
    """`tiny_scorer_file(name)` → a file of the network that goes by that name under models/."""
    folder = tmp_path_factory.mktemp("scorers")
    return lambda name: tiny_scorers.write(folder, name)


@pytest.fixture(scope="session")
def tiny_glide_file(tmp_path_factory):
    """`tiny_glide_file(name)` → a file of the GLIDE network that goes by that name under models/."""
    folder = tmp_path_factory.mktemp("glide")
    return lambda name: tiny_glide.write(folder, name)


@pytest.fixture
def workflow(example, server, request) -> dict:
    """The UI JSON of an example workflow.

    Files it needs from the user are put into the server with tiny random weights, and its picture is then made small:
    random weights at full size would show nothing and cost minutes.
    """
    content = json.loads(example.read_text(encoding="utf-8"))
    if needed_files(content):
        for node in content["nodes"]:
            if node["type"] == "EmptyLatentImage":
                node["widgets_values"][:2] = [64, 64]
            if node["type"] == "ImageScale":
                node["widgets_values"][1:3] = [64, 64]
            if node["type"] == "KSampler":
                node["widgets_values"][2] = 3  # steps
            if node["type"] == "GuidanceLab_GLIDEScheduler":
                node["widgets_values"][0] = "3"
            if node["type"] == "GuidanceLab_GLIDEUpsample":
                node["widgets_values"][:2] = [64, 64]
            if node["type"] == "GuidanceLab_GLIDEInpaint":
                node["widgets_values"][:2] = [64, 64]
    for name in needed_files(content):
        kind = TINY_FILES.get(name.split("/")[0])
        assert kind, f"{example.name} needs {name}: the tests can make files for {', '.join(TINY_FILES)} only"
        made = request.getfixturevalue(kind)
        _link(made(name) if callable(made) else made, server, name)
    return content


def _link(source: Path, server: Server, name: str) -> None:
    target = server.base / "models" / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, target)
