"""Reading files of weights without running code, and CLIPs of transformers under open_clip's names."""

from pathlib import Path

import torch

from ...weight_files import read_tensors
from ...weight_files.clip import open_clip_names


def read_weights(path: str | Path, whole: bool = True) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file or of a PyTorch state dict, on the CPU. Nothing is unpickled but tensors.

    Wrappers of training checkpoints (`state_dict`, `module.`) are taken off. whole: whole numbers (counters,
    positions) may be among them. Raises ValueError on a TorchScript archive, on a file that holds more than tensors,
    and on a broken file.
    """
    return read_tensors(path, inside=("state_dict",), whole=whole).tensors


def as_open_clip(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A CLIPModel of transformers under open_clip's names; anything else comes back unchanged. ValueError when a part
    is missing.
    """
    if not {"vision_model.embeddings.class_embedding", "text_model.embeddings.token_embedding.weight"} <= set(weights):
        return weights
    try:
        with torch.inference_mode(False):  # what is joined here has to become parameters
            return open_clip_names(weights)
    except KeyError as error:
        raise ValueError(
            f"This CLIP of transformers has no {error.args[0]}: use the whole file, with both towers and both "
            f"projections."
        ) from None
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"The weights of this CLIP of transformers do not fit together ({' '.join(str(error).split())[:160]}): "
            f"download the file again."
        ) from None
