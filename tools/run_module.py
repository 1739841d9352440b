"""Runs a module with ComfyUI, then this repository, on the path: `tools/run_module.py COMFYUI MODULE [arguments]`.

The path is set here and not by PYTHONPATH, which the interpreter of ComfyUI's portable Windows build ignores. Modules
of the pack (`guidance_lab...`) draw and train: ComfyUI decides for a GPU or the CPU while it is imported, so that
choice is made here, before any of them imports it.
"""

import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    comfyui, module, *arguments = sys.argv[1:]
    paths = [comfyui, str(ROOT)]  # in this order: ComfyUI has a module `nodes`, and so have we
    sys.path[:] = paths + [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT / "tools"]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # for the processes that tests start
    if module.startswith("guidance_lab."):
        import torch
        from comfy.cli_args import args

        from tools.pack import load_pack

        args.cpu = not torch.cuda.is_available()
        load_pack()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
