"""The two towers of one CLIP as ComfyUI has them: CLIP_VISION and the text encoder, comparable and differentiable.

ComfyUI's own vision tower cannot be differentiated: it rounds the pixels to 8 bit, adds in place, and its weights are
inference tensors.
"""

from collections.abc import Sequence

import comfy.clip_model
import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_patcher import ModelPatcher

from ..host.networks import as_patcher, dtype_of, normalized, plain
from .scorers import CLIPScorer

# (width, projection) of a vision tower -> (name, width, layers) of the text tower it was trained with.
_PARTNERS = {
    (1024, 768): ("ViT-L/14", 768, 12),
    (1280, 1024): ("ViT-H/14", 1024, 24),
    (1664, 1280): ("ViT-bigG/14", 1280, 32),
}


class ComfyTowers(CLIPScorer):
    """A CLIP_VISION and the tower of a CLIP with which it was trained. Raises ValueError, in one sentence, when they
    are not a pair.
    """

    def __init__(self, clip: comfy.sd.CLIP, clip_vision: ClipVisionModel):
        width = _check_vision(clip_vision)
        self.clip = clip
        self.tower = _text_tower(clip, width)
        _check_pair(clip_vision, getattr(clip.cond_stage_model, self.tower).transformer)
        self.name = f"CLIP_VISION + {self.tower}"
        self.side = clip_vision.image_size
        self.mean, self.std = clip_vision.image_mean, clip_vision.image_std
        self.models = (_own_vision(clip_vision),)

    def embed_pictures(self, view: torch.Tensor) -> torch.Tensor:
        patcher = self.models[0]
        pixels = normalized(view.to(patcher.load_device), self.mean, self.std)
        return _embed(patcher.model, pixels.to(dtype_of(patcher.model))).float()

    def embed_lines(self, lines: Sequence[str]) -> torch.Tensor:
        self.clip.load_model()
        tower = getattr(self.clip.cond_stage_model, self.tower)
        rows = []
        try:
            tower.set_clip_options({"execution_device": self.clip.patcher.load_device, "projected_pooled": True})
            for line in lines:
                tokens = self.clip.tokenize(line)[self.tower.removeprefix("clip_")]
                rows.append(tower.encode_token_weights(tokens)[1])
        finally:
            tower.reset_clip_options()
        return plain(torch.cat(rows).float())


def _check_vision(clip_vision: ClipVisionModel) -> int:
    """The width of its projection. ValueError when there is none, or when no text tower that ComfyUI loads goes with
    it.
    """
    if clip_vision.model_type != "clip_vision_model":
        raise ValueError(
            f"This CLIP_VISION is a {clip_vision.model_type} without the head that compares pictures with text: "
            "use CLIP-ViT-L, H or bigG, or one open_clip file with both towers."
        )
    projection = getattr(clip_vision.model.visual_projection, "weight", None)
    if projection is None or not _is_trained(projection):
        raise ValueError(
            "This CLIP_VISION has no trained visual projection: load a file with visual_projection.weight (or "
            "visual.proj)."
        )
    if clip_vision.config["hidden_size"] == 1024 and clip_vision.image_size == 336:
        raise ValueError(
            "CLIP-ViT-L at 336 pixels was trained with a text tower of its own, which no CLIP loader has: "
            "use the 224 pixel version, or one open_clip file with both towers."
        )
    return projection.shape[0]


def _text_tower(clip: comfy.sd.CLIP, width: int) -> str:
    """Name of the CLIP text tower in `clip` whose projection is `width` wide."""
    towers = {
        name: child.transformer.text_projection.weight.shape[0]
        for name, child in clip.cond_stage_model.named_children()
        if isinstance(child, comfy.sd1_clip.SDClipModel)
        and isinstance(child.transformer, comfy.clip_model.CLIPTextModel)
    }
    if not towers:
        raise ValueError(
            "This CLIP has no CLIP text tower in it (it is another kind of text encoder): connect the CLIP of SD1.5, "
            "SDXL or SD2."
        )
    found = [name for name, own in towers.items() if own == width]
    if not found:
        has = ", ".join(f"{name} {own}" for name, own in towers.items())
        raise ValueError(
            f"CLIP_VISION and CLIP are not the two towers of one model: pictures become {width} numbers, text becomes "
            f"{has}; "
            "ViT-L goes with clip_l, bigG with SDXL's clip_g, H with SD2's."
        )
    return found[0]


def _check_pair(clip_vision: ClipVisionModel, text: comfy.clip_model.CLIPTextModel) -> None:
    config, projection = clip_vision.config, text.text_projection.weight
    partner = _PARTNERS.get((config["hidden_size"], config["projection_dim"]))
    own = text.text_model.embeddings.token_embedding.weight.shape[1], text.num_layers
    if partner is not None and own != partner[1:]:
        raise ValueError(
            f"CLIP_VISION is {partner[0]}, whose text tower is {partner[1]} wide with {partner[2]} layers, and this "
            f"CLIP's is {own[0]} wide with {own[1]}: connect the text encoder of the same model."
        )
    if not _is_trained(projection):
        raise ValueError(
            "The text encoder's file has no text_projection (that of an SD1.x or SDXL checkpoint never has one for "
            "CLIP-L), so text cannot be compared with pictures: load a full clip_l file with Load CLIP, or one "
            "open_clip file with both towers."
        )


def _is_trained(weight: torch.Tensor) -> bool:
    """Whether a matrix can be weights. A loader leaves a matrix that its file lacks as memory happens to be: zeros,
    NaN, absurd numbers.
    """
    weight = weight.detach().float()
    return bool(torch.isfinite(weight).all() and (weight.abs().amax(1) > 0).all() and weight.abs().max() < 100)


def _own_vision(clip_vision: ClipVisionModel) -> ModelPatcher:
    """The vision tower in a module of its own, on the same weights where device and dtype allow it."""
    offload = comfy.model_management.text_encoder_offload_device()
    with torch.inference_mode(False):
        weights = {key: plain(value.to(offload)) for key, value in clip_vision.model.state_dict().items()}
        module = comfy.clip_model.CLIPVisionModelProjection(
            clip_vision.config, torch.float32, "meta", comfy.ops.manual_cast
        )
        module.load_state_dict(weights, assign=True)
    return as_patcher(module)


def _embed(module: comfy.clip_model.CLIPVisionModelProjection, pixels: torch.Tensor) -> torch.Tensor:
    """What `CLIPVisionModelProjection.forward` computes, without adding in place and with an attention that has a
    gradient.
    """
    tower = module.vision_model
    x = tower.pre_layrnorm(tower.embeddings(pixels))
    for layer in tower.encoder.layers:
        x = x + layer.self_attn(layer.layer_norm1(x), None, attention_pytorch)
        x = x + layer.mlp(layer.layer_norm2(x))
    return module.visual_projection(tower.post_layernorm(x[:, 0]))
