"""Reading files of weights without running code, and CLIPs of transformers under open_clip's names."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file or of a PyTorch state dict, on the CPU. Nothing is unpickled but tensors.

    Wrappers of training checkpoints (`state_dict`, `module.`) are taken off. Raises ValueError on a TorchScript archive, on a file that
    holds more than tensors, and on a broken file.
    """
    path = Path(path)
    with torch.inference_mode(False):
        try:
            if path.suffix in (".safetensors", ".sft"):
                found = safetensors.torch.load_file(path)
            else:
                found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            if "TorchScript" in str(error):
                raise ValueError(
                    f"{path.name} is a TorchScript archive (OpenAI's original download), which is code and is not run here: "
                    "use the same model as .safetensors, as open_clip publishes it."
                ) from None
            reason = " ".join(str(error).split())[:160]
            raise ValueError(f"{path.name} cannot be read as weights ({reason}): download it again, or use a .safetensors file.") from None
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping):
        raise ValueError(f"{path.name} holds a {type(found).__name__}, not named weights: use a .safetensors file.")
    return {str(key).removeprefix("module."): value for key, value in found.items() if isinstance(value, torch.Tensor)}


def as_open_clip(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A CLIPModel of transformers under open_clip's names; anything else comes back unchanged. ValueError when a part is missing."""
    if not {"vision_model.embeddings.class_embedding", "text_model.embeddings.token_embedding.weight"} <= set(weights):
        return weights
    try:
        return _renamed(weights)
    except KeyError as error:
        raise ValueError(
            f"This CLIP of transformers has no {error.args[0]}: use the whole file, with both towers and both projections."
        ) from None


def _renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {
        "visual.class_embedding": weights["vision_model.embeddings.class_embedding"].flatten(),
        "visual.positional_embedding": weights["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": weights["vision_model.embeddings.patch_embedding.weight"],
        "token_embedding.weight": weights["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": weights["text_model.embeddings.position_embedding.weight"],
    }
    for old, new in (("visual_projection.weight", "visual.proj"), ("text_projection.weight", "text_projection")):
        renamed[new] = weights[old].T.contiguous()
    if "logit_scale" in weights:
        renamed["logit_scale"] = weights["logit_scale"].reshape(())
    norms = {
        "vision_model.pre_layrnorm": "visual.ln_pre",
        "vision_model.post_layernorm": "visual.ln_post",
        "text_model.final_layer_norm": "ln_final",
    }
    for old, new in norms.items():
        for kind in ("weight", "bias"):
            renamed[f"{new}.{kind}"] = weights[f"{old}.{kind}"]
    for old, new in (
        ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
        ("text_model.encoder.layers.", "transformer.resblocks."),
    ):
        for index in sorted({int(key.removeprefix(old).split(".")[0]) for key in weights if key.startswith(old)}):
            renamed |= {f"{new}{index}.{key}": value for key, value in _block(weights, f"{old}{index}.").items()}
    return renamed


def _block(weights: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """One transformer layer: separate query, key and value matrices become in_proj."""
    block = {}
    for kind in ("weight", "bias"):
        qkv = [weights[f"{prefix}self_attn.{part}_proj.{kind}"] for part in "qkv"]
        block[f"attn.in_proj_{kind}"] = torch.cat(qkv)
        names = {
            "self_attn.out_proj": "attn.out_proj",
            "layer_norm1": "ln_1",
            "layer_norm2": "ln_2",
            "mlp.fc1": "mlp.c_fc",
            "mlp.fc2": "mlp.c_proj",
        }
        block |= {f"{new}.{kind}": weights[f"{prefix}{old}.{kind}"] for old, new in names.items()}
    return block
