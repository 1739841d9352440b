"""GALIP: one-pass text-to-image by a generator with a frozen CLIP inside (Tao et al., CVPR 2023)."""

from .interpolate import GALIPInterpolate
from .loader import GALIPCLIP, GALIPLoader
from .model import Galip, GalipSocket
from .sampler import GALIPSampler
from .save import GALIPSave

NODES = [GALIPLoader, GALIPCLIP, GALIPSampler, GALIPInterpolate, GALIPSave]

__all__ = ["NODES", "Galip", "GalipSocket"]
