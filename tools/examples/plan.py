"""What an example workflow is before it is placed: nodes in groups and columns, a note, the files it needs."""

import re
from dataclasses import dataclass, field

GROUPS = {  # key → title and colour; the colours are those of the canvas's own menu
    "models": ("1 models", "#3f789e"),
    "without": ("2 without", "#888888"),
    "with": ("3 with", "#b06634"),
    "compare": ("4 compare", "#88AA88"),
}
# Width and height to give by class, in canvas units without the title; a node is never made smaller than its content.
SIZES = {
    "CLIPTextEncode": (270, 100), "EmptyLatentImage": (210, 0), "GuidanceLab_ShapesDemoModels": (210, 0),
    "KSampler": (270, 0), "VAEDecode": (200, 0), "ImageScaleBy": (220, 0), "SaveImage": (284, 330),
    "PreviewImage": (284, 330), "ImageCompare": (420, 400), "GuidanceLab_GuidanceTracePlot": (430, 460),
    "GuidanceLab_PerBlockPrompt": (400, 560), "GuidanceLab_PerBlockConditioning": (400, 560),
    "CheckpointLoaderSimple": (290, 0), "GuidanceLab_XTIInfo": (340, 200),
}  # fmt: skip
SIZE = (270, 0)
# How much taller a node becomes when it has something to show: kept free below it, where the whole still fits.
LITTLE = dict.fromkeys(  # always: a line of text after a run, a long file name that takes a second line
    ("GuidanceLab_GuidanceTrace", "GuidanceLab_CLIPScorerLoader", "GuidanceLab_GLIDELoader", "GuidanceLab_GALIPCLIP",
     "GuidanceLab_GALIPLoader", "GuidanceLab_CaptionerLoader", "CheckpointLoaderSimple"), 44,
)  # fmt: skip
LITTLE |= {"GuidanceLab_CLIPScorerLoader": 86, "GuidanceLab_ObjectiveAesthetic": 24}
GROWS = {"GuidanceLab_CLIPGuidance": 415, "GuidanceLab_UPaintingCLIPGuider": 415, "GuidanceLab_XTITrain": 440}
BELOW = 99  # the column of what stands below all columns of its group, as wide as they


@dataclass
class ModelFile:
    """A file under models/ that the user brings: `path` with its folder, and where it can be had."""

    path: str
    url: str = ""

    @property
    def folder(self) -> str:
        return self.path.split("/")[0]

    @property
    def name(self) -> str:
        return self.path.split("/", 1)[1]


@dataclass
class Place:
    """Where a node belongs: its group, its column in the group, and how large it should be at least."""

    group: str
    column: int
    size: tuple[int, int]
    collapsed: bool = False


class Ref:
    """A node of an example; `ref[k]` is its output k as an input of another node."""

    def __init__(self, node_id: str):
        self.id = node_id

    def __getitem__(self, output: int) -> list:
        return [self.id, output]


@dataclass
class Example:
    """An API prompt with the places of its nodes.

    `columns` holds groups from left to right, each entry those that stand above one another. `note` is Markdown. `card`
    names the outputs whose pictures make the card, "before" and "after" or "whole"; `needs` is said on the card.
    """

    name: str
    note: str
    columns: list[list[str]] = field(default_factory=lambda: [["models"], ["without", "with"], ["compare"]])
    groups: dict[str, tuple[str, str]] = field(default_factory=lambda: dict(GROUPS))
    files: list[ModelFile] = field(default_factory=list)
    needs: str = ""
    note_at: tuple[str, str] = ("above", "models")  # above or below which group; as wide as that column, if it can
    prompt: dict[str, dict] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    card: dict[str, list] = field(default_factory=dict)
    card_labels: tuple[str, str] = ("without", "with")

    def __post_init__(self):
        self.note = re.sub("`([^`]+)`", r"**\1**", self.note)  # Nodes 2.0 draws code in a note in blue on its brown

    def node(
        self, class_type: str, title: str = "", /, *, at: tuple[str, int], size: tuple[int, int] | None = None, **inputs
    ) -> Ref:
        """Add a node `at` (group, column); nodes of one column stand below one another in the order of their making.

        A dot in an input's name is written as two underscores; `size_` is the input `size`.
        """
        node_id = str(len(self.prompt) + 1)
        values = {name.rstrip("_").replace("__", "."): value for name, value in inputs.items()}
        entry: dict = {"class_type": class_type, "inputs": values}
        if title:
            entry["_meta"] = {"title": title}
        self.prompt[node_id] = entry
        self.places[node_id] = Place(*at, size or SIZES.get(class_type, SIZE))
        return Ref(node_id)
