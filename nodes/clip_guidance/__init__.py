"""CLIP guidance (UPainting, GLIDE): an objective scores the half-finished picture, and its gradient steers the
sample.
"""

from . import guider, objectives, scorer_loader
from .objective import ScorerSocket
from .scorers import OpenCLIPScorer

NODES = [*guider.NODES, *scorer_loader.NODES, *objectives.NODES]

__all__ = ["NODES", "OpenCLIPScorer", "ScorerSocket"]
