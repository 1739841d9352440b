"""How likely a learned token is among the words of the vocabulary: kernel density, its gradient, nearest words.

P+ regularises a learned embedding towards dense regions of the token table. The paper's kernel, bandwidth and weight
are not available to us; this is the Gaussian kernel density estimate that its description suggests, not a claim to its
exact formula.
"""

import math

import torch


def scott_bandwidth(vocabulary: torch.Tensor) -> float:
    """Scott's rule: mean per-dimension standard deviation of the vocabulary [V, d] times V^(-1/(d+4))."""
    count, width = vocabulary.shape
    return float(vocabulary.std(dim=0).mean()) * count ** (-1 / (width + 4))


def negative_log_density(tokens: torch.Tensor, vocabulary: torch.Tensor, bandwidth: float) -> torch.Tensor:
    """-log p(e) under a Gaussian kernel density over the vocabulary; differentiable.

    tokens [m, d], vocabulary [V, d] (leave out the start and end tokens), bandwidth h in units of the embedding -> [m],
    nats: -log p(e) = -logsumexp_v(-|e-v|^2 / 2h^2) + log V + (d/2) log(2 pi h^2).
    """
    _require_bandwidth(bandwidth)
    count, width = vocabulary.shape
    exponents = _squared_distances(tokens, vocabulary) / (-2 * bandwidth**2)
    return -torch.logsumexp(exponents, dim=1) + _normalization(count, width, bandwidth)


def word_densities(vocabulary: torch.Tensor, bandwidth: float, count: int = 256) -> torch.Tensor:
    """-log p of up to `count` words, evenly spread over the vocabulary [V, d], among all the others: what is usual for
    a word.

    A word is left out of its own density, which it would dominate: in 768 dimensions the others are far away.
    ValueError below 2 words.
    """
    _require_bandwidth(bandwidth)
    if len(vocabulary) < 2:
        raise ValueError("The density of a word needs other words to compare it with.")
    chosen = torch.linspace(0, len(vocabulary) - 1, min(count, len(vocabulary))).round().long()
    exponents = _squared_distances(vocabulary[chosen], vocabulary) / (-2 * bandwidth**2)
    exponents[torch.arange(len(chosen)), chosen] = -math.inf
    return -torch.logsumexp(exponents, dim=1) + _normalization(len(vocabulary) - 1, vocabulary.shape[1], bandwidth)


def nearest_tokens(tokens: torch.Tensor, vocabulary: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` vocabulary rows with the highest cosine similarity: (similarity [m, count], row number [m, count]).

    Cosine rather than distance: learned tokens are often longer than any word, and would all be nearest to the longest
    words.
    """
    similarity = torch.nn.functional.normalize(tokens, dim=1) @ torch.nn.functional.normalize(vocabulary, dim=1).T
    best = similarity.topk(min(count, len(vocabulary)), dim=1)
    return best.values, best.indices


def layer_norms(layers: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Euclidean norm of every vector: layer name -> [n]. CLIP-L's words have norms around 0.4."""
    return {name: rows.norm(dim=1) for name, rows in layers.items()}


def _squared_distances(tokens: torch.Tensor, vocabulary: torch.Tensor) -> torch.Tensor:
    # |e|^2 - 2 e.v + |v|^2 as one matrix product; [m, V, d] differences would need gigabytes for CLIP's 49408 words.
    squares = tokens.square().sum(1, keepdim=True) + vocabulary.square().sum(1)
    return (squares - 2 * tokens @ vocabulary.T).clamp_min(0)


def _normalization(count: int, width: int, bandwidth: float) -> float:
    return math.log(count) + width / 2 * math.log(2 * math.pi * bandwidth**2)


def _require_bandwidth(bandwidth: float) -> None:
    if not bandwidth > 0:
        raise ValueError(f"The density's bandwidth must be above 0, not {bandwidth}.")
