"""Runs a module of the repository on ComfyUI's libraries: `python tools/with_comfy.py COMFYUI MODULE [arguments]`.

ComfyUI decides for a GPU or the CPU while it is imported, so that choice is made here, before any script imports it.
"""

import runpy
import sys
from pathlib import Path


def main() -> None:
    comfyui, module, *arguments = sys.argv[1:]
    sys.path[0] = comfyui
    sys.path.append(str(Path(__file__).resolve().parents[1]))  # last: ComfyUI has a module `nodes`, and so have we
    import torch
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
