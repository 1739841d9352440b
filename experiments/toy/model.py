"""The toy's network: a small MLP that models log p(x; sigma), with the score by differentiation (Karras 2024, appendix
C).
"""

import math

import torch
import torch.nn.functional as F

SIGMA_DATA = 0.5
HIDDEN_LAYERS = 4
# E[silu(z)^2]^(1/2) for z ~ N(0,1): dividing by it keeps the magnitude of the activations (EDM2, arXiv:2312.02696).
_SILU_MAGNITUDE = 0.596


class UnitLinear(torch.nn.Module):
    """A bias-free linear layer whose rows have unit length in use, whatever the optimizer did to their magnitude."""

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(outputs, inputs, generator=generator))
        self.force_magnitude()

    @torch.no_grad()
    def force_magnitude(self) -> None:
        """Rescale every row to root-mean-square 1, so that one learning rate means the same relative step in every
        layer.
        """
        self.weight.div_(self.weight.square().mean(1, keepdim=True).sqrt())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, F.normalize(self.weight, dim=1))


class EnergyNet(torch.nn.Module):
    """log p(x; sigma) up to a constant: gain * mean(F^2) / sigma - |x*|^2 / 2, with x* = x / sqrt(sigma^2 + 0.25).

    `width` is the number of features of every layer (64 for the main model of the paper, 32 for its guide).
    """

    def __init__(self, width: int, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.width = width
        self.input = UnitLinear(4, width, generator)
        self.hidden = torch.nn.ModuleList(UnitLinear(width, width, generator) for _ in range(HIDDEN_LAYERS))
        self.gain = torch.nn.Parameter(torch.zeros([]))

    def noise_input(self, sigma: torch.Tensor) -> torch.Tensor:
        """What the network is told about the noise level; `controls` overrides this and `layer`."""
        return sigma.log() / 4

    def layer(self, index: int, h: torch.Tensor) -> torch.Tensor:
        """Hidden layer `index` of the features h [N, width]."""
        return self.hidden[index](F.silu(h) / _SILU_MAGNITUDE)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Unnormalized log density [N] at x [N,2], sigma [N,1]."""
        scaled = x / (SIGMA_DATA**2 + sigma**2).sqrt()
        h = self.input(torch.cat([scaled, self.noise_input(sigma), torch.ones_like(sigma)], dim=1))
        for index in range(HIDDEN_LAYERS):
            h = self.layer(index, h)
        return self.gain * h.square().mean(1) / sigma[:, 0] - 0.5 * scaled.square().sum(1)

    def score(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """grad_x log p(x; sigma) [N,2]; differentiable in the weights while the module is in training mode."""
        sigma = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1).expand(len(x), 1)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self(x, sigma).sum(), x, create_graph=self.training)[0]

    def denoise(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """D(x; sigma) = x + sigma^2 * score [N,2]."""
        noise = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1) ** 2
        return x + noise * self.score(x, sigma)

    def force_magnitude(self) -> None:
        """Apply `UnitLinear.force_magnitude` to every layer; called after each optimizer step."""
        for layer in (self.input, *self.hidden):
            layer.force_magnitude()


def ema_exponent(relative_std: float) -> float:
    """gamma of the power-function average with the given relative width (EDM2, arXiv:2312.02696, appendix C): the only
    positive root of gamma + 1 = std^2 (gamma + 2)^2 (gamma + 3), by bisection."""
    low, high = 0.0, 1.0 / relative_std**2
    for _ in range(200):
        middle = (low + high) / 2
        wider = math.sqrt((middle + 1) / ((middle + 2) ** 2 * (middle + 3))) > relative_std
        low, high = (middle, high) if wider else (low, middle)
    return low
