"""The Shapes CLIP as an open_clip model: the frozen text encoder of the diffusion models and an image tower that was
fitted to it.

0.8 M parameters each way: ViT with patches of 8 pixels on 64×64 pictures, two heads of 64 as in OpenAI's CLIPs,
QuickGELU, OpenAI's names.
"""

import torch

from .models import MAX_TOKENS, WIDTH, text_config, word_tokenizer

VISION = {"image_size": 64, "patch_size": 8, "width": 128, "layers": 4, "head_width": 64, "mlp_ratio": 4.0}


def clip_model():
    """The untrained `open_clip.model.CLIP`. ValueError when the package is not installed."""
    try:
        import open_clip.model  # slow to import, and only this model needs it
    except ImportError:
        raise ValueError(
            "The Shapes CLIP needs the Python package open_clip_torch: install it into ComfyUI's own Python."
        ) from None

    config = text_config()
    text = {
        "context_length": MAX_TOKENS,
        "vocab_size": config["vocab_size"],
        "width": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "layers": config["num_hidden_layers"],
        "mlp_ratio": config["intermediate_size"] / config["hidden_size"],
        "pool_type": "eos",
        "eos_id": config["eos_token_id"],
    }
    return open_clip.model.CLIP(embed_dim=WIDTH, vision_cfg=VISION, text_cfg=text, quick_gelu=True)


def tokens(captions: list[str]) -> torch.Tensor:
    """Token ids, ended and padded with `<end>`, cut at the context length: [B, MAX_TOKENS]."""
    tokenizer = word_tokenizer()
    end = tokenizer.eos_token_id
    rows = [tokenizer(caption)["input_ids"][: MAX_TOKENS - 1] for caption in captions]
    return torch.tensor([row + [end] * (MAX_TOKENS - len(row)) for row in rows])


def lengths(ids: torch.Tensor) -> torch.Tensor:
    """Ids [B, MAX_TOKENS] padded with `<end>` → how many are words, with the start and one end: [B]."""
    return (ids != word_tokenizer().eos_token_id).sum(1) + 1
