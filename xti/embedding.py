"""XTI: a learned token per cross-attention layer."""

from dataclasses import dataclass, field

import torch

from .layers import LayerTable

# ComfyUI's names of the text encoders by the width of their token table.
ENCODER_OF_WIDTH = {768: "clip_l", 1024: "clip_h", 1280: "clip_g"}


def encoders_for(width: int) -> dict[str, int]:
    """Encoder name and width for a token of one text encoder; an unusual width is taken for a small CLIP-L."""
    return {ENCODER_OF_WIDTH.get(width, "clip_l"): width}


@dataclass(frozen=True, eq=False)
class XTI:
    """Extended textual inversion: the learned input embeddings e_i of layer i (Voynov et al. 2023).

    layers: layer name -> [n, width] float32 in table order; n vectors stand for n consecutive tokens and may differ by
    layer. table: the layers meant. source: the format it came from. encoders: text encoder -> its columns of `width`,
    in order; SDXL has clip_l (768) and clip_g (1280) side by side. tokens: the placeholder words of the file. metadata:
    what the file says of itself. Raises ValueError for layers that do not fit the table, or tensors that are not finite
    [n, width] floats.
    """

    table: LayerTable
    layers: dict[str, torch.Tensor]
    source: str
    encoders: dict[str, int]
    tokens: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        missing = [name for name in self.table.names if name not in self.layers]
        if missing:
            raise ValueError(f"{len(missing)} of {len(self.table)} layers are missing ({', '.join(missing[:4])}).")
        extra = [name for name in self.layers if name not in self.table.names]
        if extra:
            raise ValueError(f'"{extra[0]}" is not a cross-attention layer of {self.table.architecture}.')
        width = sum(self.encoders.values())
        ordered = {name: checked_rows(self.layers[name], f"layer {name}", width) for name in self.table.names}
        object.__setattr__(self, "layers", ordered)

    def of_encoder(self, encoder: str) -> dict[str, torch.Tensor]:
        """The columns of one text encoder: layer name -> [n, its width]. Raises ValueError if the XTI has no such
        encoder.
        """
        if encoder not in self.encoders:
            raise ValueError(f"This XTI has tokens for {' and '.join(self.encoders)}, not for {encoder}.")
        start = 0
        for name, width in self.encoders.items():
            if name == encoder:
                break
            start += width
        return {name: rows[:, start : start + width] for name, rows in self.layers.items()}

    def fit(self, table: LayerTable) -> "XTI":
        """The same XTI for another table of the same or a similar model.

        Tables with the same names fit as they are; a layer given whole ("MID") serves all its blocks ("MID.0" ...); an
        XTI whose rows are all equal (ordinary textual inversion) fits every table. Raises ValueError otherwise.
        """
        if self.shared:
            layers = dict.fromkeys(table.names, next(iter(self.layers.values())))
        else:
            origin = {name: name if name in self.layers else name.rpartition(".")[0] for name in table.names}
            if set(origin.values()) != set(self.layers):
                raise ValueError(
                    f"This XTI was learned for {self.table.architecture} ({len(self.table)} layers) and cannot be used "
                    f"with {table.architecture} ({len(table)} layers)."
                )
            layers = {name: self.layers[source] for name, source in origin.items()}
        return XTI(table, layers, self.source, self.encoders, self.tokens, self.metadata)

    @property
    def shared(self) -> bool:
        """True if every layer has the same rows: an ordinary textual inversion."""
        first, *others = self.layers.values()
        return all(torch.equal(first, rows) for rows in others)


def checked_rows(rows: object, what: str, width: int | None = None) -> torch.Tensor:
    """A token tensor [width] or [n, width] as float32 [n, width]. Raises ValueError naming `what` if it is anything
    else.
    """
    if not isinstance(rows, torch.Tensor):
        raise ValueError(f"{what} is not a tensor.")
    if rows.ndim not in (1, 2) or rows.numel() == 0:
        raise ValueError(f"{what} has shape {tuple(rows.shape)} instead of [vectors, width].")
    if not rows.is_floating_point():
        raise ValueError(f"{what} holds {rows.dtype} instead of floating-point numbers.")
    if width is not None and rows.shape[-1] != width:
        raise ValueError(f"{what} is {rows.shape[-1]} wide instead of {width}.")
    if not torch.isfinite(rows).all():
        raise ValueError(f"{what} holds NaN or infinite numbers.")
    return rows.detach().reshape(-1, rows.shape[-1]).to(torch.float32)
