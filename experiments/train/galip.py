"""Trains a small GALIP on Shapes with the frozen Shapes CLIP. Run: python dev.py train galip

The step is the paper's (`galip.training`). What differs from the official set-up, because this is minutes on one core
and not days on eight GPUs: other learning rates, a batch of 32, and pictures drawn with an exponential moving average
of the generator. CLIP sees pictures normalized once: the small CLIP has never seen the washed-out pictures of the
official code's double normalization, and takes the right one of two objects in 59 % of them (97 % otherwise), of two
backgrounds in 60 % (100 %). `--twice` is the official way. `--without-clip-d` and `--without-clip-g` train the paper's
ablations into runs of their own; what they are compared with is `--name galip-with-both --steps 1500`. The shipped run
was looked after by hand: its discriminator had 3 times, 1, 0.3 and 0.5 of the official learning rate up to steps 800,
1,700, 2,500 and 3,200, its generator 3 times falling to 1; from there on `--rates 3 0.5`.
"""

import argparse
import json

import numpy as np
import torch

from guidance_lab.experiments.evidence.pictures import contact_sheet
from guidance_lab.experiments.galip_networks import DIMS, draw, image_encoder, networks, noise, put_in_clip
from guidance_lab.experiments.train.diffusion import SCENES, Average, scene
from guidance_lab.experiments.train.text import encoder as text_encoder
from guidance_lab.experiments.train.text import loose_caption, tokens
from guidance_lab.experiments.training import RUNS, Run
from guidance_lab.galip import Generator
from guidance_lab.galip.training import LR_D, LR_G, Trainer
from guidance_lab.shapes.read import judge, read
from guidance_lab.shapes.render import render
from guidance_lab.shapes.world import parse, random_scene

HALF = 500  # steps in which the learning rates halve
FIRST_G, LAST_G = 3.0, 1.0  # of the generator's official learning rate
FIRST_D, LAST_D = 1.0, 0.125  # of the discriminator's: at more than this it only follows the batch of the moment


def clip_snapshot() -> dict:
    """The CLIP that every GALIP run uses: `clip`'s last checkpoint as it was when the first of them began."""
    path = RUNS / "galip" / "clip.pt"
    if not path.exists():
        state = torch.load(RUNS / "clip" / "last.pt", weights_only=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({key: state[key] for key in ("visual", "projection", "step")}, path)
    return torch.load(path, weights_only=True)


class Sentences:
    """Captions → sentence embeddings [N, 128] of the Shapes CLIP: projected, not normalized."""

    def __init__(self, projection: torch.Tensor):
        self.text = text_encoder()
        self.text.load_state_dict(torch.load(RUNS / "text" / "last.pt", weights_only=True)["model"])
        self.text.eval().requires_grad_(False)
        self.projection = projection

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> torch.Tensor:
        return self.text(tokens(captions))[2] @ self.projection.T


def real_batch(step: int, size: int) -> tuple[torch.Tensor, list[str]]:
    """Pictures of the diffusion model's training scenes in [-1, 1], [B, 3, 64, 64], and their captions."""
    rng = np.random.default_rng([7, step])
    scenes = [scene(int(i)) for i in rng.integers(0, SCENES, size)]
    pictures = torch.from_numpy(np.stack([render(s) for s in scenes]))
    return pictures.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1, [loose_caption(s, rng)[0] for s in scenes]


def look(run: Run, generator: Generator, sentences: Sentences, count: int) -> None:
    """Reads `count` samples of one-thing prompts, adds the scores to the log, and keeps a contact sheet and the
    generator.
    """
    rng = np.random.default_rng(41)
    scenes = [parse(random_scene(rng, 1).caption) for _ in range(count)]
    pictures = draw(generator, sentences([s.caption for s in scenes]), noise(count, 41))
    rows = [judge(s, read(p)) for s, p in zip(scenes, pictures, strict=True)]
    scores = {
        key: round(float(np.mean([row[key] for row in rows])), 3)
        for key in ("object", "colour", "texture", "background", "all")
    }
    row = {"step": run.step, "samples": count} | scores
    with open(run.folder / "log.jsonl", "a", encoding="utf-8") as log:
        log.write(json.dumps(row) + "\n")
    print(row, flush=True)
    contact_sheet(run.folder / f"step{run.step:05}.png", [pictures[i : i + 12] for i in range(0, 48, 12)])
    torch.save(
        {key: value.half() for key, value in generator.state_dict().items()}, run.folder / f"step{run.step:05}.pt"
    )


def snapshots(name: str) -> set[int]:
    """Steps at which a run kept its generator."""
    return {int(path.stem[4:]) for path in (RUNS / name).glob("step*.pt")}


def averaged(name: str, step: int, clip_in_g: bool = True) -> Generator:
    """The generator that run `name` kept at `step`."""
    generator = networks(clip_in_g)[0]
    state = torch.load(RUNS / name / f"step{step:05}.pt", weights_only=True)
    generator.load_state_dict({key: value.float() for key, value in state.items()})
    return generator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--look", type=int, default=500, help="steps between two looks at samples")
    parser.add_argument(
        "--without-clip-d", action="store_true", help="ablation: the discriminator sees pixels, not CLIP features"
    )
    parser.add_argument("--without-clip-g", action="store_true", help="ablation: no CLIP inside the generator")
    parser.add_argument(
        "--rates", type=float, nargs=2, metavar=("G", "D"), help="learning rates that do not fall, in official ones"
    )
    parser.add_argument("--name", help="of the run, in place of that of its kind")
    parser.add_argument(
        "--twice", action="store_true", help="CLIP sees pictures normalized twice, as in the official code"
    )
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clip = clip_snapshot()
    encoder = image_encoder(clip["visual"], args.twice)
    sentences = Sentences(clip["projection"]["weight"])
    with torch.random.fork_rng():
        torch.manual_seed(8)
        generator, netd, netc = networks(not args.without_clip_g, not args.without_clip_d)
    put_in_clip(generator, encoder)
    for part in (encoder, generator, netd, netc):
        part.to(device)
    trainer = Trainer(generator, netd, netc, encoder, autocast=torch.bfloat16, clip_features=not args.without_clip_d)
    average = Average(generator)
    kind = (
        "galip"
        + "-without-clip-d" * args.without_clip_d
        + "-without-clip-g" * args.without_clip_g
        + "-twice" * args.twice
    )
    run = Run(args.name or kind, {"trainer": trainer, "average": average}, every=100)
    while run.step < args.steps:
        falling = 0.5 ** (run.step / HALF)
        rates = args.rates or (max(LAST_G, FIRST_G * falling), max(LAST_D, FIRST_D * falling))
        trainer.optimizer_g.param_groups[0]["lr"], trainer.optimizer_d.param_groups[0]["lr"] = (
            rates[0] * LR_G,
            rates[1] * LR_D,
        )
        real, captions = real_batch(run.step, args.batch)
        codes = torch.randn(args.batch, DIMS.nz, generator=torch.Generator().manual_seed(run.step))
        terms = trainer.step(real.to(device), sentences(captions).to(device), codes.to(device))
        average.update(generator, run.step)
        run.done(args.batch, **{key: value.item() for key, value in terms.items()})
        if run.step % args.look == 0:
            look(run, average.module, sentences, 200)
    run.save()


if __name__ == "__main__":
    main()
