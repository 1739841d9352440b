"""Objective: Classifier, which is classifier guidance when it is used in CLIP Guidance."""

import difflib

import torch

from ....guidance.classifier import log_probability, log_tag_probability
from ..._api import io
from ...host.model_folders import chosen_folder, model_folders
from ...host.networks import as_patcher, dtype_of, normalized
from ..objective import Scorer, ScoringStep
from .classifier_folder import Classifier, read_classifier
from .values import CATEGORY, objective, objective_output, weight_input

FOLDER = "classifiers"
EMPTY = "The class of Objective: Classifier is empty: write the name or the number of one of its classes."


class ClassProbability(Scorer):
    """log p(class | picture), for a tagger the sum over its tags of log p(tag | picture)."""

    def __init__(self, classifier: Classifier, classes: list[int], name: str):
        self.classifier, self.classes, self.name = classifier._replace(network=None), classes, name
        self.side, self.fill = classifier.side, classifier.fill
        self.models = (as_patcher(classifier.network),)

    def score(self, view: torch.Tensor, step: ScoringStep) -> torch.Tensor:
        patcher = self.models[0]
        pixels = normalized(view.to(patcher.load_device), self.classifier.mean, self.classifier.std)
        if self.classifier.bgr:
            pixels = pixels.flip(1)
        logits = patcher.model(pixels.to(dtype_of(patcher.model)))
        return (
            log_tag_probability(logits, self.classes) if self.classifier.tags else log_probability(logits, self.classes)
        )


def find_class(names: list[str], text: str, model: str) -> int:
    """The number of the class that `text` names: its name (case and underscores do not matter, one synonym is enough),
    or its number.

    ValueError when there is none, with names that look like it, or when several classes have the name.
    """
    wanted = _plain(text)
    found = [i for i, name in enumerate(names) if _plain(name) == wanted] or [
        i for i, name in enumerate(names) if wanted in (_plain(part) for part in name.split(","))
    ]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(f"{i} ({names[i]})" for i in found[:5])
        raise ValueError(f"'{text}' is the name of {len(found)} classes of {model}, so give the number: {several}.")
    if text.strip().isdecimal():
        return int(text)
    if not names:
        raise ValueError(
            f"{model} has no names for its classes, so '{text}' means nothing to it: give the number of the class, "
            f"from 0."
        )
    by_plain = {_plain(part): part.strip() for name in names for part in name.split(",")}
    near = (
        difflib.get_close_matches(wanted, by_plain, n=5, cutoff=0.5)
        or [key for key in by_plain if wanted in key or key in wanted][:5]
    )
    advice = (
        f"near names are {', '.join(by_plain[key] for key in near)}"
        if near
        else f"its classes are such as {', '.join(names[:3])}"
    )
    raise ValueError(f"{model} has no class '{text}': {advice}.")


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())


class ObjectiveClassifier(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_ObjectiveClassifier",
            display_name="Objective: Classifier",
            category=CATEGORY,
            description="Guides towards pictures that an image classifier takes for a class, or a tagger for tags "
            "(classifier guidance).",
            search_aliases=[
                "classifier guidance",
                "class",
                "log probability",
                "timm",
                "tagger",
                "WD tagger",
                "ImageNet",
                "Dhariwal Nichol",
            ],
            inputs=[
                io.Combo.Input(
                    "classifier",
                    options=sorted(model_folders(FOLDER)),
                    tooltip="A folder in models/classifiers with config.json and .safetensors: a classifier of timm or "
                    "transformers, or a WD v3 tagger with its selected_tags.csv. Nothing is downloaded.",
                ),
                io.String.Input(
                    "class_name",
                    default="",
                    tooltip="The class by name (tabby cat) or number (281). A tagger takes several tags with commas, "
                    "and all are raised. A wrong name is answered with names like it.",
                ),
                weight_input(),
            ],
            outputs=[objective_output()],
        )

    @classmethod
    def validate_inputs(cls, class_name=None) -> bool | str:
        return True if class_name is None or class_name.strip(" ,") else EMPTY  # None: it is linked

    @classmethod
    def execute(cls, classifier: str, class_name: str, weight=1.0) -> io.NodeOutput:
        if not class_name.strip(" ,"):
            raise ValueError(EMPTY)
        made = read_classifier(chosen_folder(FOLDER, classifier))
        wanted = [part.strip() for part in class_name.split(",") if part.strip()] if made.tags else [class_name.strip()]
        scorer = ClassProbability(
            made, [find_class(made.names, one, classifier) for one in wanted], f"{classifier}: {', '.join(wanted)}"
        )
        _try(scorer, classifier)
        return io.NodeOutput(objective(weight, scorer))


def _try(scorer: ClassProbability, name: str) -> None:
    """Refuses now, not in mid-run, a class number that does not exist and a network that makes NaN."""
    with torch.inference_mode(False), torch.no_grad():
        logits = scorer.models[0].model(
            torch.zeros(1, 3, scorer.side, scorer.side, dtype=dtype_of(scorer.models[0].model))
        )
    count, named = logits.shape[1], len(scorer.classifier.names)
    if named not in (0, count):
        raise ValueError(f"{name} has {count} classes but {named} names: its files do not belong together.")
    missing = [i for i in scorer.classes if i >= count]
    if missing:
        raise ValueError(f"{name} has classes 0 to {count - 1}, not {missing[0]}: give one of those, or a name.")
    if not torch.isfinite(logits).all():
        raise ValueError(f"{name} makes NaN of a picture: its file is damaged, or lacks weights; download it again.")


NODES = [ObjectiveClassifier]
