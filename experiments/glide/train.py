"""Trains a GLIDE network on Shapes: `base`, then `inpaint` (goes on from base) and `upsample`. See README.md.

Inpainting has nothing known in half of its pictures and so goes on with what base does: the base network that ships is
the inpainting network without its channels for what is known.

Hybrid loss, 20 % of captions empty, EMA weights kept. The networks are convolutional: base sees pictures of half the
size first, four times as many for the same time, and the upsampler sees crops.
"""

import shutil

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from guidance_lab.experiments.train.diffusion import Average
from guidance_lab.experiments.training import (
    RUNS,
    Run,
    autocast,
    descend,
    initialize,
    kept,
    learning_rate,
    options,
    prepare,
)
from guidance_lab.glide.model import quantise

from .data import LARGE, crops_to_enlarge, known, pictures, prompt, scene
from .first_world.world import SIZE, Scene
from .loss import SHARES, HybridLoss, noise_of, timesteps
from .network import CHECKPOINT, CONFIGS, untrained, words
from .reading import WEIGHT, heads_for, reading_loss
from .sampling import draw, edits, prompts, to_bytes, verdict

# samples in all, of those at half the size, highest learning rate
PLANS = {"base": (280_000, 80_000, 1e-3), "inpaint": (52_000, 0, 5e-4), "upsample": (112_000, 102_000, 1e-3)}

OFFSET, OFFSET_UNTIL = 0.1, 190_000  # of the noise for base, and for how many samples: backgrounds are learned then


def trained(name: str) -> tuple[dict[str, torch.Tensor], int] | None:
    """(EMA weights, samples seen) of a run; without a run, of `checkpoint/`."""
    path = RUNS / f"glide-{name}" / "last.pt"
    if not path.exists():
        return kept(name, CHECKPOINT)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {key.removeprefix("module."): value for key, value in state["average"].items()}, state["samples"]


def with_inputs(weights: dict[str, torch.Tensor], channels: int) -> dict[str, torch.Tensor]:
    """Weights whose first convolution reads `channels` more, with weights of zero: the network begins as it was."""
    key = "unet.input_blocks.0.0.weight"
    return weights | {key: F.pad(weights[key], (0, 0, 0, 0, 0, channels))}


def example(name: str, scenes: list[Scene], size: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict, list]:
    """(pictures x0 [B, 3, size, size], what lies around them by the names of `denoise`, prompts) of one step."""
    asked = [prompt(drawn, rng) for drawn in scenes]
    if name == "upsample":
        x0, low = crops_to_enlarge(scenes, size, rng)
        return x0, {"low_res": low}, asked
    x0 = pictures(scenes, size)
    if name == "base":
        return x0, {}, asked
    return x0, {"inpaint_image": x0, "inpaint_mask": known(scenes, size, rng)}, asked


def look(run: Run, name: str, model, size: int, bf16: bool, count: int = 48, cfg: float = 3.0) -> None:
    """Logs what the readers say to guided pictures, and keeps the pictures."""
    scenes, around = prompts(count), {}
    if name == "inpaint":
        scenes, image, mask = edits(count)
        around = {"inpaint_image": image, "inpaint_mask": mask}
    if name == "upsample":
        size, cfg, around = LARGE, 1.0, {"low_res": quantise(pictures(scenes))}
    x = draw(model, [wanted.caption for wanted in scenes], size, cfg, bf16=bf16, **around)
    row = {"samples": run.samples, "size": size, "cfg": cfg} | verdict(scenes, x)
    if name == "upsample":
        row["error"] = round((x - pictures(scenes, LARGE)).abs().mean().item(), 4)
    run.log({"looked at": name} | row)
    rows = to_bytes(x).reshape(-1, 12, size, size, 3).swapaxes(1, 2).reshape(-1, 12 * size, 3)
    Image.fromarray(rows).save(run.folder / f"look-{name}-{run.samples:07d}.png")


def main() -> None:
    parser = options(__doc__, samples=0, batch=32)
    parser.add_argument("name", choices=PLANS, help="the network")
    parser.add_argument("--rate", type=float, help="highest learning rate (planned for each network)")
    parser.add_argument("--small", type=int, help="samples of half the size to begin with (planned for each network)")
    parser.add_argument("--look", type=int, default=20_000, help="samples between two looks with the readers")
    args = parser.parse_args()
    device = prepare(args)
    planned = PLANS[args.name]
    samples = args.samples or planned[0]
    small = planned[1] if args.small is None else args.small
    peak = args.rate or planned[2]
    model = untrained(CONFIGS[args.name]).to(device)
    average = Average(model)
    heads = heads_for(model.config)
    initialize(heads, seed=6)
    learned = torch.nn.ModuleList([model, heads])
    optimizer = torch.optim.AdamW(learned.parameters(), peak, weight_decay=1e-3, fused=True)
    run = Run(f"glide-{args.name}", {"model": model, "average": average, "heads": heads, "optimizer": optimizer})
    weights = None if run.samples else kept(args.name, CHECKPOINT)
    if weights is None and not run.samples and args.name == "inpaint":
        base = trained("base")
        if base is None:
            raise SystemExit("Train base first: inpaint goes on from it.")
        weights = with_inputs(base[0], 4), 0
    if weights:  # the run is elsewhere: its weights that travel with the repository, and a fresh optimizer
        for module in (model, average.module):
            module.load_state_dict(weights[0])
        run.samples = weights[1]
        run.step = run.samples // args.batch
        curve = CHECKPOINT / f"{args.name}.jsonl"
        if curve.exists():  # or the export would leave the part before out
            shutil.copy(curve, run.folder / "log.jsonl")
        print(f"{run.name}: begins from other weights at {run.samples} samples", flush=True)
    restarted = run.samples if weights else 0
    loss_of = HybridLoss(model.config.noise_schedule)
    for step in run.steps(samples):
        rng = np.random.default_rng([6, step])
        size = SIZE // 2 if run.samples < small else SIZE
        # a fresh optimizer is warmed up whenever it begins
        warm = min(1.0, (run.samples - restarted + 1) / (100 * args.batch))
        for group in optimizer.param_groups:
            group["lr"] = warm * learning_rate(run.samples, samples, peak, warmup=0)
        scenes = [scene(index) for index in range(run.samples, run.samples + args.batch)]
        x0, around, asked = example(args.name, scenes, size, rng)
        # an upsampler sees the background in its input
        t = torch.from_numpy(timesteps(args.batch, rng, () if args.name == "upsample" else SHARES))
        offset = OFFSET if args.name == "base" and run.samples < OFFSET_UNTIL else 0.0
        noise = noise_of(x0.shape, offset, torch.Generator().manual_seed(step))
        x = loss_of.noised(x0, t, noise)
        ids = [value.to(device) for value in words([caption for caption, _ in asked])]
        with autocast(device, args.bf16):
            text = model.text(*ids)
            out = model.denoise(x.to(device), t.to(device), *text, **{k: v.to(device) for k, v in around.items()})
        loss, parts = loss_of(out.cpu(), x, x0, t, noise)
        read, right = reading_loss(heads, [value.cpu() for value in text], scenes, asked)
        descend(loss + WEIGHT * read, learned, optimizer)
        average.update(model, step)
        before = run.samples
        run.done(args.batch, **parts, read=right)
        if before // args.look != run.samples // args.look:
            # with nothing known, an inpainting network is a base network
            for name in ("inpaint", "base") if args.name == "inpaint" else (args.name,):
                look(run, name, average.module, size, args.bf16)


if __name__ == "__main__":
    main()
