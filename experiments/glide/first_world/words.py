"""What captions of the first edition say and leave out, and what a text encoder is to know of them."""

import numpy as np
import torch

from .world import BACKGROUNDS, COLOURS, OBJECTS, RELATIONS, TEXTURES, Scene

ATTRIBUTES = {"name": OBJECTS, "colour": tuple(COLOURS), "texture": TEXTURES}


def loose_caption(scene: Scene, rng: np.random.Generator) -> tuple[str, set[str]]:
    """A caption that sometimes leaves out the background (20 %) or all colours (10 %), and which of them it left out.

    People prompt "a red cube", and per-layer prompts do so on purpose; a model that only ever saw full captions would
    not know them.
    """
    caption, left_out = scene.caption, set()
    if rng.random() < 0.2:
        caption = caption.rpartition(" on ")[0]
        left_out.add("background")
    if rng.random() < 0.1:
        caption = " ".join(word for word in caption.split() if word not in COLOURS)
        left_out.add("colour")
    return caption, left_out


class Heads(torch.nn.Module):
    """Linear read-outs: the whole scene from the end token, one thing from each noun token. Class 0 means absent or not
    said.
    """

    def __init__(self, scene_width: int, noun_width: int):
        super().__init__()
        sizes = {f"{k}{i}": len(v) + 1 for k, v in ATTRIBUTES.items() for i in range(3)}
        sizes |= {"background": len(BACKGROUNDS) + 1, "relation": len(RELATIONS) + 1}
        self.scene = torch.nn.ModuleDict({k: torch.nn.Linear(scene_width, n) for k, n in sizes.items()})
        noun = {k: len(v) + 1 for k, v in ATTRIBUTES.items()} | {"slot": 3, "relation": len(RELATIONS) + 1}
        self.noun = torch.nn.ModuleDict({k: torch.nn.Linear(noun_width, n) for k, n in noun.items()})


def targets(scene: Scene, left_out: set[str]) -> tuple[dict[str, int], list[dict[str, int]]]:
    """Class indices of the scene heads and, per thing in order, of the noun heads."""
    whole = {"background": 0 if "background" in left_out else 1 + list(BACKGROUNDS).index(scene.background)}
    whole["relation"] = 1 + RELATIONS.index(scene.relation) if scene.relation else 0
    nouns = []
    for slot in range(3):
        thing = scene.things[slot] if slot < len(scene.things) else None
        row = {k: 1 + values.index(getattr(thing, k)) if thing else 0 for k, values in ATTRIBUTES.items()}
        if "colour" in left_out:
            row["colour"] = 0
        whole |= {f"{k}{slot}": v for k, v in row.items()}
        if thing:
            # a causal encoder has not read the relation yet when it comes to the first noun
            nouns.append(row | {"slot": slot, "relation": 0 if slot == 0 else whole["relation"]})
    return whole, nouns
