"""What is measured on toy samples: likelihood, outliers, and how the mass is spread over the branches of the tree."""

from dataclasses import dataclass

import torch

from guidance_lab.experiments.toy.distribution import Mixture

OUTLIER_QUANTILE = 0.01
COVERED_SHARE = 0.2
_REFERENCE_SAMPLES = 1 << 17


@dataclass(frozen=True)
class Measures:
    """Figures of one set of samples.

    log_density: mean of log p (nats). outliers: share of samples less likely than the least likely 1 % of the data.
    variation: total variation distance of the mass per branch, 0 to 1. coverage: share of the branches' mass that gets
    at least a fifth of its due. mean, std: per coordinate. A sample that is not finite counts as an outlier of no
    branch.
    """

    log_density: float
    outliers: float
    variation: float
    coverage: float
    mean: tuple[float, float]
    std: tuple[float, float]


def outlier_threshold(truth: Mixture) -> float:
    """The log density (nats) that 99 % of the data exceed, from 131,072 draws with a fixed seed."""
    reference = truth.sample(_REFERENCE_SAMPLES, 0.0, torch.Generator().manual_seed(0))
    return float(truth.log_density(reference).quantile(OUTLIER_QUANTILE))


def measure(x: torch.Tensor, truth: Mixture, threshold: float) -> Measures:
    """The measures of samples x [N,2] against the ground truth; `threshold` from `outlier_threshold`."""
    finite = x[x.isfinite().all(1)]
    log_density = truth.log_density(finite)
    due = truth.branch_weights()
    got = truth.branch_shares(finite) * (len(finite) / len(x))
    likely = (log_density > threshold).sum()
    return Measures(
        log_density=float(log_density.mean()),
        outliers=float(1 - likely / len(x)),
        variation=float((got - due).abs().sum() / 2),
        coverage=float(due[got >= COVERED_SHARE * due].sum()),
        mean=tuple(finite.mean(0).tolist()),
        std=tuple(finite.std(0).tolist()),
    )
