"""A world where guidance has a closed form: data N(m, C), so that denoiser, posterior and tilted target are all
known.
"""

import torch
from reference.frames import vp

from guidance_lab.guidance import frames

DIM = 6
FRAMES = {
    "VE": lambda x: frames.ve(1.7, x),
    "flow": lambda x: frames.flow(0.63, x),
    "VP": lambda x: vp(0.3, x),
}


class Gaussian:
    """Data N(m, C) in float64, and its exact denoiser at any level x = a*x0 + b*n."""

    def __init__(self, mean: torch.Tensor, covariance: torch.Tensor):
        self.mean, self.covariance = mean, covariance

    def posterior_covariance(self, level: frames.NoiseLevel) -> torch.Tensor:
        a, b = level.alpha.item(), level.sigma.item()
        return b**2 * self.covariance @ torch.linalg.inv(a**2 * self.covariance + b**2 * torch.eye(DIM).double())

    def denoise(self, x: torch.Tensor, level: frames.NoiseLevel) -> torch.Tensor:
        """E[x0 | x] for x [B, D]."""
        a, b = level.alpha.item(), level.sigma.item()
        gain = a * self.covariance @ torch.linalg.inv(a**2 * self.covariance + b**2 * torch.eye(DIM).double())
        return self.mean + (x - a * self.mean) @ gain.T

    def tilted(self, direction: torch.Tensor) -> "Gaussian":
        """p(x0) * exp(direction . x0), normalized."""
        return Gaussian(self.mean + self.covariance @ direction, self.covariance)


def world(generator: torch.Generator) -> tuple[Gaussian, torch.Tensor, torch.Tensor]:
    """A Gaussian, a reward direction [D] and noisy samples [3, D]."""
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    root = draw(DIM, DIM)
    return Gaussian(draw(DIM), root @ root.T / DIM + 0.1 * torch.eye(DIM).double()), draw(DIM), 2 * draw(3, DIM)
