"""The ground truth of the 2-D toy: two trees of anisotropic Gaussians and everything that follows from them in closed
form.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

TREE_SEED = 2
TREE_DEPTH = 7
COMPONENTS_PER_BRANCH = 8
BRANCHES_PER_CLASS = 2**TREE_DEPTH - 1
ORIGIN = np.array([0.0030, 0.0325])
SCALE = np.array([1.3136, 1.3844])
START_ANGLE = {"A": math.pi / 4, "B": 5 * math.pi / 4}

# Rows evaluated at once: rows x components x 4 bytes stays inside a core's cache, which is what makes the CPU fast
# enough.
_CHUNK = 64


def _grow(rng, depth, start, angle, branches):
    """Append one branch and its two subtrees: (means [8,2], covariance [2,2], weight) per branch.

    The order of the random draws is part of the data set: one for the length, then one per child before that child
    grows, also for the children of the last depth, which do not grow.
    """
    if depth == TREE_DEPTH:
        return
    direction = np.array([math.cos(angle), math.sin(angle)])
    length = 0.292 * 0.8**depth * (1 + 0.2 * rng.randn())
    thickness = 0.2 * 0.8**depth / length
    along = np.outer(direction, direction)
    size = 0.06 * length * SCALE
    covariance = (along + thickness**2 * (np.eye(2) - along)) * np.outer(size, size)
    positions = np.linspace(0.07, 0.93, COMPONENTS_PER_BRANCH)[:, None]
    branches.append(((start + length * positions * direction) * SCALE, covariance, length * 0.5**depth))
    for side in (1, -1):
        child_angle = angle + side * 0.7**depth * (1 + 0.2 * rng.randn())
        _grow(rng, depth + 1, start + length * direction, child_angle, branches)


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture in two dimensions, kept in the eigenbasis of every component.

    mean [K,2]; axes [K,2,2] (rows are unit eigenvectors); variance [K,2] along those axes; log_weight [K] (sums to
    one); branch [K] names the branch of the tree that a component belongs to.
    """

    mean: torch.Tensor
    axes: torch.Tensor
    variance: torch.Tensor
    log_weight: torch.Tensor
    branch: torch.Tensor

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def weight(self) -> torch.Tensor:
        """Weight of every component [K]."""
        return self.log_weight.exp()

    def moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Exact mean [2] and standard deviation [2] of the mixture."""
        weight = self.weight.double()[:, None]
        mean = (weight * self.mean.double()).sum(0)
        spread = (self.axes.double() ** 2 * self.variance.double()[:, :, None]).sum(1)
        second = (weight * (self.mean.double() ** 2 + spread)).sum(0)
        return mean, (second - mean**2).sqrt()

    def sample(self, count: int, sigma: float, generator: torch.Generator) -> torch.Tensor:
        """Draw [count, 2] from p(x; sigma): the data with Gaussian noise of standard deviation `sigma` added."""
        index = torch.multinomial(self.weight, count, replacement=True, generator=generator)
        local = torch.randn(count, 2, generator=generator) * self.variance[index].sqrt()
        clean = self.mean[index] + torch.einsum("na,nad->nd", local, self.axes[index])
        return clean + sigma * torch.randn(count, 2, generator=generator)

    def _terms(self, x, sigma):
        """Per chunk of rows: log of weight x density of every component [n,K], and the whitened offsets times
        variance.
        """
        u, v = self.axes[:, 0], self.axes[:, 1]
        du = torch.addmm(-(self.mean * u).sum(1), x, u.T)
        dv = torch.addmm(-(self.mean * v).sum(1), x, v.T)
        noise = sigma**2
        inverse_u = (self.variance[:, 0] + noise).reciprocal()
        inverse_v = (self.variance[:, 1] + noise).reciprocal()
        pull_u, pull_v = du * inverse_u, dv * inverse_v
        log_joint = (inverse_u * inverse_v).log_()
        log_joint = log_joint - du.mul_(pull_u) - dv.mul_(pull_v)
        log_joint.mul_(0.5).add_(self.log_weight - math.log(2 * math.pi))
        return log_joint, pull_u, pull_v

    def _chunks(self, x, sigma):
        sigma = torch.as_tensor(sigma, dtype=x.dtype)
        rows = sigma.reshape(-1, 1).expand(len(x), 1) if sigma.numel() > 1 else None
        for start in range(0, len(x), _CHUNK):
            here = slice(start, start + _CHUNK)
            yield x[here], sigma.reshape(1) if rows is None else rows[here]

    def log_density(self, x: torch.Tensor, sigma: float | torch.Tensor = 0.0) -> torch.Tensor:
        """log p(x; sigma) [N] at x [N,2]; sigma is one number or one per row. Log-sum-exp, so finite far from the
        data.
        """
        return torch.cat([self._terms(rows, s)[0].logsumexp(1) for rows, s in self._chunks(x, sigma)])

    def score(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """grad_x log p(x; sigma) [N,2]: each component's pull to its mean, weighted by its responsibility."""
        out = []
        for rows, s in self._chunks(x, sigma):
            log_joint, pull_u, pull_v = self._terms(rows, s)
            share = torch.softmax(log_joint, 1)
            out.append(pull_u.mul_(share) @ self.axes[:, 0] + pull_v.mul_(share) @ self.axes[:, 1])
        return torch.cat(out).neg_()

    def denoise(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """The ideal denoiser E[x0 | x] = x + sigma^2 grad log p(x; sigma), [N,2]."""
        noise = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1) ** 2
        return x + noise * self.score(x, sigma)

    def branch_shares(self, x: torch.Tensor) -> torch.Tensor:
        """Mean responsibility of every branch for the clean points x [N,2]; for x ~ p it equals the branch's weight."""
        total = torch.zeros(int(self.branch.max()) + 1, dtype=torch.float64)
        for rows, s in self._chunks(x, 0.0):
            share = torch.softmax(self._terms(rows, s)[0], 1).sum(0)
            total.index_add_(0, self.branch, share.double())
        return total / len(x)

    def branch_weights(self) -> torch.Tensor:
        """Weight of every branch: what `branch_shares` gives in expectation for the data themselves."""
        total = torch.zeros(int(self.branch.max()) + 1, dtype=torch.float64)
        return total.index_add_(0, self.branch, self.weight.double())


def mixture(classes: str) -> Mixture:
    """The ground truth of class "A", class "B" or both ("AB"); the same trees every time."""
    rng = np.random.RandomState(TREE_SEED)
    branches = []
    for name in "AB":
        tree: list = []
        _grow(rng, 0, ORIGIN, START_ANGLE[name], tree)
        if name in classes:
            branches += tree
    per_branch = COMPONENTS_PER_BRANCH
    mean = np.concatenate([points for points, _, _ in branches])
    covariance = np.repeat(np.stack([c for _, c, _ in branches]), per_branch, axis=0)
    weight = np.repeat([w for _, _, w in branches], per_branch)
    variance, vectors = np.linalg.eigh(covariance)
    tensor = lambda a: torch.tensor(a, dtype=torch.float32)  # noqa: E731
    return Mixture(
        mean=tensor(mean),
        axes=tensor(vectors.transpose(0, 2, 1)).contiguous(),
        variance=tensor(variance),
        log_weight=tensor(np.log(weight / weight.sum())),
        branch=torch.arange(len(branches)).repeat_interleave(per_branch),
    )
