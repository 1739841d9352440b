"""Objective: Caption Likelihood, a captioner's own judgement how likely a text is for a picture."""

import torch

from ....guidance.likelihood import CAPTION, TOKEN
from ..._api import io
from ...captions import Captioner, CaptionerSocket
from ..objective import Scorer, ScoringStep
from .values import CATEGORY, lines_of, objective, objective_output, weight_input

EMPTY = "The text of Objective: Caption Likelihood is empty: write what the picture should show."


class CaptionLikelihood(Scorer):
    """log p(text | picture) of a captioner, the mean over the lines, minus the same of the lines `against`.

    All texts are one batched pass, and each picture goes through the vision tower once. A caption tells what the whole
    picture shows, and is false of a crop.
    """

    whole = True

    def __init__(self, captioner: Captioner, lines: list[str], against: list[str], per: str):
        """ValueError, in one sentence, when the captioner has no usable loss or cannot read a line."""
        self.likelihood, self.count, self.per = captioner.likelihood, len(lines), per
        self.texts = self.likelihood.texts([*lines, *against])
        self.name, self.models = f"Caption likelihood ({captioner.name})", captioner.models
        self.memory = self.likelihood.memory(len(lines) + len(against))
        self.side, self.fill = self.likelihood.side, None if self.likelihood.squeezes else 0.0

    def score(self, view: torch.Tensor, step: ScoringStep) -> torch.Tensor:
        said = self.likelihood(view, self.texts.for_each(len(view)), self.per).reshape(-1, len(view))
        wanted, unwanted = said[: self.count], said[self.count :]
        return wanted.mean(0) - unwanted.mean(0) if len(unwanted) else wanted.mean(0)


class ObjectiveCaptionLikelihood(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_ObjectiveCaptionLikelihood",
            display_name="Objective: Caption Likelihood",
            category=CATEGORY,
            description="Guides towards pictures of which a captioner would say the text: it reads the text word by "
            "word while it looks at the picture.",
            search_aliases=[
                "captioner",
                "log likelihood",
                "caption loss",
                "BLIP",
                "BLIP-2",
                "GIT",
                "Florence-2",
                "teacher forcing",
                "image to text",
                "compositional",
            ],
            inputs=[
                CaptionerSocket.Input(
                    "captioner",
                    tooltip="Who judges: BLIP, BLIP-2 with OPT, GIT or Florence-2 from Captioner Loader, or the one of "
                    "Shapes Demo Models. The same one may serve Caption Residual Guidance; it is loaded once.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    tooltip="What the picture should show, usually the prompt, in the kind of sentence that the "
                    "captioner writes. Each line is a text of its own; their log-likelihoods are averaged.",
                ),
                weight_input(),
                io.Combo.Input(
                    "per",
                    options=[TOKEN, CAPTION],
                    default=TOKEN,
                    tooltip="What the log-likelihood is counted for. token: the mean over the tokens, the same for "
                    "short and long texts (in Shapes -4.5 for another picture's caption, -0.02 for its own). caption: "
                    "the sum over the text. It matters beside other objectives, with several lines, and with against.",
                ),
                io.String.Input(
                    "against",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="What must not be said of the picture, such as the prompt with the colours exchanged: its "
                    "log-likelihood is subtracted, which leaves what tells the two apart. Lines as in text; usually "
                    "empty.",
                ),
            ],
            outputs=[objective_output()],
        )

    @classmethod
    def validate_inputs(cls, text=None) -> bool | str:
        return True if text is None or lines_of(text) else EMPTY  # None: it is linked

    @classmethod
    def execute(cls, captioner: Captioner, text: str, weight=1.0, per=TOKEN, against="") -> io.NodeOutput:
        lines = lines_of(text)
        if not lines:
            raise ValueError(EMPTY)
        if captioner is None:
            raise ValueError("Objective: Caption Likelihood got no captioner: connect Captioner Loader.")
        return io.NodeOutput(objective(weight, CaptionLikelihood(captioner, lines, lines_of(against), per)))


NODES = [ObjectiveCaptionLikelihood]
