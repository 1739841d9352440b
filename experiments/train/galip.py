"""Trains a small GALIP on Shapes with the frozen Shapes CLIP. Run: python dev.py train galip

The step is the paper's (`galip.training`). What differs from the official set-up: a small CLIP, learning rates that are
a fixed function of the samples seen (`rates`), a batch of 32, CLIP sees pictures normalized once, and pictures are
drawn with an exponential moving average of the generator. `--without-clip-d` and `--without-clip-g` are the paper's
ablations.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from guidance_lab.experiments.data import CHUNK, scene
from guidance_lab.experiments.galip_networks import draw, image_encoder, networks, noise, put_in_clip
from guidance_lab.experiments.latents import pixels
from guidance_lab.experiments.train.clip import CHUNKS, Pictures
from guidance_lab.experiments.train.diffusion import Average, frozen_text, prompts
from guidance_lab.experiments.training import Run, options, prepare, trained
from guidance_lab.galip import Generator
from guidance_lab.galip.training import LR_D, LR_G, Trainer
from guidance_lab.shapes.read import judge, read
from guidance_lab.shapes.words import loose_caption, tokens


def rates(samples: int, planned: int) -> tuple[float, float]:
    """Learning rates of generator and discriminator, as multiples of the official ones.

    The generator falls from 3 to 1; the discriminator begins at 3, is at 1 after an eighth of the way and at 0.3 after
    a half, where it follows the batch of the moment no more; both as a straight line in the logarithm between.
    """
    at = min(1.0, samples / planned)
    generator = np.exp(np.interp(at, (0, 0.5, 1), np.log((3.0, 1.5, 1.0))))
    discriminator = np.exp(np.interp(at, (0, 0.125, 0.5, 1), np.log((3.0, 1.0, 0.4, 0.2))))
    return float(generator), float(discriminator)


class Sentences:
    """Captions → sentence embeddings [N, 128] of the Shapes CLIP: projected, not normalized."""

    def __init__(self, device: str):
        self.device, self.text = device, frozen_text(device)
        self.projection = trained("clip", "projection")["weight"].to(device)

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> torch.Tensor:
        return self.text(torch.from_numpy(tokens(captions)).to(self.device))[2] @ self.projection.T


def look(generator: Generator, sentences: Sentences, count: int, sheet: Path) -> dict[str, float]:
    """What the readers say to `count` samples of one-thing prompts; keeps a contact sheet."""
    scenes = prompts(count, True, seed=41)
    said, codes = sentences([s.caption for s in scenes]), noise(count, 41)
    drawn = draw(generator, said, codes.to(said.device))
    rows = [judge(s, read(p)) for s, p in zip(scenes, drawn, strict=True)]
    Image.fromarray(np.concatenate([np.concatenate(list(drawn[i : i + 12]), 1) for i in (0, 12, 24, 36)])).save(sheet)
    keys = ("object", "colour", "texture", "background", "all")
    return {key: round(float(np.mean([row[key] for row in rows])), 3) for key in keys}


def main() -> None:
    parser = options(__doc__, samples=300_000, batch=32)
    parser.add_argument(
        "--without-clip-d", action="store_true", help="the discriminator sees pixels, not CLIP features"
    )
    parser.add_argument("--without-clip-g", action="store_true", help="no CLIP inside the generator")
    parser.add_argument("--seed", type=int, default=8)
    args = parser.parse_args()
    device = prepare(args)
    encoder = image_encoder(trained("clip"), normalize_twice=False)
    sentences, shown = Sentences(device), Pictures(device).fresh
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        generator, netd, netc = networks(not args.without_clip_g, not args.without_clip_d)
    put_in_clip(generator, encoder)
    for part in (encoder, generator, netd, netc):
        part.to(device)
    half = torch.bfloat16 if args.bf16 or device == "cuda" else None
    trainer = Trainer(generator, netd, netc, encoder, autocast=half, clip_features=not args.without_clip_d)
    average = Average(generator)
    name = "galip" + "-without-clip-d" * args.without_clip_d + "-without-clip-g" * args.without_clip_g
    run = Run(name if args.seed == 8 else f"{name}-{args.seed}", {"trainer": trainer, "average": average})
    for step in run.steps(args.samples):
        rng = np.random.default_rng([args.seed, step])
        g, d = rates(run.samples, args.samples)
        trainer.optimizer_g.param_groups[0]["lr"], trainer.optimizer_d.param_groups[0]["lr"] = g * LR_G, d * LR_D
        picked = rng.integers(0, CHUNKS * CHUNK, args.batch)
        real = torch.from_numpy(np.stack([shown[i // CHUNK][i % CHUNK] for i in picked.tolist()]))
        captions = [loose_caption(scene(int(i)), rng)[0] for i in picked]
        codes = noise(args.batch, step)
        terms = trainer.step(pixels(real).to(device), sentences(captions), codes.to(device))
        average.update(generator, step)
        run.done(args.batch, **{key: value.item() for key, value in terms.items()})
        if run.step % 500 == 0:
            right = look(average.module, sentences, 200, run.folder / f"step{run.step:05}.png")
            run.log({"step": run.step} | right)
    right = look(average.module, sentences, 400, run.folder / "last.png")
    result = {"galip_object_colour": right["colour"], "right": right, "samples": run.samples}
    (run.folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
