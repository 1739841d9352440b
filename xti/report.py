"""What can be said of learned tokens without drawing anything: their norms, the words next to them, how usual they are
as words.
"""

from dataclasses import dataclass

import torch

from .density import layer_norms, nearest_tokens, negative_log_density, scott_bandwidth, word_densities
from .embedding import XTI


@dataclass(frozen=True)
class LayerReport:
    """One layer, one entry per vector: norms, -log densities (nats per dimension), and its nearest words with their
    cosines.
    """

    name: str
    norms: tuple[float, ...]
    densities: tuple[float, ...]
    nearest: tuple[tuple[tuple[str, float], ...], ...]


@dataclass(frozen=True)
class Report:
    """All layers for one text encoder. word_norms, word_densities: lowest and highest decile of the encoder's own
    words.
    """

    encoder: str
    layers: tuple[LayerReport, ...]
    word_norms: tuple[float, float]
    word_densities: tuple[float, float]

    def text(self) -> str:
        """A table in plain text, one line per vector."""
        low, high = self.word_norms
        sparse, dense = self.word_densities
        lines = [
            f"{self.encoder}: words have norms {low:.3g} to {high:.3g}, -log densities {sparse:.4g} to {dense:.4g} "
            f"per dimension (10-90 %)"
        ]
        for layer in self.layers:
            rows = zip(layer.norms, layer.densities, layer.nearest, strict=True)
            for i, (norm, density, nearest) in enumerate(rows):
                name = layer.name if len(layer.norms) == 1 else f"{layer.name} [{i}]"
                words = ", ".join(f"{word} {cosine:.2f}" for word, cosine in nearest)
                lines.append(f"{name:<10} norm {norm:7.3f}   -log density {density:8.4g}   {words}")
        return "\n".join(lines)

    def to_json(self) -> dict:
        """{"encoder", "layers": [{"name", "vectors": [{"norm", "words": [[word, cosine], ...]}, ...]}, ...]}"""
        layers = []
        for layer in self.layers:
            vectors = [
                {"norm": norm, "words": [[word, cosine] for word, cosine in nearest]}
                for norm, nearest in zip(layer.norms, layer.nearest, strict=True)
            ]
            layers.append({"name": layer.name, "vectors": vectors})
        return {"encoder": self.encoder, "layers": layers}


def report(xti: XTI, encoder: str, vocabulary: torch.Tensor, words: tuple[str, ...], count: int = 5) -> Report:
    """Report on an XTI's tokens for one text encoder, with its vocabulary [V, width] and the word of each row; `count`
    nearest words.

    The density is `density.negative_log_density` with Scott's bandwidth. ValueError when the widths differ.
    """
    rows = xti.of_encoder(encoder)
    width = next(iter(rows.values())).shape[1]
    if width != vocabulary.shape[1]:
        raise ValueError(
            f"The XTI's {encoder} tokens are {width} wide and the words of this CLIP {vocabulary.shape[1]}: use its "
            f"own CLIP."
        )
    bandwidth = scott_bandwidth(vocabulary)
    norms = layer_norms(rows)
    layers = []
    for name, vectors in rows.items():
        densities = negative_log_density(vectors, vocabulary, bandwidth) / width
        cosines, numbers = nearest_tokens(vectors, vocabulary, count)
        nearest = tuple(
            tuple((words[i], float(c)) for i, c in zip(*pair, strict=True))
            for pair in zip(numbers, cosines, strict=True)
        )
        layers.append(LayerReport(name, tuple(norms[name].tolist()), tuple(densities.tolist()), nearest))
    return Report(
        encoder,
        tuple(layers),
        _deciles(vocabulary.norm(dim=1)),
        _deciles(word_densities(vocabulary, bandwidth) / width),
    )


def _deciles(values: torch.Tensor) -> tuple[float, float]:
    return float(values.quantile(0.1)), float(values.quantile(0.9))
