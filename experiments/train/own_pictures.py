"""The model's own pictures with what the readers see in them: what a captioner is asked about while it guides.

A score that guides towards log p(caption | x_t) should know how a sample that looks like this half-way ends (Dhariwal
and Nichol, 2105.05233, section 4). So a picture is drawn, the readers say what it became, and that is the caption of
the finished picture and of the running estimates on its way.
"""

from dataclasses import replace
from itertools import permutations

import comfy.sample
import numpy as np
import torch

from guidance_lab.experiments.sampling import encode
from guidance_lab.experiments.training import RUNS
from guidance_lab.shapes import shipped
from guidance_lab.shapes.models import LATENT
from guidance_lab.shapes.read import Reading, nearest_colour, read, related
from guidance_lab.shapes.world import NAMED, RELATIONS, Scene, Thing, hue_of, parse, random_scene

BATCH = 50
STEPS = 16
CFG = 2.0
ESTIMATES = 4  # of every picture, from steps FIRST to STEPS - 2
FIRST = 3
HUE_ERROR = 6.0  # degrees, of the reader
COUNTS = (0.2, 0.55, 0.25)  # shares of prompts of one, two and three things


def own(count: int) -> tuple[torch.Tensor, list[str]]:
    """(uint8 [count, 1 + ESTIMATES, 128, 128, 3]: the finished picture and its estimates, early to late; captions by
    the readers, empty where they see nothing that the grammar can say); cached beside the runs. `count` is a multiple
    of BATCH.
    """
    path = RUNS / f"own-{count}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(_drawn(count), path)
    kept = torch.load(path, weights_only=True)
    return kept["pictures"], kept["captions"]


def caption_of(asked: Scene, reading: Reading) -> str:
    """A reading in the words nearest to what was asked for; empty if the grammar has no words for it."""
    found = tuple(_named(thing) for thing in reading.things)
    if not 1 <= len(found) <= 3:
        return ""
    if len(found) == 1:
        return Scene(found, reading.background).caption
    if asked.relation is None and len({(t.name, t.colour, t.texture) for t in found}) == 1:  # two or three alike
        size = sum(thing.size for thing in found) / len(found)
        return Scene(tuple(replace(thing, size=size) for thing in found), reading.background).caption

    def likeness(things: tuple[Thing, ...]) -> int:
        pairs = zip(asked.things, things, strict=False)
        return sum(4 * (a.name == b.name) + 2 * (a.colour == b.colour) + (a.texture == b.texture) for a, b in pairs)

    kinds = [asked.relation] if asked.relation and len(asked.things) == len(found) else RELATIONS
    scenes = [
        Scene(things, reading.background, kind)
        for kind in kinds
        for things in permutations(found)
        if related(things[0], things[1], kind) and (len(things) < 3 or related(things[0], things[2], "above"))
    ]
    return max(scenes, key=lambda scene: likeness(scene.things)).caption if scenes else ""


def _named(thing: Thing) -> Thing:
    """The thing with the hue of a name where the reader's hue is that name's but for the reader's error."""
    middle = hue_of(nearest_colour(thing.hue))
    near = abs((thing.hue - middle + 180) % 360 - 180) <= NAMED + HUE_ERROR
    return replace(thing, hue=middle) if near else thing


@torch.no_grad()
def _drawn(count: int) -> dict:
    clip, vae, model = shipped.load_clip(), shipped.load_vae(), shipped.load_model("main")
    empty = encode(clip, [""])

    def decoded(z: torch.Tensor) -> torch.Tensor:
        return (vae.decode(z).clamp(0, 1) * 255).round().byte()

    pictures, captions = [], []
    for start in range(0, count, BATCH):
        rng = np.random.default_rng([78, start])
        things = rng.choice((1, 2, 3), BATCH, p=COUNTS)
        scenes = [parse(random_scene(rng, int(n)).caption) for n in things]
        context, latent, passed = encode(clip, [s.caption for s in scenes]), torch.zeros(BATCH, 4, LATENT, LATENT), []
        end = comfy.sample.sample(
            model, comfy.sample.prepare_noise(latent, 90_000 + start), STEPS, CFG, "euler", "normal", [[context, {}]],
            [[empty.expand_as(context), {}]], latent, disable_pbar=True, seed=start,
            callback=lambda step, denoised, x, steps, passed=passed: passed.append(denoised.clone()),
        )  # fmt: skip
        steps = np.sort(rng.permuted(np.tile(np.arange(FIRST, STEPS - 1), (BATCH, 1)), axis=1)[:, :ESTIMATES], axis=1)
        on_the_way = model.model.process_latent_out(torch.stack(passed, 1))
        rows = torch.arange(BATCH)
        estimates = [on_the_way[rows, torch.from_numpy(steps[:, k])] for k in range(ESTIMATES)]
        finished = decoded(end)
        pictures.append(torch.stack([finished, *map(decoded, estimates)], 1))
        captions += [caption_of(s, read(p)) for s, p in zip(scenes, finished.numpy(), strict=True)]
        if start % 500 == 0:
            print(f"drew {start} of {count}", flush=True)
    return {"pictures": torch.cat(pictures), "captions": captions}
