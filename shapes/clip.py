"""The Shapes CLIP as an open_clip model: the frozen text encoder of the diffusion models and an image tower that was
fitted to it.

0.9 M parameters in the image tower: ViT with patches of 16 pixels on 128×128 pictures, two heads of 64 as in OpenAI's
CLIPs, QuickGELU, OpenAI's names.
"""

import torch

from . import words
from .models import WIDTH, text_config
from .world import SIZE

VISION = {"image_size": SIZE, "patch_size": 16, "width": 128, "layers": 4, "head_width": 64, "mlp_ratio": 4.0}


def clip_model(vision: dict | None = None):
    """The untrained `open_clip.model.CLIP`; `vision`: another image tower than `VISION`. ValueError when the package is
    not installed.
    """
    try:
        import open_clip.model  # slow to import, and only this model needs it
    except ImportError:
        raise ValueError(
            "The Shapes CLIP needs the Python package open_clip_torch: install it into ComfyUI's own Python."
        ) from None

    config = text_config()
    text = {
        "context_length": words.MAX_TOKENS,
        "vocab_size": config["vocab_size"],
        "width": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "layers": config["num_hidden_layers"],
        "mlp_ratio": config["intermediate_size"] / config["hidden_size"],
        "pool_type": "eos",
        "eos_id": config["eos_token_id"],
    }
    return open_clip.model.CLIP(embed_dim=WIDTH, vision_cfg=vision or VISION, text_cfg=text, quick_gelu=True)


def tokens(captions: list[str]) -> torch.Tensor:
    """Token ids, started, ended and padded with `<end>`, cut at the context length: [B, MAX_TOKENS]."""
    return torch.from_numpy(words.tokens(captions))


def lengths(ids: torch.Tensor) -> torch.Tensor:
    """Ids [B, MAX_TOKENS] padded with `<end>` → how many are words, with the start and one end: [B]."""
    return (ids != words.vocabulary()["<end>"]).sum(1) + 1
