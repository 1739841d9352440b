"""Files of weights that somebody else made: read without running anything in them, within limits, and written whole or
not at all. PyTorch and safetensors only.
"""

from .match import check_tensors
from .read import Tree, Weights, finite, read_tensors, read_tree, tensors_of, unwrapped
from .write import free_name, save_tensors

__all__ = [
    "Tree",
    "Weights",
    "check_tensors",
    "finite",
    "free_name",
    "read_tensors",
    "read_tree",
    "save_tensors",
    "tensors_of",
    "unwrapped",
]
