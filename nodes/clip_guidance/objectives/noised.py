"""Objective: Noised CLIP, GLIDE's CLIP that reads noisy pictures."""

import math
from collections.abc import Callable

import torch

from ....guidance.glide import cosine_alpha_bars, nearest_timestep, renoise
from ....guidance.noised_clip import NoisedCLIP, load, pad_tokens
from ....shapes.clip import lengths, tokens
from ....shapes.shipped import has_noised_clip, noised_clip_files
from ..._api import io
from ...host.networks import as_patcher, dtype_of
from ..clip_formats import read_weights
from ..clip_weights import open_clip
from ..objective import Scorer, ScoringStep
from ..scorer_loader import scorer_file, scorer_files
from .values import CATEGORY, lines_of, objective, objective_output, weight_input

SHAPES = "Shapes noised CLIP (comes with the pack)"
SHAPES_128 = "Shapes noised CLIP, 128 pixels (comes with the pack)"
# Name in the lists: what `shapes.shipped` calls it. The first reads the pictures of Shapes GLIDE; its name is older
# than the pictures of 128 pixels.
SHIPPED = {SHAPES: "glide", SHAPES_128: "shapes"}
EMPTY = "The text of Objective: Noised CLIP is empty: write what the picture should show."


class NoisyScore(Scorer):
    """GLIDE's own use: the noisy sample itself at its own timestep. Only pixel-space models have one to show."""

    noisy = True

    def __init__(self, clip: NoisedCLIP, target: torch.Tensor):
        self.alpha_bars, self.target = cosine_alpha_bars(), target
        self.side, self.name = clip.image_size, "noised CLIP"
        self.models = (as_patcher(clip),)

    def score(self, view: torch.Tensor, step: ScoringStep) -> torch.Tensor:
        return self._compare(view.to(self.models[0].load_device), nearest_timestep(step.level, self.alpha_bars))

    def _compare(self, x: torch.Tensor, timestep) -> torch.Tensor:
        model = self.models[0].model
        return model.objective(x.to(dtype_of(model)), timestep, self.target.to(x.device, dtype_of(model))).float()


class RenoisedScore(NoisyScore):
    """On a clean estimate: noise of one chosen timestep is added, and the mean over `count` draws is taken (randomized
    smoothing).

    The draws are the same for all pictures of a batch, so that a batch of two is two singles.
    """

    noisy = False

    def __init__(self, clip: NoisedCLIP, target: torch.Tensor, timestep: int, count: int):
        super().__init__(clip, target)
        self.timestep, self.count = timestep, count

    def score(self, view: torch.Tensor, step: ScoringStep) -> torch.Tensor:
        clean = 2 * view.to(self.models[0].load_device) - 1
        abar = self.alpha_bars[self.timestep]
        scores = []
        for _ in range(self.count):
            noise = renoise(torch.zeros_like(clean[:1]), abar, step.generator)
            scores.append(self._compare(math.sqrt(abar) * clean + noise, self.timestep))
        return sum(scores) / self.count


