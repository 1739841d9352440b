"""Trains the image tower of the Shapes CLIP against the frozen Shapes text encoder. Run: python dev.py train clip

As in SD1.5, the text encoder of the diffusion models is the text tower of a CLIP: here it came first, so the image
tower and the text projection are fitted to it (Zhai et al., LiT, 2111.07991). Every caption has a twin with one thing
changed, which is one more wrong answer (Yuksekgonul et al., NegCLIP, 2210.01936), most often with two things swapped:
without it a contrastive loss has no need to know which colour belongs to which object.
"""

import json
import math

import numpy as np
import torch
import torch.nn.functional as F

from guidance_lab.experiments.data import CHUNK, SCENES, pictures, scene
from guidance_lab.experiments.latents import Latents
from guidance_lab.experiments.muon import optimizers, set_rate
from guidance_lab.experiments.train.diffusion import frozen_text
from guidance_lab.experiments.training import RUNS, Run, autocast, descend, initialize, learning_rate, options, prepare
from guidance_lab.shapes.clip import clip_model
from guidance_lab.shapes.models import WIDTH
from guidance_lab.shapes.render import render
from guidance_lab.shapes.words import loose_caption, tokens
from guidance_lab.shapes.world import BACKGROUNDS, COLOURS, OBJECTS, RELATIONS, TEXTURES, Scene, Thing, hue_of
from guidance_lab.weight_files.clip import MEAN, STD

CHANGES = ("object", "colour", "texture", "background", "relation", "count", "swap", "swap colours")
ENDS = ("conv1.", "positional_embedding", "proj")  # what takes the picture in, what puts the embedding out
WEAK = 24_000  # samples of the CLIP that knows less than the diffusion model
MUON_RATE = 4  # times AdamW's learning rate
CHUNKS = 10  # of the training set: what is decoded for it


def changed(scene: Scene, kind: str, rng: np.random.Generator) -> Scene | None:
    """The scene with one thing wrong, or None where this kind of change does not exist in it."""
    things, background, relation = list(scene.things), scene.background, scene.relation

    def other(values, value):
        return str(rng.choice([v for v in values if v != value]))

    def altered(thing: Thing, **new) -> Thing:
        return Thing(**(thing.__dict__ | new))

    if kind == "background":
        background = other(BACKGROUNDS, background)
    elif kind == "relation":
        if relation is None or len(things) != 2:
            return None
        relation = other(RELATIONS, relation)
    elif kind == "count":
        if relation is not None or len(things) == 1:
            return None
        things = things[:1] * (5 - len(things))
    elif kind == "swap":  # the same words in other places
        if relation is None or things[0].words == things[1].words:
            return None
        things[0], things[1] = things[1], things[0]
    elif kind == "swap colours":
        if relation is None or things[0].colour == things[1].colour or things[0].name == things[1].name:
            return None
        things[:2] = altered(things[0], hue=things[1].hue), altered(things[1], hue=things[0].hue)
    else:
        i = int(rng.integers(len(things)))
        old = things[i]
        if kind == "object":
            new = altered(old, name=other(OBJECTS, old.name))
        elif kind == "texture":
            new = altered(old, texture=other(TEXTURES, old.texture))
        else:
            new = altered(old, hue=hue_of(other(COLOURS, old.colour)))
        things = [new] * len(things) if relation is None else [*things[:i], new, *things[i + 1 :]]
    return Scene(tuple(things), background, relation)


