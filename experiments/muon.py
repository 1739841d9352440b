"""Muon (Jordan et al. 2024; torch.optim.Muon) for kernels of convolutions too: momentum that is made orthogonal, as a
matrix, before it is a step.
"""

import torch


class Muon(torch.optim.Muon):
    """Trains weights [out, in, height, width] as the matrices [out, in · height · width] that share their memory, and
    matrices as they are.

    A step is as large as AdamW's would be at the same `lr` (0.2·sqrt(max(rows, columns)), Liu et al., 2502.16982).
    Raises ValueError if a weight's memory cannot be seen as a matrix.
    """

    def __init__(self, weights: list[torch.nn.Parameter], lr: float, weight_decay: float):
        self.weights = weights
        matrices = [torch.nn.Parameter(_matrix(weight.detach(), weight)) for weight in weights]
        for weight, matrix in zip(weights, matrices, strict=True):
            if weight.data_ptr() != matrix.data_ptr():
                raise ValueError(f"A weight of shape {tuple(weight.shape)} does not lie in memory as a matrix.")
        super().__init__(matrices, lr, weight_decay, adjust_lr_fn="match_rms_adamw")

    def zero_grad(self, set_to_none: bool = True) -> None:
        for weight in self.weights:
            weight.grad = None

    def step(self) -> None:
        for weight, matrix in zip(self.weights, self.param_groups[0]["params"], strict=True):
            matrix.grad = _matrix(weight.grad, weight)
        super().step()


def optimizers(
    module: torch.nn.Module, ends: tuple[str, ...], rate: float, others: tuple[torch.nn.Parameter, ...] = ()
) -> dict[str, torch.optim.Optimizer]:
    """{"muon": for the matrices and kernels of `module`, "adam": AdamW for its vectors and for `others`}.

    Matrices whose names begin with one of `ends` are AdamW's too: embeddings, what takes the input in and puts the
    output out.
    """
    names = {name for name, p in module.named_parameters() if p.ndim > 1 and not name.startswith(ends)}
    inner = [p for name, p in module.named_parameters() if name in names]
    outer = [p for name, p in module.named_parameters() if name not in names]
    return {
        "muon": Muon(inner, rate, weight_decay=1e-2),
        "adam": torch.optim.AdamW([*outer, *others], rate, weight_decay=1e-3, fused=True),
    }


def set_rate(found: dict[str, torch.optim.Optimizer], rate: float, muon: float) -> None:
    """AdamW's learning rate, and Muon's as `muon` times that."""
    found["adam"].param_groups[0]["lr"] = rate
    found["muon"].param_groups[0]["lr"] = rate * muon


def _matrix(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`values`, of the weight's shape, with one row for each output; columns in the order of the weight's memory."""
    return (values if weight.is_contiguous() else values.permute(0, 2, 3, 1)).flatten(1)
