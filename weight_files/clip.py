"""What the files of all CLIPs share: OpenAI's pixel statistics, and transformers' names as open_clip's."""

from collections.abc import Mapping

import torch

Weights = Mapping[str, torch.Tensor]

# Mean and standard deviation of red, green and blue in 0..1.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

_BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def open_clip_names(weights: Weights) -> dict[str, torch.Tensor]:
    """A CLIPModel of transformers under open_clip's names. KeyError with the name of what is missing; ValueError,
    RuntimeError, TypeError or IndexError where shapes or numbers do not fit.
    """
    renamed = {
        "visual.class_embedding": weights["vision_model.embeddings.class_embedding"].flatten(),
        "visual.positional_embedding": weights["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": weights["vision_model.embeddings.patch_embedding.weight"],
        "visual.proj": weights["visual_projection.weight"].T.contiguous(),
    }
    renamed |= _norm(weights, "vision_model.pre_layrnorm", "visual.ln_pre")
    renamed |= _norm(weights, "vision_model.post_layernorm", "visual.ln_post")
    renamed |= _blocks(weights, "vision_model.encoder.layers.", "visual.transformer.resblocks.")
    renamed |= open_clip_text_names(weights)
    if "logit_scale" in weights:
        renamed["logit_scale"] = weights["logit_scale"].reshape(())
    return renamed


def open_clip_text_names(weights: Weights) -> dict[str, torch.Tensor]:
    """Its text tower alone (`text_model.…`, `text_projection.weight`), as ComfyUI keeps it. Errors as above."""
    return {
        "token_embedding.weight": weights["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": weights["text_model.embeddings.position_embedding.weight"],
        "text_projection": weights["text_projection.weight"].T.contiguous(),
        **_norm(weights, "text_model.final_layer_norm", "ln_final"),
        **_blocks(weights, "text_model.encoder.layers.", "transformer.resblocks."),
    }


def _norm(weights: Weights, old: str, new: str) -> dict[str, torch.Tensor]:
    return {f"{new}.{kind}": weights[f"{old}.{kind}"] for kind in ("weight", "bias")}


def _blocks(weights: Weights, old: str, new: str) -> dict[str, torch.Tensor]:
    """All transformer blocks: separate query, key and value matrices become in_proj."""
    renamed = {}
    for index in sorted({int(key.removeprefix(old).split(".")[0]) for key in weights if key.startswith(old)}):
        for kind in ("weight", "bias"):
            qkv = [weights[f"{old}{index}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            renamed[f"{new}{index}.attn.in_proj_{kind}"] = torch.cat(qkv)
            for theirs, ours in _BLOCK.items():
                renamed[f"{new}{index}.{ours}.{kind}"] = weights[f"{old}{index}.{theirs}.{kind}"]
    return renamed
