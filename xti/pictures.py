"""The pictures of a training: latents of one or several sizes, where in them to learn, and what is written of each."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Pictures:
    """latents: one tensor [C, h, w] per picture, of any sizes.

    masks: [1, h, w] per picture, 0 to 1, or None to learn everywhere. captions: per picture the number of its own
    caption, or None for one of those that all share. ValueError where the three do not belong together.
    """

    latents: Sequence[torch.Tensor]
    masks: Sequence[torch.Tensor | None]
    captions: Sequence[int | None]

    def __post_init__(self):
        if not len(self.latents) == len(self.masks) == len(self.captions) > 0:
            counts = len(self.latents), len(self.masks), len(self.captions)
            raise ValueError("pictures, masks and captions are {}, {} and {}; give one each".format(*counts))
        for number, (latent, mask) in enumerate(zip(self.latents, self.masks, strict=True), 1):
            if mask is not None and (mask.shape != (1, *latent.shape[-2:]) or not mask.sum() > 0):
                raise ValueError(f"the mask of picture {number} is empty or has another size than the picture")

    def __len__(self) -> int:
        return len(self.latents)

    @classmethod
    def of(cls, pictures: "torch.Tensor | Pictures") -> "Pictures":
        """Latents [N, C, h, w] of one size as pictures without masks and captions of their own."""
        if isinstance(pictures, Pictures):
            return pictures
        none = [None] * len(pictures)
        return cls(list(pictures), none, none)

    def batch(self, numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Latents [B, C, h, w] of these pictures, which have one size, and their masks [B, 1, h, w]; None where no one
        has one.
        """
        chosen = numbers.tolist()
        latents = torch.stack([self.latents[i] for i in chosen])
        if all(self.masks[i] is None for i in chosen):
            return latents, None
        everywhere = torch.ones(1, *latents.shape[-2:])
        return latents, torch.stack([everywhere if (mask := self.masks[i]) is None else mask for i in chosen])

    def alike(self, numbers: torch.Tensor, shared: int) -> dict[int, list[torch.Tensor]]:
        """Places in a batch of these picture numbers: caption → one index tensor per size, in order of appearance.

        shared: the caption of those that have none of their own.
        """
        places: dict[int, dict[torch.Size, list[int]]] = {}
        for place, number in enumerate(numbers.tolist()):
            own = self.captions[number]
            sizes = places.setdefault(shared if own is None else own, {})
            sizes.setdefault(self.latents[number].shape, []).append(place)
        return {caption: [torch.tensor(each) for each in sizes.values()] for caption, sizes in places.items()}
