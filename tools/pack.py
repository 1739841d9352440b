"""The checkout as the package `guidance_lab`: the one name under which scripts and tests import its modules.

A folder of any name can hold the pack, and ComfyUI has top-level modules of our names (`nodes`), so no module of the
pack is imported by the folder it lies in. Importing the package itself imports no ComfyUI; its `nodes`, `shapes` and
most of `experiments` do.
"""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def load_pack() -> None:
    """Makes `import guidance_lab` work. Calling it again does nothing."""
    if "guidance_lab" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "guidance_lab", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    pack = sys.modules["guidance_lab"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
