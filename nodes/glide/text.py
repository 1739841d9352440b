"""GLIDE's text transformer as a CLIP of ComfyUI. Imported when a model is loaded, and not before."""

import logging
from functools import partial

import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.supported_models_base
import comfy.utils
import torch
from comfy_execution.utils import get_executing_context

from ...glide.config import Config
from ...glide.text import TextEncoder
from ...glide.tokenizer import encode, pad
from ..host.node_text import show_on_node
from .network import host_attention
from .run_state import TEXT

NAME = "glide"


class Tokenizer:
    """A prompt → one row of (token, weight 1.0) pairs. Nothing in a prompt is special, brackets are letters like any
    other.
    """

    def __init__(self, embedding_directory=None, tokenizer_data=None, text_ctx: int = 128):
        self.text_ctx = text_ctx

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs) -> dict:
        ids = encode(text)
        if len(ids) > self.text_ctx:
            message = f"The prompt is longer than the {self.text_ctx} tokens that GLIDE reads; the rest was cut off."
            logging.warning("Guidance Lab: %s", message)
            context = get_executing_context()
            show_on_node(message, context and context.node_id)
        return {NAME: [[(token, 1.0, 0) if return_word_ids else (token, 1.0) for token in ids[: self.text_ctx]]]}

    def untokenize(self, token_weight_pair: list) -> list:
        return [(pair, "") for pair in token_weight_pair]

    def state_dict(self) -> dict:
        return {}


class TextModel(torch.nn.Module):
    """What ComfyUI's CLIP object asks of a text model. It computes in float32, whatever its weights are kept in."""

    def __init__(self, config: Config, fingerprint: str, device=None, dtype=None, model_options=None):
        super().__init__()
        self.dtypes = {dtype, torch.float32}
        self.config, self.fingerprint = config, fingerprint
        self.encoder = TextEncoder(config, dtype, device, comfy.ops.manual_cast, host_attention)
        self.reset_clip_options()

    def set_clip_options(self, options: dict) -> None:
        if options.get("layer") is not None:
            raise ValueError("GLIDE's text transformer gives its last layer only: take CLIP Set Last Layer out.")
        self.device = options.get("execution_device", self.device)

    def reset_clip_options(self) -> None:
        self.device = None

    def encode_token_weights(self, tokens: dict) -> tuple[torch.Tensor, torch.Tensor, dict]:
        """(xf_out [B, L, W], xf_proj [B, 4C], what goes into the conditioning beside them)."""
        if NAME not in tokens:
            raise ValueError("These tokens are of another text model; tokenize with this CLIP.")
        rows = [pad([pair[0] for pair in row], self.config.text_ctx) for row in tokens[NAME]]
        device = self.device or self.encoder.padding_embedding.device
        ids, mask = (torch.tensor([row[part] for row in rows], device=device) for part in (0, 1))
        xf_proj, xf_out = self.encoder(ids, mask, dtype=torch.float32)
        keep = comfy.model_management.intermediate_device()
        return xf_out.to(keep), xf_proj.to(keep), {TEXT: self.fingerprint}

    def load_sd(self, tensors: dict):
        return self.encoder.load_state_dict(tensors, strict=False, assign=getattr(self, "can_assign_sd", False))


def make_clip(config: Config, tensors: dict[str, torch.Tensor], fingerprint: str, dtype: torch.dtype) -> comfy.sd.CLIP:
    """The CLIP of a network's own text transformer, given its tensors."""
    target = comfy.supported_models_base.ClipTarget(
        partial(Tokenizer, text_ctx=config.text_ctx), partial(TextModel, config=config, fingerprint=fingerprint)
    )
    parameters = comfy.utils.calculate_parameters(tensors)
    return comfy.sd.CLIP(target, parameters=parameters, state_dict=[tensors], model_options={"dtype": dtype})
