"""The paper's name of a layer."""

from guidance_lab.xti.layers import LayerTable


def triple(table: LayerTable, index: int) -> tuple[int | None, str, int]:
    """The paper's (resolution, direction, number) of a layer; the middle layer of SD1 is its (8, "down", 0)."""
    layer = table.layers[index]
    same = [
        other for other in table.layers if (other.resolution, other.direction) == (layer.resolution, layer.direction)
    ]
    return layer.resolution, "down" if layer.direction == "mid" else layer.direction, same.index(layer)
