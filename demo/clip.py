"""The Shapes CLIP as an open_clip model: the frozen text encoder of the diffusion models and an image tower that was fitted to it.

0.8 M parameters each way: ViT with patches of 8 pixels on 64×64 pictures, two heads of 64 as in OpenAI's CLIPs, QuickGELU, OpenAI's names.
"""

import torch

from .models import MAX_TOKENS, WIDTH, text_config, word_tokenizer

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
VISION = {"image_size": 64, "patch_size": 8, "width": 128, "layers": 4, "head_width": 64, "mlp_ratio": 4.0}


def clip_model():
    """The untrained `open_clip.model.CLIP`."""
    import open_clip.model  # slow to import, and only this model needs it

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


def open_clip_names(text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A ComfyUI/transformers text tower (`text_model.…`, `text_projection.weight`) under open_clip's names."""
    sd = {
        "token_embedding.weight": text["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": text["text_model.embeddings.position_embedding.weight"],
        "ln_final.weight": text["text_model.final_layer_norm.weight"],
        "ln_final.bias": text["text_model.final_layer_norm.bias"],
        "text_projection": text["text_projection.weight"].T.contiguous(),
    }
    plain = {
        "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj",
    }  # fmt: skip
    for layer in range(text_config()["num_hidden_layers"]):
        old, new = f"text_model.encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            for a, b in plain.items():
                sd[f"{new}.{b}.{kind}"] = text[f"{old}.{a}.{kind}"]
            sd[f"{new}.attn.in_proj_{kind}"] = torch.cat([text[f"{old}.self_attn.{p}_proj.{kind}"] for p in "qkv"])
    return sd
