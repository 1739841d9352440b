"""Noise from seeds, truncation, and paths between points: everything around one forward pass of the generator."""

from __future__ import annotations

import torch

TRUNCATION_BOUND = 2.0


def seeded_noise(seeds: list[int], width: int, truncation: float = 1.0) -> torch.Tensor:
    """Standard normal noise [len(seeds), width], float32 on the CPU: row i depends on seeds[i] alone. Global random
    state is not used.

    truncation 1: plain normal noise, as GALIP was trained and measured with. Below 1, the truncated normal of DF-GAN
    (trunc_rate, 0.88 in its COCO set-up): values outside +-2 are drawn again, then all are multiplied by `truncation`;
    0 is the mean picture. Raises ValueError outside 0..1.
    """
    if not 0 <= truncation <= 1:
        raise ValueError(f"truncation is {truncation}; give a number from 0 to 1, 1 for none")
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        row = torch.randn(width, generator=generator)
        if truncation < 1:
            while (outside := row.abs() > TRUNCATION_BOUND).any():
                row[outside] = torch.randn(int(outside.sum()), generator=generator)
            row *= truncation
        rows.append(row)
    return torch.stack(rows)


def lerp(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """(1 - t) a + t b."""
    return torch.lerp(a, b, t)


def slerp(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """Spherical interpolation of two vectors [D] (Shoemake 1985): [sin((1-t) w) a + sin(t w) b] / sin w, w the angle
    between them.

    Normal noise of many dimensions lies near a sphere; slerp stays on it where lerp cuts through. Vectors without an
    angle between them (parallel, opposite or zero) are interpolated linearly.
    """
    wide_a, wide_b = a.double(), b.double()
    cosine = torch.dot(wide_a, wide_b) / (wide_a.norm() * wide_b.norm()).clamp_min(torch.finfo(torch.float64).tiny)
    angle = torch.arccos(cosine.clamp(-1, 1))
    if angle.sin() < 1e-6 or not wide_a.any() or not wide_b.any():
        return lerp(a, b, t)
    out = (torch.sin((1 - t) * angle) * wide_a + torch.sin(t * angle) * wide_b) / angle.sin()
    return out.to(a.dtype)


PATHS = {"lerp": lerp, "slerp": slerp}


def walk(keys: torch.Tensor, steps: int, kind: str, loop: bool = False) -> torch.Tensor:
    """Points on the way through `keys` [K, D], `steps` from one key to the next: [(K-1) * steps + 1, D].

    Every key is in the result with its own bits. loop: the way goes on from the last key back to the first, which is
    not repeated, so that the frames play endlessly: [K * steps, D]. `kind`: a name in PATHS. Raises ValueError for
    fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; give at least 1, the number of pictures from one key to the next")
    ways = list(zip(keys, keys.roll(-1, dims=0)))
    points = [
        a if step == 0 else PATHS[kind](a, b, step / steps)
        for a, b in (ways if loop else ways[:-1])
        for step in range(steps)
    ]
    return torch.stack(points if loop else [*points, keys[-1]])
