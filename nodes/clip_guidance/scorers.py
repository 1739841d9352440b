"""The value of a GUIDANCELAB_CLIP_SCORER socket: both towers of one CLIP, and the score that comparing them gives."""

from collections.abc import Callable, Sequence

import comfy.model_management
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher

from ..host.networks import as_patcher, dtype_of, normalized
from .objective import Scorer, ScoringStep


class CLIPScorer:
    """Both towers of one CLIP. `side`: pixels of the square picture it reads; `models`: what embedding a picture needs
    loaded.
    """

    name: str
    side: int
    models: tuple[ModelPatcher, ...]

    def embed_pictures(self, view: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, D], float32, not normalized, of pictures [B, 3, side, side] (RGB, 0..1). Differentiable;
        `models` are loaded.
        """
        raise NotImplementedError

    def embed_lines(self, lines: Sequence[str]) -> torch.Tensor:
        """Embeddings [N, D], float32, not normalized, of texts; loads what it needs. Normal tensors without a graph."""
        raise NotImplementedError


class OpenCLIPScorer(CLIPScorer):
    """A CLIP of open_clip: any module with `encode_image` and `encode_text`.

    `tokenize(list of str) -> LongTensor [N, context]`; `mean`, `std`: the pixel statistics it was trained with, for
    pixels in 0..1. The module is frozen and handed to ComfyUI's memory management. It may have been built inside or
    outside inference mode.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        tokenize: Callable[[list[str]], torch.Tensor],
        mean: Sequence[float],
        std: Sequence[float],
        side: int,
        name: str = "CLIP",
    ):
        self.name, self.side = name, side
        self.tokenize, self.mean, self.std = tokenize, tuple(mean), tuple(std)
        self.models = (as_patcher(module),)

    def embed_pictures(self, view: torch.Tensor) -> torch.Tensor:
        patcher = self.models[0]
        pixels = normalized(view.to(patcher.load_device), self.mean, self.std)
        return patcher.model.encode_image(pixels.to(dtype_of(patcher.model))).float()

    def embed_lines(self, lines: Sequence[str]) -> torch.Tensor:
        comfy.model_management.load_models_gpu(list(self.models))
        patcher = self.models[0]
        with torch.inference_mode(False), torch.no_grad():
            return patcher.model.encode_text(self.tokenize(list(lines)).to(patcher.load_device)).float()


class CLIPSimilarity(Scorer):
    """Similarity of a picture to one target embedding [1, D]. `similarity`: `cosine` or `spherical` of
    guidance/similarity.py.
    """

    def __init__(self, clip: CLIPScorer, target: torch.Tensor, similarity: Callable, name: str):
        self.clip, self.target, self.similarity = clip, target, similarity
        self.name, self.side, self.models = name, clip.side, clip.models

    def score(self, view: torch.Tensor, step: ScoringStep) -> torch.Tensor:
        embedding = self.clip.embed_pictures(view)
        return self.similarity(embedding, self.target.to(embedding.device))


def mean_direction(embeddings: torch.Tensor) -> torch.Tensor:
    """The mean of normalized embeddings [N, D] -> [1, D] (prompt ensembling of Radford et al. 2021): each counts the
    same.
    """
    with torch.inference_mode(False), torch.no_grad():
        return F.normalize(embeddings, dim=-1).mean(0, keepdim=True)
