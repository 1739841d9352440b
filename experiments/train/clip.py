"""Trains the image tower of the Shapes CLIP against the frozen Shapes text encoder. Run: python dev.py train clip

As in SD1.5, the text encoder of the diffusion models is the text tower of a CLIP: here it came first, so the image
tower and the text projection are fitted to it (Zhai et al., LiT, 2111.07991). Every caption has a twin with one thing
changed, which is one more wrong answer (Yuksekgonul et al., NegCLIP, 2210.01936): without it a contrastive loss has no
need to know which colour belongs to which object.
"""

import argparse
import math

import numpy as np
import torch
import torch.nn.functional as F

from guidance_lab.experiments.train.diffusion import SCENES, scene
from guidance_lab.experiments.train.text import encoder, loose_caption, tokens
from guidance_lab.experiments.training import RUNS, Run, initialize, learning_rate
from guidance_lab.shapes.clip import clip_model
from guidance_lab.shapes.models import WIDTH, autoencoder
from guidance_lab.shapes.render import render
from guidance_lab.shapes.world import BACKGROUNDS, COLOURS, OBJECTS, RELATIONS, TEXTURES, Scene
from guidance_lab.weight_files.clip import MEAN, STD

CHANGES = ("object", "colour", "texture", "background", "relation", "swap")


def changed(scene: Scene, kind: str, rng: np.random.Generator) -> Scene | None:
    """The scene with one thing wrong, or None where this kind of change does not exist in it."""
    things = list(scene.things)
    background, relation = scene.background, scene.relation
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


def twin(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one random thing wrong."""
    while True:
        result = changed(scene, str(rng.choice(CHANGES)), rng)
        if result is not None:
            return result


@torch.no_grad()
def through_vae() -> torch.Tensor:
    """The training scenes as they come back from the VAE: uint8 [SCENES, 3, 64, 64]; what a guided picture looks like.
    Cached.
    """
    path = RUNS / "through_vae.pt"
    if not path.exists():
        stored = torch.load(RUNS / "latents.pt", weights_only=True)
        vae = autoencoder()
        vae.load_state_dict(torch.load(RUNS / "vae" / "last.pt", weights_only=True)["model"])
        rows = []
        for z in stored["z"].split(100):
            with torch.autocast("cpu", torch.bfloat16):
                y = vae.decoder(vae.post_quant_conv(z * stored["std"] + stored["mean"]))
            rows.append(((y.float().clamp(-1, 1) + 1) * 127.5).round().byte())
        torch.save(torch.cat(rows), path)
    return torch.load(path, weights_only=True)


def pictures(indices: np.ndarray, decoded: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """These scenes [B, 3, 64, 64] in 0..1: a third fresh renders, the rest through the VAE, a third of all blurred and
    noisy.

    The estimate in the middle of sampling is a blur of several pictures, and that is what guidance asks about.
    """
    x = decoded[torch.from_numpy(indices)].float() / 255
    for row in range(0, len(indices), 3):
        x[row] = torch.tensor(render(scene(int(indices[row])))).permute(2, 0, 1).float() / 255
    blurred = slice(1, None, 3)
    small = int(torch.randint(12, 48, (), generator=generator))
    low = F.interpolate(x[blurred], size=(small, small), mode="bilinear", antialias=True)
    x[blurred] = F.interpolate(low, size=(64, 64), mode="bilinear") + 0.05 * torch.randn(
        x[blurred].shape, generator=generator
    )
    return x


def normalized(x: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, H, W] in 0..1 → CLIP's input."""
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@torch.no_grad()
def right_answers(image, text, count: int = 400) -> dict[str, float]:
    """How often the caption scores higher than its changed twin, for unseen renders and each kind of change.

    image: pictures [B, 3, 64, 64] in 0..1 → embeddings; text: captions → embeddings.
    """
    rng = np.random.default_rng(99)
    scenes = [scene(SCENES + i) for i in range(count)]
    images = F.normalize(
        image(torch.stack([torch.tensor(render(s)).permute(2, 0, 1).float() / 255 for s in scenes])), dim=-1
    )
    result = {}
    for kind in CHANGES:
        pairs = [(i, s.caption, t.caption) for i, s in enumerate(scenes) if (t := changed(s, kind, rng)) is not None]
        own, other = (
            (images[[p[0] for p in pairs]] * F.normalize(text([p[k] for p in pairs]), dim=-1)).sum(-1) for k in (1, 2)
        )
        result[kind] = round((own > other).float().mean().item(), 3)
    return result


def batch(step: int, size: int) -> tuple[np.ndarray, list[str], list[str]]:
    """(scene indices, their captions, changed twins as further wrong answers) of a training step."""
    rng = np.random.default_rng([5, step])
    indices = rng.integers(SCENES, size=size)
    captions, wrong = [], []
    for index in indices:
        caption, left_out = loose_caption(scene(int(index)), rng)
        captions.append(caption)
        if not left_out:  # what a caption leaves out cannot be wrong in its twin
            wrong.append(twin(scene(int(index)), rng).caption)
    return indices, captions, wrong


def contrastive_loss(
    images: torch.Tensor, texts: torch.Tensor, captions: list[str], logit_scale: torch.Tensor
) -> torch.Tensor:
    """CLIP's symmetric cross-entropy. `images` [B, D] and `texts` [B + wrong answers, D] are normalized."""
    logits = logit_scale.clamp(max=math.log(100)).exp() * images @ texts.T
    # Two pictures of one caption are both right; the share of each is its target.
    same = torch.tensor([[a == b for b in captions] for a in captions], dtype=torch.float32)
    same = same / same.sum(1, keepdim=True)
    by_image = F.cross_entropy(logits, F.pad(same, (0, len(texts) - len(captions))))
    return (by_image + F.cross_entropy(logits[:, : len(captions)].T, same)) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=192)
    args = parser.parse_args()
    model = clip_model().visual
    initialize(model, seed=5)
    projection = torch.nn.Linear(WIDTH, WIDTH, bias=False)
    torch.nn.init.orthogonal_(projection.weight, generator=torch.Generator().manual_seed(6))
    scale = torch.nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    temperature = torch.nn.ParameterDict({"logit_scale": scale})
    text = encoder()
    text.load_state_dict(torch.load(RUNS / "text" / "last.pt", weights_only=True)["model"])
    text.eval().requires_grad_(False)
    parameters = [*model.parameters(), *projection.parameters(), scale]
    optimizer = torch.optim.AdamW(parameters, 1e-3, weight_decay=0.02)
    run = Run(
        "clip",
        {"visual": model, "projection": projection, "temperature": temperature, "optimizer": optimizer},
        every=100,
    )
    decoded = through_vae()
    while run.step < args.steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run.step, args.steps, 1e-3)
        indices, captions, wrong = batch(run.step, args.batch)
        texts = F.normalize(projection(text(tokens(captions + wrong))[2]), dim=-1)
        with torch.autocast("cpu", torch.bfloat16):
            images = model(normalized(pictures(indices, decoded, torch.Generator().manual_seed(run.step))))
        loss = contrastive_loss(F.normalize(images.float(), dim=-1), texts, captions, scale)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        run.done(args.batch, loss=loss.item(), scale=scale.exp().item())
        if run.step % 500 == 0:
            print(
                right_answers(
                    lambda x: model(normalized(x)),
                    lambda captions: projection(text(tokens(captions))[2]),
                ),
                flush=True,
            )
    run.save()


if __name__ == "__main__":
    main()
