"""GLIDE whole: text to 64 pixels, upsampling to 256, inpainting, in pixel space (Nichol et al. 2021, arXiv
2112.10741).
"""

from .inpaint import GLIDEInpaint
from .loader import GLIDELoader
from .sampler import GLIDESampler
from .scheduler import GLIDEScheduler
from .upsample import GLIDEUpsample

NODES = [GLIDELoader, GLIDEScheduler, GLIDESampler, GLIDEUpsample, GLIDEInpaint]

__all__ = ["NODES"]
