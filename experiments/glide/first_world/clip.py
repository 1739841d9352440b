"""The CLIP of the first edition, which knows no noise: `evidence/glide.py` compares the noise-aware one with it.

Its weights were trained with the first edition and lie in `checkpoint/` beside GLIDE's. Words that it does not know
have the row of `<unk>`, so `shapes.clip.tokens` tokenizes for it.
"""

from functools import cached_property
from pathlib import Path

import safetensors.torch
import torch

from guidance_lab.nodes.host.networks import as_patcher
from guidance_lab.nodes.shapes.demo_models import ShapesScorer
from guidance_lab.shapes.clip import VISION, clip_model

from .world import SIZE

WEIGHTS = Path(__file__).resolve().parents[1] / "checkpoint" / "clean_clip.safetensors"


def load_clip_module() -> torch.nn.Module:
    """Both towers as an `open_clip.model.CLIP` in float32."""
    module = clip_model(VISION | {"image_size": SIZE, "patch_size": 8})
    module.load_state_dict(safetensors.torch.load_file(WEIGHTS), strict=True)
    return module.requires_grad_(False).eval()


class FirstScorer(ShapesScorer):
    """It as a CLIP_SCORER."""

    def __init__(self):
        super().__init__()
        self.name, self.side = "Shapes CLIP, 64 pixels", SIZE

    @cached_property
    def models(self):
        return (as_patcher(load_clip_module()),)
