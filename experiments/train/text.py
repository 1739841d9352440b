"""Trains the text encoder to say what a caption says, then freezes it for every diffusion model. Run: python dev.py
train text

Real pipelines take a frozen text encoder that was trained elsewhere; this is ours. The end token must know the whole
scene, every noun
token must know its own attributes and its place in the sentence (heads are dropped after training).
"""

import numpy as np
import torch

from guidance_lab.experiments.training import Run, initialize, learning_rate, options, prepare, read_outs
from guidance_lab.shapes.models import WIDTH, text_encoder
from guidance_lab.shapes.words import loose_caption, tokens, vocabulary
from guidance_lab.shapes.world import BACKGROUNDS, COLOURS, OBJECTS, PLURALS, RELATIONS, TEXTURES, Scene, random_scene

# class 0 of each means absent or not said
ATTRIBUTES = {"name": OBJECTS, "colour": tuple(COLOURS), "texture": TEXTURES, "size": ("small", "large")}
SCENE = {f"{key}{slot}": len(values) + 1 for key, values in ATTRIBUTES.items() for slot in range(3)}
SCENE |= {"background": len(BACKGROUNDS) + 1, "relation": len(RELATIONS) + 1, "number": 4}
NOUN = {key: len(values) + 1 for key, values in ATTRIBUTES.items()} | {
    "slot": 3,
    "number": 4,
    "relation": len(RELATIONS) + 1,
}


class Heads(torch.nn.Module):
    """Linear read-outs: the whole scene from the end token, one thing from each noun token."""

    def __init__(self):
        super().__init__()
        self.scene = torch.nn.ModuleDict({key: torch.nn.Linear(WIDTH, n) for key, n in SCENE.items()})
        self.noun = torch.nn.ModuleDict({key: torch.nn.Linear(WIDTH, n) for key, n in NOUN.items()})


def targets(scene: Scene, left_out: set[str]) -> tuple[dict[str, int], list[dict[str, int]]]:
    """Class indices of the scene heads and, per noun of the caption in order, of the noun heads."""

    def indices(thing) -> dict[str, int]:
        said = {"name": thing.name, "colour": thing.colour, "texture": thing.texture, "size": thing.size_word}
        return {
            key: 0 if key in left_out or not said[key] else 1 + values.index(said[key])
            for key, values in ATTRIBUTES.items()
        }

    alike = scene.relation is None
    nouns = scene.things[:1] if alike else scene.things
    number = len(scene.things) if alike else 1
    relation = 0 if alike else 1 + RELATIONS.index(scene.relation)
    whole = {"background": 0 if "background" in left_out else 1 + BACKGROUNDS.index(scene.background)}
    whole |= {"relation": relation, "number": number}
    rows = []
    for slot in range(3):
        row = indices(nouns[slot]) if slot < len(nouns) else dict.fromkeys(ATTRIBUTES, 0)
        whole |= {f"{key}{slot}": value for key, value in row.items()}
        if slot < len(nouns):
            # a causal encoder has not read the relation yet when it comes to the first noun
            rows.append(row | {"slot": slot, "number": number, "relation": 0 if slot == 0 else relation})
    return whole, rows


def main() -> None:
    args = options(__doc__, samples=128_000, batch=64, bf16=False).parse_args()
    device = prepare(args)
    model, heads = text_encoder(), Heads()
    initialize(model, seed=1)
    initialize(heads, seed=2)
    model.to(device), heads.to(device)
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-3, weight_decay=1e-3)
    run = Run("text", {"model": model, "heads": heads, "optimizer": optimizer})
    nouns_at = torch.tensor([vocabulary()[name] for name in {*PLURALS, *PLURALS.values()}])
    for step in run.steps(args.samples):
        rng = np.random.default_rng([1, step])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run.samples, args.samples, 1e-3, warmup=100 * args.batch)
        scenes = [random_scene(rng) for _ in range(args.batch)]
        captions = [loose_caption(scene, rng) for scene in scenes]
        ids = torch.from_numpy(tokens([caption for caption, _ in captions]))
        hidden, _, pooled = model(ids.to(device))[:3]
        rows = [targets(scene, left_out) for scene, (_, left_out) in zip(scenes, captions, strict=True)]
        noun_states = hidden[torch.isin(ids, nouns_at).to(device)]  # row-major, so in the order of the nouns
        loss, right = read_outs(heads, pooled, noun_states, rows)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        run.done(args.batch, loss=loss.item(), right=right)


if __name__ == "__main__":
    main()
