"""How near a set of pictures is to another: Fréchet distance, coverage and recall on fixed features that nobody
trained.

The features are a seeded random convolutional network (random features separate sets well when the pictures are simple;
see Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics", section 4 on random embeddings) beside the colours of
an 8×8 reduction.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy import linalg


@torch.no_grad()
def features(pictures: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] → float64 [N, 192]. The same numbers on every machine with the same torch, from seed 0."""
    generator = torch.Generator().manual_seed(0)
    weights = [
        torch.randn(o, i, 3, 3, generator=generator) * (2 / (9 * i)) ** 0.5 for i, o in ((3, 16), (16, 32), (32, 48))
    ]
    rows = []
    for start in range(0, len(pictures), 100):
        x = torch.from_numpy(pictures[start : start + 100]).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
        h = x
        for weight in weights:
            h = F.relu(F.conv2d(h, weight, stride=2, padding=1))
        places = F.adaptive_avg_pool2d(x, 4).flatten(1)  # 48: where which colour is
        shapes = torch.cat([h.mean((2, 3)), h.std((2, 3)), h.amax((2, 3))], 1)  # 144: which edges there are
        rows.append(torch.cat([places, shapes], 1))
    return torch.cat(rows).double().numpy()


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|m_a - m_b|² + tr(S_a + S_b - 2 (S_a S_b)^½) of two feature sets [N, D] (Dowson & Landau 1982)."""
    sa, sb = np.cov(a.T), np.cov(b.T)
    eigenvalues = linalg.eigvals(sa @ sb)  # of a product of two covariances: real and not negative up to rounding
    return float(
        np.square(a.mean(0) - b.mean(0)).sum()
        + np.trace(sa)
        + np.trace(sb)
        - 2 * np.sqrt(np.maximum(eigenvalues.real, 0)).sum()
    )


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T, 0))


def diversity(real: np.ndarray, drawn: np.ndarray, k: int = 5) -> dict[str, float]:
    """`coverage` (Naeem et al. 2020): share of real points with a drawn one inside their k-nearest-neighbour ball;
    `recall` (Kynkäänniemi et al. 2019): share of real points in the ball of some drawn one; `precision`: of drawn
    points in that of a real one.
    """
    scale = real.std(0) + 1e-8
    real, drawn = real / scale, drawn / scale
    radius_real = np.sort(_distances(real, real), 1)[:, k]
    radius_drawn = np.sort(_distances(drawn, drawn), 1)[:, k]
    between = _distances(real, drawn)
    return {
        "coverage": float((between.min(1) <= radius_real).mean()),
        "recall": float((between <= radius_drawn).any(1).mean()),
        "precision": float((between <= radius_real[:, None]).any(0).mean()),
    }
