"""GALIP: one-pass text-to-image by a generator with a frozen CLIP inside (Tao et al., CVPR 2023)."""

from .model import Galip, GalipSocket

NODES = []

__all__ = ["NODES", "Galip", "GalipSocket"]
