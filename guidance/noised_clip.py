"""GLIDE's noise-aware CLIP (Nichol et al. 2021, arXiv 2112.10741): a CLIP that reads noisy images and is told the
timestep.

    model = load(image_state_dict, text_state_dict)         # the public files clip_image_enc.pt and clip_text_enc.pt
    text = model.text(*pad_tokens([ids]))
    score = model.objective(x_t, timestep, text)            # 100 * cosine

Our own implementation of the published architecture; every size is read from the state dicts, so a smaller model of the
same shape loads too. x_t is a pixel image in the VP frame in [-1, 1] units (never clamped), and a timestep is one of
the ORIGINAL 1000, also when the sampler takes fewer steps (`glide.Step.timestep`, `glide.nearest_timestep`).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

HEAD_WIDTH = 64
MAX_DEPTH = 128  # blocks; the public towers have 12
LOGIT_SCALE = 100.0
START_TOKEN, END_TOKEN, CONTEXT = 49406, 49407, 77
# CLIP's pixel statistics in 0..255; constants of GLIDE's code, not in its files.
PIXEL_MEAN = (122.77093945, 116.74601272, 104.09373519)
PIXEL_STD = (68.50053285, 66.63215831, 70.32316309)


class Attention(nn.Module):
    """m + f_c(attention(f_q, f_k, f_v of LayerNorm(m))); the keys have no bias. m: [B, T, width]."""

    def __init__(self, width: int, causal: bool):
        super().__init__()
        self.heads, self.causal = width // HEAD_WIDTH, causal
        self.ln = nn.LayerNorm(width)
        self.f_q = nn.Linear(width, width)
        self.f_k = nn.Linear(width, width, bias=False)
        self.f_v = nn.Linear(width, width)
        self.f_c = nn.Linear(width, width)

    def forward(self, m: torch.Tensor) -> torch.Tensor:
        h = self.ln(m)
        q, k, v = (f(h).unflatten(2, (self.heads, HEAD_WIDTH)).transpose(1, 2) for f in (self.f_q, self.f_k, self.f_v))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return m + self.f_c(h.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """m + f_2(gelu(f_1(LayerNorm(m))))."""

    def __init__(self, width: int):
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.f_1 = nn.Linear(width, 4 * width)
        self.f_2 = nn.Linear(4 * width, width)

    def forward(self, m: torch.Tensor) -> torch.Tensor:
        return m + self.f_2(F.gelu(self.f_1(self.ln(m))))


class Block(nn.Module):
    """One transformer block."""

    def __init__(self, width: int, causal: bool):
        super().__init__()
        self.f_attn = Attention(width, causal)
        self.f_mlp = MLP(width)

    def forward(self, m: torch.Tensor) -> torch.Tensor:
        return self.f_mlp(self.f_attn(m))


class Output(nn.Module):
    """The pooled token to the embedding: [B, width] -> [B, D]."""

    def __init__(self, width: int, embedding: int):
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.f = nn.Linear(width, embedding, bias=False)

    def forward(self, token: torch.Tensor) -> torch.Tensor:
        return self.f(self.ln(token))


class ImageInput(nn.Module):
    """Patches with the embedding of the timestep as the first token: [B, 3, S, S], [B] -> [B, 1 + patches, width]."""

    def __init__(self, width: int, patch: int, tokens: int, timesteps: int):
        super().__init__()
        self.w_t = nn.Parameter(torch.empty(timesteps, width))
        self.patch_proj = nn.Parameter(torch.empty(width, 3, patch, patch))
        self.w_pos = nn.Parameter(torch.empty(tokens, width))
        self.ln = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        mean, std = (x.new_tensor(c)[:, None, None] for c in (PIXEL_MEAN, PIXEL_STD))
        patches = F.conv2d(((x + 1) * 127.5 - mean) / std, self.patch_proj, stride=self.patch_proj.shape[-1])
        first = F.embedding(timestep, self.w_t)[:, None]
        return self.ln(torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1) + self.w_pos)


class TextInput(nn.Module):
    """Token and position embeddings: [B, T] -> [B, T, width]."""

    def __init__(self, width: int, vocabulary: int, context: int):
        super().__init__()
        self.w_voc = nn.Parameter(torch.empty(vocabulary, width))
        self.w_pos = nn.Parameter(torch.empty(context, width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.embedding(tokens, self.w_voc) + self.w_pos


class Encoder(nn.Module):
    """Input, blocks, output, under the names that the public files use."""

    def __init__(self, first: nn.Module, width: int, depth: int, embedding: int, causal: bool):
        super().__init__()
        blocks = {f"block_{i}": Block(width, causal) for i in range(depth)}
        self.depth = depth
        self.blocks = nn.ModuleDict({"input": first, **blocks, "output": Output(width, embedding)})

    def tokens(self, *inputs: torch.Tensor) -> torch.Tensor:
        """All tokens after the last block, [B, T, width]."""
        m = self.blocks["input"](*inputs)
        for i in range(self.depth):
            m = self.blocks[f"block_{i}"](m)
        return m


class NoisedCLIP(nn.Module):
    """Both towers; made by `load`."""

    def __init__(self, image_encoder: Encoder, text_encoder: Encoder):
        super().__init__()
        self.image_encoder, self.text_encoder = image_encoder, text_encoder

    @property
    def image_size(self) -> int:
        """Side of the square image in pixels (64 for the public model)."""
        first: Any = self.image_encoder.blocks["input"]
        return round((len(first.w_pos) - 1) ** 0.5) * first.patch_proj.shape[-1]

    def image(self, x: torch.Tensor, timestep) -> torch.Tensor:
        """Normalized embeddings [B, 512] of noisy images.

        `x`: [B, 3, 64, 64] in the VP frame, [-1, 1] units, not clamped. `timestep`: one for all or [B], original index
        0..999 (0 = nearly clean); a fraction is rounded. Raises ValueError on another shape or a timestep out of range.
        """
        first: Any = self.image_encoder.blocks["input"]
        size, known = self.image_size, len(first.w_t)
        if x.ndim != 4 or x.shape[1:] != (3, size, size):
            raise ValueError(
                f"GLIDE's noised CLIP reads pixels [B, 3, {size}, {size}], not {list(x.shape)}: resize, or decode the "
                f"latent."
            )
        timestep = torch.as_tensor(timestep, device=x.device).reshape(-1)
        if timestep.is_floating_point():
            timestep = timestep.round()
        if len(timestep) not in (1, len(x)):
            raise ValueError(
                f"There are {len(timestep)} timesteps for {len(x)} images: give one, or one for each image."
            )
        if not bool(((timestep >= 0) & (timestep < known)).all()):
            raise ValueError(
                f"Timestep {timestep.tolist()} is not in 0..{known - 1}: give the index in the original schedule."
            )
        tokens = self.image_encoder.tokens(x, timestep.long().expand(len(x)))
        return _normalized(self.image_encoder.blocks["output"](tokens[:, 0]))

    def text(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Normalized embeddings [B, 512] of token ids [B, 77] (`pad_tokens`), read at the last real token, lengths [B]
        - 1.

        Raises ValueError on another width, an id outside the vocabulary or a length outside 1..77.
        """
        first: Any = self.text_encoder.blocks["input"]
        vocabulary, context = len(first.w_voc), len(first.w_pos)
        lengths = torch.as_tensor(lengths, dtype=torch.long, device=tokens.device).reshape(-1)
        if tokens.ndim != 2 or tokens.shape[1] != context or len(lengths) != len(tokens):
            found = f"{list(tokens.shape)} with {len(lengths)}"
            raise ValueError(
                f"GLIDE's noised CLIP reads token ids [B, {context}] with one length for each row, not {found}."
            )
        if tokens.min() < 0 or tokens.max() >= vocabulary or lengths.min() < 1 or lengths.max() > context:
            raise ValueError(
                f"Token ids must be in 0..{vocabulary - 1} and lengths in 1..{context}: tokenize with CLIP's own "
                f"tokenizer."
            )
        states = self.text_encoder.tokens(tokens.long())
        return _normalized(self.text_encoder.blocks["output"](states[torch.arange(len(tokens)), lengths - 1]))

    def objective(self, x: torch.Tensor, timestep, text: torch.Tensor) -> torch.Tensor:
        """exp(logit_scale) * cosine = 100 * cosine, [B], to be raised; its sum over the batch is GLIDE's. `text`: [B or
        1, 512].

        GLIDE multiplies the gradient by a further grad_scale, 3.0 in its notebook.
        """
        return LOGIT_SCALE * (self.image(x, timestep) * text).sum(-1)


