"""The text tower of any CLIP as a ComfyUI CLIP whose pooled output is the sentence embedding: projected, not
normalized.

ComfyUI's own loaders know the towers of the diffusion models only; ViT-B/32's (width 512) fails there.
"""

import logging

import comfy.clip_model
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.utils
import torch
from comfy_execution.utils import get_executing_context

from ...weight_files import finite
from ..host.node_text import show_on_node

HEAD_WIDTH = 64
MAX_LAYERS = 64


class OneChunkTokenizer(comfy.sd1_clip.SD1Tokenizer):
    """Cuts a prompt after 75 tokens, as OpenAI's truncate=True does, and says so; the pooled output knows no second
    chunk.
    """

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs) -> dict:
        chunks = super().tokenize_with_weights(text, return_word_ids, **kwargs)[self.clip_name]
        if len(chunks) > 1:
            message = "The prompt is longer than the 75 tokens that this CLIP reads; the rest was cut off."
            logging.warning("Guidance Lab: %s", message)
            context = get_executing_context()
            show_on_node(message, context and context.node_id)
        return {self.clip_name: chunks[:1]}


class ProjectedTextModel(comfy.sd1_clip.SD1ClipModel):
    """ComfyUI's CLIP text model of the sizes in `config`; unlike SD1.5's, it returns the projected pooled output."""

    def __init__(self, config: dict, device="cpu", dtype=None, model_options=None):
        sizes = {"clip_model": comfy.sd1_clip.SDClipModel, "textmodel_json_config": config}
        super().__init__(device=device, dtype=dtype, model_options=model_options or {}, **sizes)


def text_tower(state_dict: dict[str, torch.Tensor], embedding_directory: list[str] | None = None) -> comfy.sd.CLIP:
    """The text tower of a CLIP file with the names of OpenAI, open_clip or transformers, in fp32 and with QuickGELU.

    Sizes come from the shapes. ValueError when there is no whole, finite text tower in it.
    """
    try:
        weights = comfy.utils.clip_text_transformers_convert(dict(state_dict), "", "")
    except (RuntimeError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its text tower does not fit together ({' '.join(str(error).split())[:120]})") from None
    weights = {key: value for key, value in weights.items() if key.startswith(("text_model.", "text_projection."))}
    weights.pop("text_model.embeddings.position_ids", None)  # a buffer of older transformers
    config = _config(weights)
    expected = comfy.clip_model.CLIPTextModel(config, torch.float32, "meta", comfy.ops.manual_cast).state_dict()
    for key, tensor in expected.items():
        if key not in weights:
            raise ValueError(f"this CLIP file has no whole text tower: '{key}' is missing")
        if weights[key].shape != tensor.shape:
            raise ValueError(
                f"the text tower has '{key}' of shape {list(weights[key].shape)}, expected {list(tensor.shape)}"
            )
        if not weights[key].is_floating_point():
            raise ValueError(f"the text tower has '{key}' of {weights[key].dtype}, expected floats")
        if not finite(weights[key]):
            raise ValueError(f"'{key}' contains values that are not finite (NaN or infinity); the CLIP file is broken")

    class Target:
        params = {"config": config}
        clip = ProjectedTextModel
        tokenizer = OneChunkTokenizer

    return comfy.sd.CLIP(
        Target, embedding_directory=embedding_directory, parameters=comfy.utils.calculate_parameters(weights),
        state_dict=[weights],
        model_options={"dtype": torch.float32},  # ComfyUI's fp16 would change the embedding by 2e-3
    )  # fmt: skip


def _config(weights: dict[str, torch.Tensor]) -> dict:
    """The sizes of a text tower, in the words of transformers."""

    def shape(key: str) -> torch.Size:
        if key not in weights or weights[key].ndim != 2:
            raise ValueError(f"this CLIP file has no whole text tower: '{key}' is missing")
        return weights[key].shape

    layers = 0
    while f"text_model.encoder.layers.{layers}.layer_norm1.weight" in weights:
        layers += 1
    positions, width = shape("text_model.embeddings.position_embedding.weight")
    if layers > MAX_LAYERS:
        raise ValueError(f"the text tower has {layers} layers; no CLIP has more than {MAX_LAYERS}")
    if width % HEAD_WIDTH or not width:
        raise ValueError(f"the text tower is {width} wide, but attention heads of CLIP are {HEAD_WIDTH} wide")
    return {
        "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": width // HEAD_WIDTH,
        "intermediate_size": shape("text_model.encoder.layers.0.mlp.fc1.weight")[0], "hidden_act": "quick_gelu",
        "max_position_embeddings": positions, "eos_token_id": 49407,
    }  # fmt: skip
