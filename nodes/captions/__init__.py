"""Captions: a captioner says what the running estimate shows, and a guidance pushes away from what it says too much."""

from . import caption_residual, captioner_loader
from .captioners import Captioner, CaptionerSocket, HeldNetwork, TransformersCaptioner

NODES = [*captioner_loader.NODES, *caption_residual.NODES]

__all__ = ["NODES", "Captioner", "CaptionerSocket", "HeldNetwork", "TransformersCaptioner"]
