"""GALIP (Tao et al., CVPR 2023): one-pass text-to-image with a frozen CLIP inside. Pure PyTorch, no host."""

from .checkpoint import load_generator, save_generator
from .clip import ImageEncoder, TextEncoder, check_same_clip
from .dims import OFFICIAL, Dims
from .discriminator import NetC, NetD
from .fast import FAST, PLAIN, Fast
from .generator import Generator
from .sampling import PATHS, lerp, seeded_noise, slerp, walk

__all__ = [
    "FAST",
    "OFFICIAL",
    "PATHS",
    "PLAIN",
    "Dims",
    "Fast",
    "Generator",
    "ImageEncoder",
    "NetC",
    "NetD",
    "TextEncoder",
    "check_same_clip",
    "lerp",
    "load_generator",
    "save_generator",
    "seeded_noise",
    "slerp",
    "walk",
]
