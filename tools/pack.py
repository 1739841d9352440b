"""The pack in a script: `load_pack()`, then `from guidance_lab.nodes... import ...`."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def load_pack() -> None:
    """Imports the pack as ComfyUI does, under the name `guidance_lab`; ComfyUI has to be importable."""
    if "guidance_lab" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location("guidance_lab", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    pack = sys.modules["guidance_lab"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