def pad_tokens(ids: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Bare BPE ids of CLIP's tokenizer, a list for each prompt -> (tokens [B, 77] int64, lengths [B]): start, at most
    75, end, zeros.
    """
    rows = [[START_TOKEN, *row[: CONTEXT - 2], END_TOKEN] for row in ids]
    return torch.tensor([row + [0] * (CONTEXT - len(row)) for row in rows]), torch.tensor([len(row) for row in rows])


def load(image_state_dict: Mapping[str, torch.Tensor], text_state_dict: Mapping[str, torch.Tensor]) -> NoisedCLIP:
    """The model in float32, eval mode, without parameter gradients, on the device of the weights.

    Raises ValueError when a state dict is not that encoder's (another file, or the two swapped).
    """
    # Tensors made under a host's inference mode could never take part in a gradient.
    with torch.inference_mode(False), torch.no_grad():
        model = NoisedCLIP(_encoder(image_state_dict, "image"), _encoder(text_state_dict, "text"))
        image: Any = model.image_encoder.blocks["output"]
        text: Any = model.text_encoder.blocks["output"]
        if image.f.out_features != text.f.out_features:
            raise ValueError(
                "GLIDE's image and text encoder have embeddings of different sizes: they are not of one model."
            )
    return model.eval().requires_grad_(False)


def _encoder(state_dict: Mapping[str, torch.Tensor], kind: str) -> Encoder:
    own = ("input.w_t", "input.patch_proj") if kind == "image" else ("input.w_voc",)
    for key in (*own, "input.w_pos", "output.f.w"):
        if f"blocks.{key}" not in state_dict:
            raise ValueError(
                f"This is not GLIDE's noised CLIP {kind} encoder (clip_{kind}_enc.pt): it has no blocks.{key}."
            )

    def shape(key: str, ndim: int) -> torch.Size:
        found = state_dict[f"blocks.{key}"].shape
        if len(found) != ndim or 0 in found:
            raise ValueError(
                f"This is not GLIDE's noised CLIP {kind} encoder: blocks.{key} has shape {list(found)}, expected "
                f"{ndim} dimensions."
            )
        return found

    embedding, width = shape("output.f.w", 2)
    depth = len({key.split(".")[1] for key in state_dict if key.startswith("blocks.block_")})
    if depth > MAX_DEPTH or width % HEAD_WIDTH:
        raise ValueError(
            f"This is not GLIDE's noised CLIP {kind} encoder: it would have {depth} blocks of width {width}; expected "
            f"at most {MAX_DEPTH}, and a multiple of {HEAD_WIDTH}."
        )
    context = shape("input.w_pos", 2)[0]
    with torch.device("meta"):
        first: nn.Module
        if kind == "image":
            patch = shape("input.patch_proj", 4)[-1]
            first = ImageInput(width, patch, context, shape("input.w_t", 2)[0])
        else:
            first = TextInput(width, shape("input.w_voc", 2)[0], context)
        encoder = Encoder(first, width, depth, embedding, causal=kind == "text")
    weights = {_torch_name(key): _plain_float(value) for key, value in state_dict.items()}
    try:
        encoder.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"This is not GLIDE's noised CLIP {kind} encoder: {' '.join(str(error).split())[:300]}"
        ) from None
    return encoder


def _torch_name(key: str) -> str:
    """GLIDE's names of a layer's parameters (`.g`, `.w`, `.b`) as PyTorch's."""
    return re.sub(r"\.b$", ".bias", re.sub(r"\.[gw]$", ".weight", key))


def _plain_float(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().to(torch.float32)
    return tensor.clone() if tensor.is_inference() else tensor


def _normalized(embedding: torch.Tensor) -> torch.Tensor:
    return embedding / (embedding.norm(dim=-1, keepdim=True) + 1e-12)
