"""The recorded numbers of the official GLIDE code (fixtures/glide_model), and the formula that its weights were made
of.

Names and shapes of the four small networks are recorded; every weight is a hash of its name and index, so none need to
be shipped.
"""

import gzip
import json
import math
from functools import cache
from pathlib import Path

import torch
from galip_formula import formula
from safetensors.torch import load_file

FOLDER = Path(__file__).resolve().parent / "fixtures" / "glide_model"
VARIANTS = ("base", "upsample", "base-inpaint", "upsample-inpaint")
NORMS = ("ln_1", "ln_2", "final_ln", "norm", "in_layers.0", "out_layers.0", "out.0")


@cache
def facts() -> dict:
    return json.loads((FOLDER / "golden.json").read_text(encoding="utf-8"))


@cache
def tensors() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "golden.safetensors")


@cache
def released() -> dict[str, dict[str, list[int]]]:
    """Variant → names and shapes of the network that OpenAI released."""
    recorded = json.loads(gzip.decompress((FOLDER / "released.json.gz").read_bytes()))
    first = "input_blocks.0.0.weight"  # the inpaint networks differ in this one
    return {
        variant: {**recorded[variant.removesuffix("-inpaint")], first: recorded[variant][first]} for variant in VARIANTS
    }


def weight(variant: str, key: str, shape: list[int]) -> torch.Tensor:
    """The weight `key` of the recorded network `variant`; large enough that no part of it is silent."""
    owner, kind = key.rpartition(".")[::2]
    fan = math.prod(shape[1:])
    std, mean = 1 / math.sqrt(fan), 0.0
    if any(owner == norm or owner.endswith("." + norm) for norm in NORMS):
        std, mean = 0.1, 1.0 if kind == "weight" else 0.0
    elif key in ("token_embedding.weight", "positional_embedding", "padding_embedding"):
        std = 0.5
    elif kind == "bias":
        std = 0.1
    elif key.endswith(("qkv.weight", "encoder_kv.weight")):
        std = 1.5 / math.sqrt(fan)
    elif key.endswith(("out_layers.3.weight", "proj_out.weight")):
        std = 0.7 / math.sqrt(fan)
    return formula(f"glide_{variant}.{key}", tuple(shape), std, mean)


@cache
def state_dict(variant: str) -> dict[str, torch.Tensor]:
    """The whole recorded network. Not to be changed: tests share it."""
    return {key: weight(variant, key, shape) for key, shape in facts()["state_dict"][variant].items()}


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2 error."""
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


def slope(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The analytic cond_fn of the recorded runs."""
    return -torch.tanh(2 * x) * (1 + t.float()[:, None, None, None] / 500)
