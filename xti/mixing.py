"""Combining XTIs: geometry of one concept with the appearance of another, blending, strength.

The inner layers carry geometry and the outer ones appearance (P+ project page; XTI section 8.1 as used by SVDiff, Han
et al. 2023).
"""

from collections.abc import Iterable

import torch

from .embedding import XTI
from .layers import LayerTable
from .selection import innermost

# Number of innermost layers that a preset takes from the geometry concept. In SD1: 2 = {IN08, MID}, SVDiff's
# (16,down,1) and (8,down,0); 3 = {IN08, MID, OUT03} = layers 5-7, SeongMon's choice.
PRESETS = {"geometry core": 2, "geometry 5-7": 3}


def preset_layers(preset: str, table: LayerTable) -> tuple[int, ...]:
    """Layer indices of a style-mix preset, ascending; in other U-nets the same number of innermost layers. KeyError if
    unknown.
    """
    return tuple(sorted(innermost(PRESETS[preset], table)))


def style_mix(geometry: XTI, appearance: XTI, layers: Iterable[int]) -> XTI:
    """Take `layers` (indices) from `geometry` and all others from `appearance`.

    The number of vectors may differ between the two. style_mix(A, A, any) has A's rows. Raises ValueError if the two
    were learned for different layers or encoders, or an index is not in the table.
    """
    _require_alike(geometry, appearance)
    chosen = set(layers)
    wrong = sorted(chosen - set(range(len(geometry.table))))
    if wrong:
        raise ValueError(
            f"There is no layer {wrong[0]}: {geometry.table.architecture} has layers 0-{len(geometry.table) - 1}."
        )
    rows = {
        layer.name: (geometry if layer.index in chosen else appearance).layers[layer.name]
        for layer in geometry.table.layers
    }
    return XTI(geometry.table, rows, "style mix", geometry.encoders)


def cumulative(geometry: XTI, appearance: XTI, count: int) -> XTI:
    """style_mix of the `count` innermost layers: 0 is all `appearance`, the number of layers is all `geometry`."""
    return style_mix(geometry, appearance, innermost(count, geometry.table))


def blend(a: XTI, b: XTI, weight: float) -> XTI:
    """Per-layer interpolation a + weight * (b - a); 0 and 1 give a's and b's rows bit for bit.

    Raises ValueError if layers, encoders or the number of vectors differ.
    """
    _require_alike(a, b)
    for name in a.layers:
        if a.layers[name].shape != b.layers[name].shape:
            raise ValueError(
                f"Layer {name} has {len(a.layers[name])} and {len(b.layers[name])} vectors; blending needs equally "
                f"many."
            )
    rows = {name: torch.lerp(a.layers[name], b.layers[name], weight) for name in a.layers}
    return XTI(a.table, rows, "blend", a.encoders)


def scale(xti: XTI, strength: float) -> XTI:
    """Every learned vector times `strength` (1 unchanged, 0 the zero vector, typical 0.5-1.5)."""
    if strength == 1.0:
        return xti
    rows = {name: tensor * strength for name, tensor in xti.layers.items()}
    return XTI(xti.table, rows, xti.source, xti.encoders, xti.tokens, xti.metadata)


def _require_alike(a: XTI, b: XTI) -> None:
    if a.table.names != b.table.names:
        raise ValueError(
            f"The two XTIs have different layers ({a.table.architecture}: {len(a.table)}, {b.table.architecture}: "
            f"{len(b.table)})."
        )
    if a.encoders != b.encoders:
        raise ValueError(f"The two XTIs are for different text encoders ({_widths(a)} and {_widths(b)}).")


def _widths(xti: XTI) -> str:
    return ", ".join(f"{name} {width}" for name, width in xti.encoders.items())
