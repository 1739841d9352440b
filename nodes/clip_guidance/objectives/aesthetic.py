"""Objective: Aesthetic, the rating that a small head gives to the CLIP embedding of a picture."""

from pathlib import Path

import comfy.model_management
import torch

from ....guidance.aesthetic import Head, head_of, rating
from ....weight_files import finite, read_tensors
from ..._api import io
from ...host.folders import files_in, path_of
from ..objective import Scorer, ScoringStep
from ..scorers import CLIPScorer
from .clip import scorer_input
from .values import CATEGORY, objective, objective_output, weight_input

FOLDER = "aesthetic"


class Rating(Scorer):
    """What the head says to the picture's embedding: about 1 to 10 for pictures as the head has seen them."""

    def __init__(self, clip: CLIPScorer, head: Head, name: str):
        self.clip, self.head, self.name = clip, head, name
        self.side, self.models = clip.side, clip.models

    def score(self, view: torch.Tensor, step: ScoringStep) -> torch.Tensor:
        return rating(self.clip.embed_pictures(view), self.head)


def read_head(path: Path) -> Head:
    """The head in a file. ValueError, in one sentence, when it is another file or damaged."""
    tensors = read_tensors(path, inside=("state_dict",)).tensors
    try:
        head = head_of(tensors)
    except ValueError as error:
        raise ValueError(f"{path.name}: the file {error}.") from None
    if not all(finite(tensor) for layer in head.layers for tensor in layer):
        raise ValueError(f"{path.name}: the file holds NaN or infinity: download it again.")
    return head


class ObjectiveAesthetic(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_ObjectiveAesthetic",
            display_name="Objective: Aesthetic",
            category=CATEGORY,
            description="Guides towards pictures that a rating head on a CLIP finds pleasing (LAION's aesthetic "
            "predictors).",
            search_aliases=["aesthetic score", "LAION aesthetics", "improved aesthetic predictor", "rating", "beauty"],
            inputs=[
                scorer_input(),
                io.Combo.Input(
                    "head",
                    options=files_in(FOLDER),
                    tooltip="A file in models/aesthetic: LAION's linear head (sa_0_4_vit_l_14_linear.pth) or one of "
                    "five layers (sac+logos+ava1-l14-linearMSE). Both belong to OpenAI's ViT-L/14: connect that "
                    "CLIP, another one makes the numbers meaningless. Nothing is downloaded.",
                ),
                weight_input(),
            ],
            outputs=[objective_output()],
        )

    @classmethod
    def execute(cls, scorer: CLIPScorer, head: str, weight=1.0) -> io.NodeOutput:
        made = Rating(scorer, read_head(Path(path_of(FOLDER, head))), f"Aesthetic ({head})")
        _try(made, head)
        return io.NodeOutput(objective(weight, made))


def _try(made: Rating, name: str) -> None:
    """Refuses now, not in mid-run, a head that belongs to a CLIP of another size."""
    comfy.model_management.load_models_gpu(list(made.models))
    with torch.inference_mode(False), torch.no_grad():
        width = made.clip.embed_pictures(torch.zeros(1, 3, made.side, made.side)).shape[1]
    if width != made.head.width:
        raise ValueError(
            f"{name} rates embeddings of {made.head.width} numbers, and those of {made.clip.name} have {width}: "
            "connect the CLIP that it was made for, usually OpenAI's ViT-L/14."
        )


NODES = [ObjectiveAesthetic]