def load_pair(image_encoder: str, text_encoder: str) -> tuple[NoisedCLIP, Callable[[list[str]], tuple]]:
    """(network, its tokenizer: texts → (ids [B, L], lengths [B])) of two names in the lists.

    Raises ValueError, in one sentence, when they are not the two halves of one noised CLIP.
    """
    names = (image_encoder, text_encoder)
    shipped = next((name for name in names if name in SHIPPED), None)
    if shipped:
        if names != (shipped, shipped):
            raise ValueError(
                f"'{shipped}' has both encoders: choose it in both lists of Objective: Noised CLIP, or in none."
            )

        def of_shapes(lines: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
            ids = tokens(lines)
            return ids, lengths(ids)

        return load(*noised_clip_files(SHIPPED[shipped])), of_shapes
    words = open_clip().SimpleTokenizer()
    network = load(*(read_weights(scorer_file(name), whole=False) for name in names))
    return network, lambda lines: pad_tokens([words.encode(line) for line in lines])


def _files() -> list[str]:
    """What the lists offer: the user's files, then what comes with the pack."""
    return [*scorer_files(), *(name for name, kind in SHIPPED.items() if has_noised_clip(kind))]


def embed_text(clip: NoisedCLIP, tokenize: Callable[[list[str]], tuple], lines: list[str]) -> torch.Tensor:
    """Mean of the embeddings [1, D] of texts."""
    with torch.inference_mode(False), torch.no_grad():
        vectors = clip.text(*tokenize(lines))
        if not torch.isfinite(vectors).all():
            raise ValueError("The noised CLIP makes NaN of the text: its files are damaged; download them again.")
        mean = vectors.mean(0, keepdim=True)
        return mean / mean.norm()


class ObjectiveNoisedCLIP(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_ObjectiveNoisedCLIP",
            display_name="Objective: Noised CLIP (GLIDE)",
            category=CATEGORY,
            description=(
                "Guides with GLIDE's CLIP, which was trained on noisy 64×64 pictures: on the noisy sample of a "
                "pixel-space model, or on the decoded estimate with new noise."
            ),
            search_aliases=["GLIDE", "noised CLIP", "noise-aware CLIP", "CLIP guidance", "randomised smoothing"],
            inputs=[
                io.Combo.Input(
                    "image_encoder",
                    options=_files(),
                    tooltip="GLIDE's clip_image_enc.pt, in models/clip_vision or models/text_encoders. Those of "
                    "Shapes come with the pack and know the words of Shapes alone.",
                ),
                io.Combo.Input(
                    "text_encoder",
                    options=_files(),
                    tooltip="GLIDE's clip_text_enc.pt, in models/clip_vision or models/text_encoders. Those of "
                    "Shapes come with the pack.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    tooltip="What the picture should show. Each line is a text of its own, and the target is the mean "
                    "of their directions. It was trained without pictures of people.",
                ),
                weight_input(),
                io.DynamicCombo.Input(
                    "looks_at",
                    options=[
                        io.DynamicCombo.Option("estimate", _estimate_inputs()),
                        io.DynamicCombo.Option("sample", []),
                    ],
                    tooltip="estimate: the decoded estimate with new noise, for every model. sample: the noisy sample "
                    "itself as in GLIDE, for pixel-space models only; no gradient through the model is needed.",
                ),
            ],
            outputs=[objective_output()],
        )

    @classmethod
    def validate_inputs(cls, text=None, looks_at=None) -> bool | str:
        return True if text is None or lines_of(text) else EMPTY  # None: it is linked

    @classmethod
    def execute(
        cls, image_encoder: str, text_encoder: str, text: str, weight=1.0, looks_at: dict | None = None
    ) -> io.NodeOutput:
        looks_at = looks_at or {}
        if looks_at.get("looks_at") not in ("estimate", "sample"):
            raise ValueError("Objective: Noised CLIP does not know this looks_at: choose estimate or sample.")
        lines = lines_of(text)
        if not lines:
            raise ValueError(EMPTY)
        clip, tokenize = load_pair(image_encoder, text_encoder)
        target = embed_text(clip, tokenize, lines)
        if looks_at["looks_at"] == "sample":
            return io.NodeOutput(objective(weight, NoisyScore(clip, target)))
        timestep, count = looks_at.get("timestep", 250), looks_at.get("draws", 2)
        return io.NodeOutput(objective(weight, RenoisedScore(clip, target, timestep, count)))


def _estimate_inputs() -> list:
    return [
        io.Int.Input(
            "timestep",
            default=250,
            min=0,
            max=999,
            tooltip="How much noise is added before looking, as GLIDE's timestep: 0 nearly none, 250 a quarter of the "
            "steps, 999 all. "
            "More makes the gradient smoother and blinder.",
        ),
        io.Int.Input(
            "draws",
            default=2,
            min=1,
            max=16,
            tooltip="How many noises are averaged at each look. 1 is quick, 2 to 4 usual; the cost grows with it.",
        ),
    ]


NODES = [ObjectiveNoisedCLIP]
