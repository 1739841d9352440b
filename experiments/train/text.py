"""Trains the Shapes text encoder to say what a caption says, then freezes it for every diffusion model.

Real pipelines take a frozen text encoder that was trained elsewhere; this is ours. The end token must know the whole
scene, every noun token must know its own attributes and its place in the sentence (heads are dropped after training).
Run: python dev.py train text
"""

import argparse

import comfy.ops
import numpy as np
import torch
import torch.nn.functional as F

from guidance_lab.experiments.training import Run, initialize, learning_rate
from guidance_lab.shapes.models import MAX_TOKENS, WIDTH, TextTransformer, text_config, word_tokenizer
from guidance_lab.shapes.world import BACKGROUNDS, COLOURS, OBJECTS, RELATIONS, TEXTURES, Scene, random_scene

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


def tokens(captions: list[str]) -> torch.Tensor:
    """Token ids, ended and padded with `<end>`: [B, MAX_TOKENS]."""
    tokenizer = word_tokenizer()
    ids = [tokenizer(caption)["input_ids"] for caption in captions]
    return torch.tensor([row + [tokenizer.eos_token_id] * (MAX_TOKENS - len(row)) for row in ids])


def encoder() -> TextTransformer:
    """The untrained text transformer in fp32."""
    return TextTransformer(text_config(), torch.float32, "cpu", comfy.ops.disable_weight_init)


class Heads(torch.nn.Module):
    """Linear read-outs: the whole scene from the end token, one thing from each noun token. Class 0 means absent or not
    said.
    """

    def __init__(self, scene_width: int = WIDTH, noun_width: int = WIDTH):
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


def read_outs(
    heads: torch.nn.Module,
    pooled: torch.Tensor,
    nouns: torch.Tensor,
    rows: list[tuple[dict[str, int], list[dict[str, int]]]],
) -> tuple[torch.Tensor, float]:
    """(mean cross-entropy, share that is right) of what heads (`scene` and `noun`, by what they say) read from pooled
    states [B, D] and from those of the nouns [N, W], scene by scene; `rows`: the targets of the scenes, of their nouns.
    """
    noun_rows = [row for _, its_nouns in rows for row in its_nouns]
    losses, right = [], []
    for head, states, labels in ((heads.scene, pooled, [whole for whole, _ in rows]), (heads.noun, nouns, noun_rows)):
        for key, layer in head.items():
            logits, label = layer(states), torch.tensor([row[key] for row in labels], device=states.device)
            losses.append(F.cross_entropy(logits, label))
            right.append((logits.argmax(1) == label).float().mean())
    return torch.stack(losses).mean(), torch.stack(right).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    model, heads = encoder(), Heads()
    initialize(model, seed=1)
    initialize(heads, seed=2)
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-3, weight_decay=1e-3)
    run = Run("text", {"model": model, "heads": heads, "optimizer": optimizer})
    nouns_at = torch.tensor([word_tokenizer().get_vocab()[name] for name in OBJECTS])
    while run.step < args.steps:
        rng = np.random.default_rng([1, run.step])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run.step, args.steps, 1e-3)
        scenes = [random_scene(rng) for _ in range(args.batch)]
        captions = [loose_caption(scene, rng) for scene in scenes]
        ids = tokens([caption for caption, _ in captions])
        hidden, _, pooled = model(ids)[:3]
        rows = [targets(scene, left_out) for scene, (_, left_out) in zip(scenes, captions, strict=True)]
        noun_states = hidden[torch.isin(ids, nouns_at)]  # row-major, so in the order of the things
        loss, right = read_outs(heads, pooled, noun_states, rows)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        run.done(args.batch, loss=loss.item(), right=right)
    run.save()


if __name__ == "__main__":
    main()