def twin(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one random thing wrong; a swap half of the time where there is one."""
    while True:
        kind = str(rng.choice(CHANGES[-2:] if rng.random() < 0.5 and scene.relation else CHANGES))
        result = changed(scene, kind, rng)
        if result is not None:
            return result


def normalized(x: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, H, W] in 0..1 → CLIP's input."""
    return (x - torch.tensor(MEAN, device=x.device).view(3, 1, 1)) / torch.tensor(STD, device=x.device).view(3, 1, 1)


class Pictures:
    """Batches of training pictures [B, 3, 128, 128] in 0..1: a third fresh renders, the rest through the VAE, a third
    of all blurred and noisy, because the estimate in the middle of sampling is a blur and that is what guidance asks
    about.
    """

    def __init__(self, device: str):
        latents = Latents(device)
        self.fresh = [pictures(i) for i in range(CHUNKS)]
        self.back = [latents.through_vae(i) for i in range(CHUNKS)]

    def __call__(self, indices: np.ndarray, generator: torch.Generator) -> torch.Tensor:
        rows = [
            (self.fresh if row % 3 == 0 else self.back)[i // CHUNK][i % CHUNK] for row, i in enumerate(indices.tolist())
        ]
        x = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous().float() / 255
        small = int(torch.randint(24, 96, (), generator=generator))
        low = F.interpolate(x[1::3], size=(small, small), mode="bilinear", antialias=True)
        noise = 0.05 * torch.randn(x[1::3].shape, generator=generator)
        x[1::3] = F.interpolate(low, size=(128, 128), mode="bilinear") + noise
        return x


def batch(step: int, size: int) -> tuple[np.ndarray, list[str], list[str]]:
    """(scene indices, their captions, changed twins as further wrong answers) of a training step."""
    rng = np.random.default_rng([5, step])
    indices = rng.integers(CHUNKS * CHUNK, size=size)
    captions, wrong = [], []
    for index in indices:
        drawn = scene(int(index))
        caption, left_out = loose_caption(drawn, rng)
        captions.append(caption)
        if not left_out:  # what a caption leaves out cannot be wrong in its twin
            wrong.append(twin(drawn, rng).caption)
    return indices, captions, wrong


def contrastive_loss(images, texts, captions: list[str], logit_scale) -> torch.Tensor:
    """CLIP's symmetric cross-entropy. `images` [B, D] and `texts` [B + wrong answers, D] are normalized."""
    logits = logit_scale.clamp(max=math.log(100)).exp() * images @ texts.T
    # Two pictures of one caption are both right; the share of each is its target.
    number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    ids = torch.tensor([number[caption] for caption in captions], device=images.device)
    same = (ids[:, None] == ids).float()
    same = same / same.sum(1, keepdim=True)
    by_image = F.cross_entropy(logits, F.pad(same, (0, len(texts) - len(captions))))
    return (by_image + F.cross_entropy(logits[:, : len(captions)].T, same)) / 2


@torch.no_grad()
def right_answers(image, text, count: int = 400) -> dict[str, float]:
    """How often the caption scores higher than its changed twin, for unseen renders and each kind of change.

    image: pictures [B, 3, 128, 128] in 0..1 → embeddings; text: captions → embeddings.
    """
    rng = np.random.default_rng(99)
    scenes = [scene(SCENES + i) for i in range(count)]
    x = torch.from_numpy(np.stack([render(s) for s in scenes])).permute(0, 3, 1, 2).float() / 255
    images = torch.cat([F.normalize(image(part).float(), dim=-1) for part in x.split(100)])
    result = {}
    for kind in CHANGES:
        pairs = [(i, s.caption, t.caption) for i, s in enumerate(scenes) if (t := changed(s, kind, rng)) is not None]
        pairs = [pair for pair in pairs if pair[1] != pair[2]]
        shown = images[[pair[0] for pair in pairs]]
        own, other = ((shown * F.normalize(text([p[k] for p in pairs]).float(), dim=-1)).sum(-1) for k in (1, 2))
        result[kind] = round((own > other).float().mean().item(), 3)
    return result


def main() -> None:
    parser = options(__doc__, samples=400_000, batch=192)
    parser.add_argument(
        "--weak", action="store_true", help=f"{WEAK} samples in a run of its own, for `dev.py evidence clip`"
    )
    args = parser.parse_args()
    name, planned = ("clip_weak", WEAK) if args.weak else ("clip", args.samples)
    device = prepare(args)
    model = clip_model().visual
    initialize(model, seed=5)
    projection = torch.nn.Linear(WIDTH, WIDTH, bias=False)
    torch.nn.init.orthogonal_(projection.weight, generator=torch.Generator().manual_seed(6))
    temperature = torch.nn.ParameterDict({"logit_scale": torch.nn.Parameter(torch.tensor(math.log(1 / 0.07)))})
    for part in (model, projection, temperature):
        part.to(device)
    text = frozen_text(device)
    learned = torch.nn.ModuleList([model, projection, temperature])
    both = optimizers(model, ENDS, 1e-3, (*projection.parameters(), *temperature.parameters()))
    run = Run(name, {"model": model, "projection": projection, "temperature": temperature} | both)
    shown = Pictures(device)

    def sentences(captions: list[str]) -> torch.Tensor:
        return projection(text(torch.from_numpy(tokens(captions)).to(device))[2])

    for step in run.steps(planned):
        set_rate(both, learning_rate(run.samples, planned, 1e-3, warmup=100 * args.batch), MUON_RATE)
        indices, captions, wrong = batch(step, args.batch)
        x = shown(indices, torch.Generator().manual_seed(step)).to(device)
        texts = F.normalize(sentences(captions + wrong), dim=-1)
        with autocast(device, args.bf16):
            images = model(normalized(x))
        images = F.normalize(images.float(), dim=-1)
        loss = contrastive_loss(images, texts, captions, temperature["logit_scale"])
        descend(loss, learned, *both.values())
        run.done(args.batch, loss=loss.item(), scale=temperature["logit_scale"].exp().item())
        if run.step % 250 == 0:
            run.log({"step": run.step} | right_answers(lambda x: model(normalized(x.to(device))), sentences))
    right = right_answers(lambda x: model(normalized(x.to(device))), sentences, 1000)
    result = {"clip_swapped": right["swap"], "right": right, "samples": run.samples}
    (RUNS / name / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
