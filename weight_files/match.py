"""Whether the weights of a file are those of the network that their own sizes describe."""

from collections.abc import Mapping

import torch

from .read import finite


def check_tensors(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], kind: str) -> None:
    """Raises ValueError at the first difference in names or shapes, and at values that are not finite.

    kind: what the file should hold, such as "GALIP generator"; its last word is what messages call it.
    """
    part = kind.split()[-1]
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing:
        raise ValueError(
            f"{len(missing)} tensors of the {part} are missing, first '{missing[0]}'; the file is incomplete"
        )
    if unexpected:
        raise ValueError(f"{len(unexpected)} tensors do not belong to a {kind}, first '{unexpected[0]}'")
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            raise ValueError(
                f"'{key}' has shape {list(tensor.shape)}, but the other sizes of this {part} ask for "
                f"{list(expected[key].shape)}"
            )
        if not finite(tensor):
            raise ValueError(f"'{key}' contains values that are not finite (NaN or infinity); the file is broken")
