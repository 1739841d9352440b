"""Keeps the text from the outer levels of a U-Net while it is trained, so that the inner levels learn to decide.

Where every cross-attention layer reads the caption from the start, a small U-Net decides everything on its larger maps
and its inner levels stay idle (`README.md` has the figures), and P+'s inner layers mean nothing. In the manner of
StyleGAN's mixing regularization (Karras et al., 1812.04948, section 3.1) the levels do not always read the same.
"""

import torch

INNER_SIDE = 4  # cells: maps of a quarter of the latent's side and smaller are inner


class OuterText:
    """While `context` is not None, the cross-attention layers on maps larger than `INNER_SIDE` read it in place of the
    text.

    context [B, tokens, width]: one row for each sample of the batch.
    """

    def __init__(self, unet: torch.nn.Module):
        self.context: torch.Tensor | None = None
        for name, part in unet.named_modules():
            if name.endswith(".attn2"):
                part.register_forward_pre_hook(self._replaced, with_kwargs=True)

    def _replaced(self, module: torch.nn.Module, inputs: tuple, given: dict) -> tuple[tuple, dict]:
        if self.context is not None and inputs[0].shape[1] > INNER_SIDE**2:
            given = given | {"context": self.context}
        return inputs, given


def forget_outside(unet: torch.nn.Module) -> None:
    """Sets what the outer cross-attention layers put out to zero, in place: for weights that read the text everywhere.

    unet: four levels on latents of 16×16, whose two outermost have maps of more than 4×4 cells.
    """
    outer = {f"input_blocks.{i}." for i in (1, 2, 4, 5)} | {f"output_blocks.{i}." for i in range(6, 12)}
    for name, weight in unet.named_parameters():
        if ".attn2.to_out.0.weight" in name and any(name.startswith(block) for block in outer):
            torch.nn.init.zeros_(weight)
