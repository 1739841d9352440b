"""What a release says about itself is true: oldest versions, what the archive leaves out, whose words it uses."""

import ast
import importlib.metadata
import re
import subprocess
from pathlib import Path

import pathspec
import pytest

from tools.host import RELEASES
from tools.layout import ROOT, modules

PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def test_the_oldest_comfyui_is_one_that_the_tests_can_run_on():
    declared = re.search(r'requires-comfyui = ">=([\d.]+)"', PROJECT)[1]
    refused = re.search(r"OLDEST_COMFYUI = \((.*)\)", (ROOT / "__init__.py").read_text(encoding="utf-8"))[1]
    assert numbers(declared) == numbers(refused) == min(map(numbers, RELEASES))


def test_requirements_are_those_of_the_project():
    """All but the frontend, which ComfyUI itself pins and a node pack does not install."""
    declared = re.findall(r'"([^"]+)"', re.search(r"^dependencies = \[(.*)\]", PROJECT, re.M)[1])
    assert declared.pop() == "comfyui-frontend-package>=1.47.0"
    assert declared == (ROOT / "requirements.txt").read_text(encoding="utf-8").split()


def test_the_frontend_of_the_tests_is_not_below_the_floor():
    """But in the oldest ComfyUI, whose own one is older; the README says what to do there."""
    try:
        from comfyui_version import __version__ as host
    except ImportError:
        pytest.skip("ComfyUI is not on the path")
    if numbers(host) >= (0, 30):
        assert numbers(importlib.metadata.version("comfyui-frontend-package")) >= (1, 47)
    assert "frontend 1.47 or newer" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_archive_leaves_out_pictures_of_the_docs_and_training_scripts():
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    left_out = pathspec.PathSpec.from_lines("gitignore", lines)
    files = [
        path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file() and ".git" not in path.parts
    ]
    ships = set(left_out.match_files(files, negate=True))
    assert not [name for name in ships if name.startswith(("experiments/", "tests/", "tools/", ".ci/"))]
    assert not [name for name in ships if name.startswith("docs/") and name.endswith(".png")]
    assert {"NOTICE.md", "LICENSE", "SECURITY.md", "requirements.txt", "nodes/__init__.py"} <= ships
    assert any(name.startswith("shapes/") and name.endswith(".safetensors") for name in ships)


def test_a_packed_archive_is_not_committed():
    assert "node.zip" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    if (ROOT / ".git").exists():
        assert subprocess.run(["git", "check-ignore", "-q", "node.zip"], cwd=ROOT).returncode == 0


def test_words_and_tables_of_others_are_named():
    notice = (ROOT / "NOTICE.md").read_text(encoding="utf-8")
    for path in ("xti/captions.py", "glide/vocab.bpe.gz", "glide/LICENSE.vocab"):
        assert f"`{path}`" in notice and (ROOT / path).is_file()
    assert "Textual Inversion" in notice and "CLIP" in notice


@pytest.mark.parametrize("path", [path for path in modules() if "nodes" in path.parts], ids=lambda path: path.name)
def test_no_family_of_models_is_imported_with_the_nodes(path: Path):
    """A network of ComfyUI that is renamed costs one model, not the nodes: only what all UNets share is imported."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        for name in names:
            assert not name.startswith("comfy.ldm.") or name.startswith("comfy.ldm.modules."), f"{path}: {name}"


def test_the_changelog_begins_with_this_version():
    version = re.search(r'^version = "(.*)"', PROJECT, re.M)[1]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", changes, re.M)[0] == version
