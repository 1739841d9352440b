"""Formats whose keys name the layers: kohya's (SD1, SD2) and our own (every architecture)."""

import json

import torch

from .embedding import XTI, checked_rows, encoders_for
from .layers import LayerTable, named_table, table_for

OWN_FORMAT = "guidance-lab-xti-1"
MAX_LAYERS = 1000


def is_kohya(data: dict) -> bool:
    """kohya-ss/sd-scripts train_textual_inversion_XTI: the 16 layer names, each [n, 768] or [n, 1024]."""
    return not set(data).isdisjoint(named_table("sd1").names)


def read_kohya(data: dict, metadata: dict[str, str]) -> XTI:
    """kohya's 16 tensors by name; the order in the file does not matter.

    Raises ValueError for uneven shapes, and (as kohya does) unless the keys are exactly the 16 names.
    """
    rows = {name: checked_rows(tensor, f"layer {name}") for name, tensor in data.items()}
    shapes = {tuple(tensor.shape) for tensor in rows.values()}
    if len(shapes) > 1:
        raise ValueError(
            f"The layers have different shapes ({', '.join(map(str, sorted(shapes)))}); kohya's files have one."
        )
    encoders = encoders_for(shapes.pop()[1])
    table = named_table("sd2" if "clip_h" in encoders else "sd1")
    return XTI(table, rows, "kohya", encoders, metadata=metadata)


def is_own(data: dict, metadata: dict[str, str]) -> bool:
    """Our own format says so in its metadata, or has SDXL's keys."""
    return metadata.get("format") == OWN_FORMAT or (
        bool(data) and all(key.endswith((".clip_l", ".clip_g")) for key in data)
    )


def read_own(data: dict, metadata: dict[str, str]) -> XTI:
    """Our own format: one tensor [n, width] per layer and text encoder under the key "LAYER.ENCODER", e.g.
    "IN08.clip_g".

    The layer table is the metadata entry "layer_table" (the JSON of LayerTable.recipe); a file without it is taken for
    SDXL with 11 layers. n may differ between layers but not between the encoders of one layer. Raises ValueError for
    anything else.
    """
    table = _stored_table(metadata["layer_table"]) if "layer_table" in metadata else named_table("sdxl")
    by_layer: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in data.items():
        layer, _, encoder = key.rpartition(".")
        by_layer.setdefault(layer, {})[encoder] = checked_rows(tensor, f'"{key}"')
    first = next(iter(by_layer.values()))
    encoders = {encoder: first[encoder].shape[1] for encoder in sorted(first, key=_column_order)}
    layers = {}
    for layer, parts in by_layer.items():
        if set(parts) != set(encoders):
            raise ValueError(
                f"Layer {layer} has tokens for {' and '.join(parts)} but others for {' and '.join(encoders)}."
            )
        if len({rows.shape[0] for rows in parts.values()}) > 1:
            raise ValueError(f"Layer {layer} has a different number of vectors for each text encoder.")
        for encoder, width in encoders.items():
            checked_rows(parts[encoder], f'"{layer}.{encoder}"', width)
        layers[layer] = torch.cat([parts[encoder] for encoder in encoders], dim=1)
    return XTI(table, layers, "guidance lab", encoders, metadata=metadata)


def _column_order(encoder: str) -> tuple:
    return ("clip_l", "clip_g", encoder).index(encoder), encoder  # SDXL's context has CLIP-L's channels first


def _stored_table(recipe: str) -> LayerTable:
    """The table that a file says it was learned for, when it is one of a network that can exist: at most 4 levels of 16
    blocks, 64 transformer blocks each.
    """
    try:
        config = json.loads(recipe) if len(recipe) <= 10_000 else None
        if not isinstance(config, dict) or not all(map(_small, config.values())):
            raise ValueError
        table = table_for(config)
        if len(table) > MAX_LAYERS:
            raise ValueError
        return table
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise ValueError("The layer table in the file's metadata is not readable.") from None


def _small(value: object) -> bool:
    if isinstance(value, list):
        return len(value) <= 128 and all(type(item) is int and abs(item) <= 64 for item in value)
    return isinstance(value, (str, bool)) or (type(value) is int and abs(value) <= 65_536)


def write(xti: XTI, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of an XTI file.

    Sixteen layers with one encoder and equal n become kohya's exact keys and shapes; everything else our own format.
    """
    metadata = {**xti.metadata, "layer_table": xti.table.recipe, "source": xti.source}
    one_shape = len({rows.shape for rows in xti.layers.values()}) == 1
    if len(xti.encoders) == 1 and one_shape and xti.table.names == named_table("sd1").names:
        metadata["format"] = "kohya-xti"
        return {name: rows.to(dtype).contiguous() for name, rows in xti.layers.items()}, metadata
    metadata["format"] = OWN_FORMAT
    tensors = {}
    for encoder in xti.encoders:
        for name, rows in xti.of_encoder(encoder).items():
            tensors[f"{name}.{encoder}"] = rows.to(dtype).contiguous()
    return tensors, metadata
