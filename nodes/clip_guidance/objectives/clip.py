"""Objective: CLIP Text and Objective: CLIP Image."""

import comfy.model_management
import torch

from ....guidance.crops import Box, view, whole_view
from ....guidance.similarity import cosine, spherical
from ..._api import io
from ...host.networks import plain
from ..objective import ScorerSocket
from ..scorers import CLIPScorer, CLIPSimilarity, mean_direction
from .values import CATEGORY, lines_of, objective, objective_output, weight_input

SIMILARITIES = {"cosine": cosine, "spherical": spherical}
EMPTY = "The text of Objective: CLIP Text is empty: write what the picture should show, or take the objective out."


def scorer_input() -> ScorerSocket.Input:
    return ScorerSocket.Input(
        "scorer", tooltip="The CLIP that compares, from CLIP Scorer Loader or Shapes Demo Models."
    )


def similarity_input() -> io.Combo.Input:
    return io.Combo.Input(
        "similarity",
        options=list(SIMILARITIES),
        default="cosine",
        tooltip="cosine of the angle between the embeddings, or spherical, minus half the angle squared (Disco "
        "Diffusion, UPainting). "
        "Their gradients point the same way; spherical only counts 1.3 to 1.4 times as much in a combination.",
    )


class ObjectiveCLIPText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_ObjectiveCLIPText",
            display_name="Objective: CLIP Text",
            category=CATEGORY,
            description="Guides towards pictures that a CLIP finds similar to a text.",
            search_aliases=["CLIP guidance", "text objective", "CLIP similarity", "prompt", "f(x).g(c)"],
            inputs=[
                scorer_input(),
                io.String.Input(
                    "text",
                    multiline=True,
                    tooltip="What the picture should show, usually the prompt without weights. Each line is a text of "
                    "its own, and the target is the mean of their directions. CLIP reads about 50 words of a line.",
                ),
                weight_input(),
                similarity_input(),
            ],
            outputs=[objective_output()],
        )

    @classmethod
    def validate_inputs(cls, text=None) -> bool | str:
        return True if text is None or lines_of(text) else EMPTY  # None: it is linked

    @classmethod
    def execute(cls, scorer: CLIPScorer, text: str, weight=1.0, similarity="cosine") -> io.NodeOutput:
        lines = lines_of(text)
        if not lines:
            raise ValueError(EMPTY)
        target = mean_direction(_finite(scorer.embed_lines(lines), "text"))
        return io.NodeOutput(
            objective(weight, CLIPSimilarity(scorer, target, SIMILARITIES[similarity], f"CLIP text ({scorer.name})"))
        )


class ObjectiveCLIPImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_ObjectiveCLIPImage",
            display_name="Objective: CLIP Image",
            category=CATEGORY,
            description="Guides towards pictures that a CLIP finds similar to a reference picture: its content and "
            "style, not its layout.",
            search_aliases=["CLIP guidance", "image objective", "reference image", "style", "CLIP image prompt"],
            inputs=[
                scorer_input(),
                io.Image.Input(
                    "image", tooltip="The reference. Of a batch the target is the mean of the pictures' directions."
                ),
                weight_input(),
                similarity_input(),
                io.Combo.Input(
                    "crop",
                    options=["center", "whole"],
                    default="center",
                    tooltip="center: the middle square of the reference, as CLIP was trained. "
                    "whole: all of it, padded to a square with black.",
                ),
            ],
            outputs=[objective_output()],
        )

    @classmethod
    def execute(
        cls, scorer: CLIPScorer, image: torch.Tensor, weight=1.0, similarity="cosine", crop="center"
    ) -> io.NodeOutput:
        if len(image) == 0:
            raise ValueError("The reference of Objective: CLIP Image is an empty batch: connect at least one picture.")
        comfy.model_management.load_models_gpu(list(scorer.models))
        with torch.inference_mode(False), torch.no_grad():
            pictures = plain(image)[..., :3].movedim(-1, 1).float()
            height, width = pictures.shape[-2:]
            square = min(height, width)
            middle = Box((height - square) // 2, (width - square) // 2, square)
            seen = whole_view(pictures, scorer.side) if crop == "whole" else view(pictures, middle, scorer.side)
            embeddings = torch.cat([scorer.embed_pictures(one) for one in seen.clamp(0, 1).split(1)])
            target = mean_direction(_finite(embeddings, "reference picture"))
        return io.NodeOutput(
            objective(weight, CLIPSimilarity(scorer, target, SIMILARITIES[similarity], f"CLIP image ({scorer.name})"))
        )


def _finite(embeddings: torch.Tensor, what: str) -> torch.Tensor:
    if not torch.isfinite(embeddings).all():
        raise ValueError(f"The CLIP makes NaN of the {what}: its file is damaged, or lacks weights; download it again.")
    return embeddings


NODES = [ObjectiveCLIPText, ObjectiveCLIPImage]
