"""Trains the noise-aware CLIP that guides Shapes GLIDE, in GLIDE's architecture (2112.10741), on pictures of 64 pixels.

Both towers from nothing, as GLIDE did: the picture is noised to a random timestep of GLIDE's cosine schedule and the
image tower is told which. Every caption has a twin with one thing changed as one more wrong answer. `--ship` writes
`shapes/weights/glide_noised_clip.safetensors`.

The file that ships is older than this script: two thirds of its pictures had also gone through the VAE of the first
edition, and its words are those of the first edition; every other word of Shapes has the row of `<unk>`.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from guidance_lab.experiments.train.clip import contrastive_loss
from guidance_lab.experiments.train.export import in_8_bits, in_glides_names, write
from guidance_lab.experiments.train.noised_clip import TEXT, initialize_towers, noised
from guidance_lab.experiments.training import Run, autocast, descend, learning_rate, options, prepare
from guidance_lab.guidance.glide import cosine_alpha_bars
from guidance_lab.guidance.noised_clip import Encoder, ImageInput, NoisedCLIP, TextInput
from guidance_lab.shapes.clip import lengths, tokens
from guidance_lab.shapes.models import WIDTH
from guidance_lab.shapes.words import MAX_TOKENS, vocabulary

from .data import pictures, scene
from .first_world.words import loose_caption
from .first_world.world import BACKGROUNDS, COLOURS, OBJECTS, RELATIONS, SIZE, TEXTURES, Scene

IMAGE = {"width": 128, "depth": 4, "patch": 8}
CHANGES = ("object", "colour", "texture", "background", "relation", "swap")
UNSEEN = 10_000_000  # scenes from here on are never trained on


def untrained() -> NoisedCLIP:
    """Random towers for 64×64 pictures and the words of Shapes."""
    image = ImageInput(IMAGE["width"], IMAGE["patch"], (SIZE // IMAGE["patch"]) ** 2 + 1, 1000)
    text = TextInput(TEXT["width"], len(vocabulary()), MAX_TOKENS)
    model = NoisedCLIP(
        Encoder(image, IMAGE["width"], IMAGE["depth"], WIDTH, causal=False),
        Encoder(text, TEXT["width"], TEXT["depth"], WIDTH, causal=True),
    )
    return initialize_towers(model)


def changed(drawn: Scene, kind: str, rng: np.random.Generator) -> Scene | None:
    """The scene with one thing wrong, or None where this kind of change does not exist in it."""
    things = list(drawn.things)
    background, relation = drawn.background, drawn.relation
    i = int(rng.integers(len(things)))

    def other(values, value):
        return str(rng.choice([v for v in values if v != value]))

    if kind == "background":
        background = other(BACKGROUNDS, background)
    elif kind == "relation":
        if len(things) != 2:
            return None
        relation = other(RELATIONS, relation)
    elif kind == "swap":  # the same words in other places
        if len(things) == 1 or things[0].words == things[1].words:
            return None
        things[0], things[1] = things[1], things[0]
    else:
        attribute, values = {
            "object": ("name", OBJECTS),
            "colour": ("colour", COLOURS),
            "texture": ("texture", TEXTURES),
        }[kind]
        old = things[i]
        row = {k: getattr(old, k) for k in ("name", "colour", "texture")}
        row[attribute] = other(values, row[attribute])
        things[i] = type(old)(**row)
    return Scene(tuple(things), background, relation)


def twin(drawn: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one random thing wrong."""
    while True:
        result = changed(drawn, str(rng.choice(CHANGES)), rng)
        if result is not None:
            return result


def batch(first: int, size: int, generator: torch.Generator) -> tuple[torch.Tensor, list[str], list[str]]:
    """(pictures [B, 3, 64, 64] in -1..1, a third of them blurred; their captions; changed twins as further wrong
    answers) of the scenes from `first` on.
    """
    rng = np.random.default_rng([5, first])
    scenes = [scene(first + i) for i in range(size)]
    x = pictures(scenes)
    small = int(torch.randint(12, 48, (), generator=generator))
    low = F.interpolate(x[1::3], size=(small, small), mode="bilinear", antialias=True)
    x[1::3] = F.interpolate(low, size=(SIZE, SIZE), mode="bilinear")
    captions, wrong = [], []
    for drawn in scenes:
        caption, left_out = loose_caption(drawn, rng)
        captions.append(caption)
        if not left_out:  # what a caption leaves out cannot be wrong in its twin
            wrong.append(twin(drawn, rng).caption)
    return x, captions, wrong


@torch.no_grad()
def right_answers(model: NoisedCLIP, timestep: int, count: int = 400) -> dict[str, float]:
    """How often the caption scores higher than its changed twin, for unseen renders and each kind of change."""
    rng = np.random.default_rng(99)
    scenes = [scene(UNSEEN + i) for i in range(count)]
    images = model.image(noised(pictures(scenes), cosine_alpha_bars()[timestep]), timestep)
    result = {}
    for kind in CHANGES:
        pairs = [(i, s.caption, t.caption) for i, s in enumerate(scenes) if (t := changed(s, kind, rng)) is not None]
        own, other = ((images[[p[0] for p in pairs]] * said(model, [p[k] for p in pairs])).sum(-1) for k in (1, 2))
        result[kind] = round((own > other).float().mean().item(), 3)
    return result


def said(model: NoisedCLIP, captions: list[str]) -> torch.Tensor:
    ids = tokens(captions)
    return F.normalize(model.text(ids, lengths(ids)).float(), dim=-1)


def main() -> None:
    parser = options(__doc__, samples=400_000, batch=192)
    parser.add_argument("--ship", action="store_true", help="write the weights file too")
    args = parser.parse_args()
    prepare(args)
    model = untrained()
    temperature = torch.nn.ParameterDict({"logit_scale": torch.nn.Parameter(torch.tensor(math.log(1 / 0.07)))})
    learned = torch.nn.ModuleList([model, temperature])
    optimizer = torch.optim.AdamW(learned.parameters(), 1e-3, weight_decay=0.02)
    run = Run("glide-noised-clip", {"model": model, "temperature": temperature, "optimizer": optimizer})
    bars = torch.tensor(cosine_alpha_bars())
    for step in run.steps(args.samples):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run.samples, args.samples, 1e-3, warmup=100 * args.batch)
        generator = torch.Generator().manual_seed(step)
        x, captions, wrong = batch(run.samples, args.batch, generator)
        timestep = torch.randint(0, 1000, (len(x),), generator=generator)
        bar = bars[timestep].float().view(-1, 1, 1, 1)
        noisy = bar.sqrt() * x + (1 - bar).sqrt() * torch.randn(x.shape, generator=generator)
        with autocast("cpu", args.bf16):
            images = model.image(noisy, timestep)
            texts = said(model, captions + wrong)
        images = F.normalize(images.float(), dim=-1)
        loss = contrastive_loss(images, texts, captions, temperature["logit_scale"])
        descend(loss, learned, optimizer)
        run.done(args.batch, loss=loss.item(), scale=temperature["logit_scale"].exp().item())
        if run.step % 500 == 0:
            for t in (0, 300, 600):
                run.log({"step": run.step, "t": t} | right_answers(model, t))
    if args.ship:
        write("glide_noised_clip", in_8_bits(in_glides_names(model.state_dict())), {"samples": str(run.samples)})


if __name__ == "__main__":
    main()
