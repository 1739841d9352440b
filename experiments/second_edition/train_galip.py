"""Trains a small GALIP on Shapes with the frozen Shapes CLIP, from nothing by one command. See README.md.

The step is the paper's (`galip.training`). What differs from the official set-up: a small CLIP, learning rates that are
a fixed function of the samples seen (`rates`), a batch of 32, CLIP sees pictures normalized once, and pictures are
drawn with an exponential moving average of the generator. `--without-clip-d` and `--without-clip-g` are the paper's
ablations.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from guidance_lab.galip import FAST, Dims, Fast, Generator, ImageEncoder, NetC, NetD
from guidance_lab.galip.discriminator import DBlock
from guidance_lab.galip.training import LR_D, LR_G, Trainer

from .data import CHUNK, scene
from .latents import pixels
from .read import judge, read
from .train_clip import CHUNKS, Pictures
from .train_diffusion import Average, frozen_text, prompts
from .training import Run, options, prepare, trained
from .words import loose_caption, tokens

DIMS = Dims(
    nz=64, cond_dim=128, grid=8, code_channels=32, code_hidden=16, bridge_blocks=4, clip_width=128, clip_layers=4,
    clip_patch=16, prompts=2,
    channels=((128, 96), (96, 64), (64, 48), (48, 24)), sizes=(16, 32, 64, 128),
)  # fmt: skip
TAPS = (0, 1, 2)  # blocks 1, 4, 8 of 12 in the paper
JUDGE = 128  # channels that NetD hands to NetC


class NoMapper(torch.nn.Module):
    """In place of the ViT inside the generator: nothing is added to the bridge features."""

    def forward(self, features: torch.Tensor, prompts: torch.Tensor, fast: Fast) -> torch.Tensor:
        return torch.zeros_like(features)


class PixelD(torch.nn.Module):
    """In place of CLIP features and NetD: a discriminator of about the same size that sees the picture, as in
    DF-GAN."""

    def __init__(self, channels: int = JUDGE):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 24, 4, stride=2, padding=1)
        self.blocks = torch.nn.ModuleList([DBlock(24, 48, False), DBlock(48, 96, False), DBlock(96, 128, False)])
        self.main = DBlock(128, channels, False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[B, 3, 128, 128] -> [B, channels, 8, 8]."""
        x = self.first(image)
        for block in self.blocks:
            x = F.avg_pool2d(block(x), 2)
        return self.main(x)


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


@torch.no_grad()
def draw(generator: Generator, sentences: torch.Tensor, seed: int) -> np.ndarray:
    """Sentences [N, cond_dim] → pictures uint8 [N, 128, 128, 3]."""
    codes = torch.randn(len(sentences), DIMS.nz, generator=torch.Generator().manual_seed(seed)).to(sentences.device)
    images = [generator.eval()(c, s) for c, s in zip(codes.split(50), sentences.split(50), strict=True)]
    return ((torch.cat(images).clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def look(generator: Generator, sentences: Sentences, count: int, sheet: Path) -> dict[str, float]:
    """What the readers say to `count` samples of one-thing prompts; keeps a contact sheet."""
    scenes = prompts(count, True, seed=41)
    drawn = draw(generator, sentences([s.caption for s in scenes]), 41)
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
    encoder = ImageEncoder(DIMS.clip_width, DIMS.clip_layers, DIMS.grid, DIMS.clip_patch, DIMS.cond_dim, TAPS, False)
    encoder.load_state_dict(trained("clip"))
    sentences, shown = Sentences(device), Pictures(device).fresh
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        generator = Generator(DIMS, FAST)
        netd = PixelD() if args.without_clip_d else NetD(DIMS.clip_width, JUDGE, len(TAPS))
        netc = NetC(JUDGE, DIMS.cond_dim, 64, 4, DIMS.grid)
    if args.without_clip_g:
        generator.mapping.CLIP_ViT = NoMapper()
    else:  # the image tower goes into the generator, where it stays frozen; its embedding is not used there
        inside = {k: v for k, v in encoder.state_dict().items() if k != "proj" and "ln_post" not in k}
        generator.mapping.CLIP_ViT.load_state_dict(inside)
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
        codes = torch.randn(args.batch, DIMS.nz, generator=torch.Generator().manual_seed(step))
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
