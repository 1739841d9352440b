"""Objective: Combine, a weighted sum of objectives."""

import math

from ..._api import io
from ..objective import Objective, ObjectiveSocket
from .values import CATEGORY, objective_output

MOST = 16


class ObjectiveCombine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        template = io.Autogrow.TemplatePrefix(
            ObjectiveSocket.Input("objective", tooltip="An objective; a new socket appears when the last one is used."),
            prefix="objective",
            min=1,
            max=MOST,
        )
        return io.Schema(
            node_id="GuidanceLab_ObjectiveCombine",
            display_name="Objective: Combine",
            category=CATEGORY,
            description="Adds several objectives, each with its weight: several CLIPs as in UPainting, or a text and a "
            "classifier.",
            search_aliases=["ensemble", "add objectives", "weighted sum", "several CLIPs", "combine scorers"],
            inputs=[
                io.Autogrow.Input(
                    "objectives",
                    template=template,
                    tooltip="The objectives to add, up to 16. Each brings its own weight.",
                ),
                io.String.Input(
                    "weights",
                    default="",
                    tooltip="Further weights, one number for each objective in order, with commas, such as 1, 0.5, "
                    "-0.2. "
                    "Empty: all 1.",
                ),
            ],
            outputs=[objective_output()],
        )

    @classmethod
    def validate_inputs(cls, weights=None, objectives=None) -> bool | str:
        try:
            _numbers(weights or "")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, objectives: io.Autogrow.Type, weights="") -> io.NodeOutput:
        given = [one for one in (objectives or {}).values() if one is not None]
        numbers = _numbers(weights) or [1.0] * len(given)
        if not given:
            raise ValueError("Objective: Combine has nothing to combine: connect at least one objective.")
        if len(numbers) != len(given):
            raise ValueError(
                f"Objective: Combine has {len(given)} objectives and {len(numbers)} weights: give one for each, or "
                f"none."
            )
        scaled = [one.scaled(weight) for one, weight in zip(given, numbers, strict=True)]
        return io.NodeOutput(
            Objective(tuple((weight, scorer) for one in scaled for weight, scorer in one.parts if weight))
        )


def _numbers(text: str) -> list[float]:
    """The numbers of a list with commas or spaces. ValueError names what is no finite number."""
    numbers = []
    for word in text.replace(",", " ").split():
        try:
            numbers.append(float(word))
        except ValueError:
            numbers.append(math.nan)
        if not math.isfinite(numbers[-1]):
            raise ValueError(
                f"'{word}' in weights is no finite number: write numbers with commas, such as 1, 0.5, -0.2."
            )
    return numbers


NODES = [ObjectiveCombine]
