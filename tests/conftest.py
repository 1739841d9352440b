"""Shared by every layer: import paths, one marker per layer, seeded random numbers."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("unit", "host", "server", "canvas")

# The repository goes to the END of the path: ComfyUI has top-level modules with our names (`nodes`, `tests`) and they must win.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT] + [str(ROOT), str(ROOT / "tests")]


def pytest_configure(config: pytest.Config) -> None:
    for layer in LAYERS:
        config.addinivalue_line("markers", f"{layer}: a test of the {layer} layer (set by its folder)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        layer = item.path.relative_to(ROOT / "tests").parts[0]
        if layer in LAYERS:
            item.add_marker(layer)


@pytest.fixture
def generator() -> torch.Generator:
    """A CPU generator with a fixed seed; the global random state stays untouched."""
    return torch.Generator().manual_seed(0)
