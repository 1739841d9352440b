"""What each layer reads in one evaluation of the network."""

from collections.abc import Callable
from itertools import groupby

import comfy.model_base
import comfy.utils
import torch

from ...guidance.schedule import float32
from ...xti.contexts import common_length, repeat_to
from .carried import PLAIN, LayerPrompts, Text

_LOST = (
    "A node between the sampler and the model (a tiling or batching wrapper) gave the network {rows} rows and {numbers}"
    " numbers of their layer prompts, so nobody knows which row reads which; take that node out, or the layer prompts."
)


def chunks_of(
    numbers: torch.Tensor | None, prompts: tuple[LayerPrompts, ...], rows: int
) -> list[tuple[LayerPrompts | None, slice]]:
    """Neighbouring rows that read the same: their layer prompts (None: their own context for all layers) and the rows.

    numbers: `LayerRows` as it came through the host, int64 [rows]. ValueError where it does not fit the rows.
    """
    counted = [] if numbers is None else [int(number) for number in numbers.flatten().tolist()]
    if len(counted) != rows or not all(PLAIN <= number <= PLAIN + len(prompts) for number in counted):
        raise ValueError(_LOST.format(rows=rows, numbers=len(counted)))
    chunks, start = [], 0
    for number, group in groupby(counted):
        stop = start + len(list(group))
        chunks.append((None if number == PLAIN else prompts[number - PLAIN - 1], slice(start, stop)))
        start = stop
    return chunks


class LayerReader:
    """Looks up what each layer reads in one evaluation, and keeps what it made for other layers of the same texts.

    chunks: `chunks_of`. model: the host's BaseModel. x: [rows, ...] and sigma [rows] of the evaluation; tensors are
    made in the model's dtype, on x's device.
    """

    def __init__(self, chunks: list, model: comfy.model_base.BaseModel, x: torch.Tensor, sigma: torch.Tensor):
        self.chunks, self.device, self.dtype = chunks, x.device, model.get_dtype_inference()
        self.choices = [_choice_by_place(prompts, model, sigma) for prompts, _ in chunks]
        self.made: dict = {}

    def picks(self, block: tuple[str, int], depth: int = 0) -> tuple[Text | None, ...]:
        """The text that each chunk of the batch gives this layer, None for its base prompt."""
        return tuple(choice.get((block, depth), choice.get(block)) for choice in self.choices)

    def tensor(self, text: Text, key: str, rows: int) -> torch.Tensor | None:
        """One tensor of a text, for that many rows of the batch."""
        if text.get(key) is None:
            return None
        tensor = comfy.model_base.convert_tensor(text[key], self.dtype, self.device)
        return comfy.utils.repeat_to_batch_size(tensor, rows)

    def rows(
        self, picks: tuple[Text | None, ...], base: torch.Tensor, make: Callable, what: str = "context"
    ) -> torch.Tensor:
        """The layer's input [rows, T, ...]: `base` for chunks without a text, `make(text, part of base, its rows)` for
        the others.
        """
        if not any(picks):
            return base
        key = (what, *map(id, picks))
        if key not in self.made:
            self.made[key] = _join(
                [
                    base[rows] if text is None else make(text, base[rows], rows)
                    for text, (_, rows) in zip(picks, self.chunks, strict=True)
                ]
            )
        return self.made[key]


def _choice_by_place(prompts: LayerPrompts | None, model, sigma: torch.Tensor) -> dict:
    """{block or (block, depth): its text} at this noise level."""
    if prompts is None:
        return {}
    stretch = prompts.stretches[-1]
    if len(prompts.stretches) > 1:
        now = float32(sigma.flatten()[0].item())
        ends = ((stretch, float32(model.model_sampling.percent_to_sigma(stretch.end))) for stretch in prompts.stretches)
        stretch = next((stretch for stretch, lowest in ends if now >= lowest), stretch)
    return {
        layer.block if layer.depth is None else (layer.block, layer.depth): prompts.texts[choice]
        for layer, choice in zip(prompts.table.layers, stretch.choice, strict=True)
        if choice is not None
    }


def _join(parts: list[torch.Tensor]) -> torch.Tensor:
    """Chunks [rows, T_i, D] under each other, each repeated along its tokens to one length."""
    length = common_length([part.shape[1] for part in parts])
    return torch.cat([repeat_to(part, length) for part in parts])
