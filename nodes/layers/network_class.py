"""What a diffusion network is, by the name of its class.

By name, because importing the classes of all families would cost every node here when ComfyUI renames one of them.
"""

import torch


def class_name(network: torch.nn.Module) -> str:
    """Module and name of the exact class, below `comfy.ldm`: "wan.model.WanModel"."""
    kind = type(network)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("comfy.ldm.")
