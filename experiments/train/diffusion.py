"""Trains the main Shapes model on latents with the frozen text encoder. Run: python dev.py train diffusion

eps-prediction on SD1.5's schedule, L = E max(1, 1/SNR_t) |eps - unet(sqrt(a_t) z + sqrt(1 - a_t) eps, t, text)|²,
a tenth of the captions empty, EMA weights kept. First the inner levels alone read the text, from `LISTEN_FROM` on the
outer ones read it too, for three quarters of the samples (`outer.py` says why).

The guides of autoguidance come from the same script: `early-*.safetensors` are snapshots of the EMA weights on the way,
and `--small` is a smaller network that is trained for a sixteenth of the samples and reads the text everywhere.
"""

import copy
import json
import shutil

import numpy as np
import torch

from guidance_lab.experiments.data import CHUNK, SCENES, scene
from guidance_lab.experiments.latents import Latents
from guidance_lab.experiments.muon import optimizers, set_rate
from guidance_lab.experiments.sampling import contexts, sample, without_text, zeroed_below
from guidance_lab.experiments.train.outer import OuterText, forget_outside
from guidance_lab.experiments.training import (
    CHECKPOINT,
    Run,
    autocast,
    descend,
    initialize,
    kept,
    learning_rate,
    options,
    prepare,
    trained,
    write_weights,
)
from guidance_lab.shapes.models import LATENT, diffusion_model, text_encoder, unet_config
from guidance_lab.shapes.read import judge, read
from guidance_lab.shapes.words import loose_caption, tokens
from guidance_lab.shapes.world import Scene, parse, random_scene

MAIN = {"width": 32, "mult": (1, 2, 4, 4)}
SMALL = {"width": 32, "mult": (1, 1, 2, 2)}
SAMPLES = 3_000_000
LISTEN_FROM = 375_000  # samples; before, only the inner levels of the main model read the text
EARLY = (4_000, 8_000, 16_000, 32_000)  # samples after that: snapshots for the early guide
OUTER_SILENT = 0.25  # share of the samples whose text the outer levels do not read after that
ENDS = ("input_blocks.0.", "time_embed.", "out.")  # what takes latents and timestep in, what puts the noise out
MUON_RATE = 4  # times AdamW's; 1 is slower at first, as good at 22,400 samples (results/optimizers.json)


class Average(torch.nn.Module):
    """Exponential moving average of a module's weights; its horizon grows with the run, or early snapshots would be
    the initialization."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module = copy.deepcopy(module).requires_grad_(False)

    @torch.no_grad()
    def update(self, module: torch.nn.Module, step: int) -> None:
        decay = min(0.9995, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.module.parameters()), [p.detach() for p in module.parameters()], 1 - decay)


def untrained(size: dict):
    """(host model with the schedule, its network): every branch starts silent, as in the original UNet (zero last
    layers)."""
    base = diffusion_model(unet_config(**size))
    unet = base.diffusion_model
    initialize(unet, seed=3)
    for name, p in unet.named_parameters():
        if any(part in name for part in (".out_layers.3.", ".proj_out.")) or name.startswith("out.2."):
            torch.nn.init.zeros_(p)
    return base, unet


def normalize_contiguous(unet: torch.nn.Module) -> None:
    """Lets the group normalizations see maps channels-first: on a CPU PyTorch's are twice as fast on those, and an
    eighth of a training step is saved.
    """
    for part in unet.modules():
        if isinstance(part, torch.nn.GroupNorm):
            part.register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(),))
            part.register_forward_hook(
                lambda module, inputs, output: output.contiguous(memory_format=torch.channels_last)
            )


def frozen_text(device: str) -> torch.nn.Module:
    """The trained text encoder."""
    text = text_encoder()
    text.load_state_dict(trained("text"))
    return text.to(device).eval().requires_grad_(False)


def prompts(count: int, singles: bool, seed: int = 31) -> list[Scene]:
    """Scenes to ask for: of one thing, or of two and three, in colours that have names; places and sizes as the words
    leave them."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < count:
        drawn = random_scene(rng, 1 if singles else int(rng.choice((2, 3), p=(0.7, 0.3))))
        if all(thing.colour for thing in drawn.things):
            found.append(parse(drawn.caption))
    return found


@torch.no_grad()
def look(base, unet, text, latents: Latents, device: str, listens: bool, count: int = 100) -> dict[str, float]:
    """What the readers say to `count` unguided pictures of one thing, as they are and without the inner levels (maps of
    4×4 and smaller, as in the gate), and to as many guided ones (CFG 2) of several.

    listens: whether the outer levels read the text.
    """
    empty = contexts(text, [""], device)
    silent = [] if listens else without_text(unet, {LATENT, LATENT // 2}, empty)

    def judged(singles: bool, cfg: float) -> list[dict[str, float]]:
        scenes = prompts(count, singles)
        z = sample(base, unet, contexts(text, [scene.caption for scene in scenes], device), empty, 5, cfg)
        return [judge(s, read(p)) for s, p in zip(scenes, latents.decoded(z).numpy(), strict=True)]

    def means(name: str, rows: list[dict[str, float]], keys: tuple[str, ...]) -> dict[str, float]:
        return {f"{name} {key}": round(float(np.mean([row[key] for row in rows])), 3) for key in keys}

    keys = ("object", "colour", "background", "all")
    row = means("unguided one", judged(True, 1.0), keys)
    hook = zeroed_below(unet, 4)
    row |= means("without inner levels", judged(True, 1.0), ("object",))
    hook.remove()
    row |= means("CFG 2 several", judged(False, 2.0), keys)
    for hook in silent:
        hook.remove()
    return row


def main() -> None:
    parser = options(__doc__, samples=SAMPLES, batch=32)
    parser.add_argument("--small", action="store_true", help="the smaller guide")
    parser.add_argument("--forget", action="store_true", help="begin with outer levels that do not know any text")
    parser.add_argument("--rate", type=float, default=8e-4, help="highest learning rate (0.0008)")
    parser.add_argument("--look", type=int, default=50_000, help="samples between two looks with the readers")
    args = parser.parse_args()
    device = prepare(args)
    size = SMALL if args.small else MAIN
    planned = args.samples // 16 if args.small else args.samples
    latents, text = Latents(device), frozen_text(device)
    base, unet = untrained(size)
    base.model_sampling.to(device)
    unet.to(device, memory_format=torch.channels_last)
    average = Average(unet)
    if device == "cpu":
        normalize_contiguous(unet)
    both = optimizers(unet, ENDS, args.rate)
    run = Run("small" if args.small else "main", {"model": unet, "average": average} | both, every=25)
    weights = None if run.samples else kept(run.name)
    if weights:  # the run is elsewhere: its weights that travel with the repository, and a fresh optimizer
        for module in (unet, average.module):
            module.load_state_dict(weights[0])
        run.samples = weights[1]
        run.step = run.samples // args.batch
        if (CHECKPOINT / "log.jsonl").exists() and not args.small:  # or the export would leave the part before out
            shutil.copy(CHECKPOINT / "log.jsonl", run.folder / "log.jsonl")
        print(f"{run.name}: begins again from the weights in checkpoint/ at {run.samples} samples", flush=True)
    restarted = run.samples if weights else 0
    averaged_from = 0
    if args.forget:
        forget_outside(unet)
        average.module.load_state_dict(unet.state_dict())
        averaged_from = run.step
    # the schedule's cumulative alphas: sigma² = (1 - a) / a
    signal = (1 / (1 + base.model_sampling.sigmas**2)).to(device)
    chunks: dict[int, torch.Tensor] = {}
    outer, empty = OuterText(unet), contexts(text, [""], device)
    # snapshots for the early guide
    marks = {planned >> n for n in (3, 4, 5, 6, 7)} if args.small else {LISTEN_FROM + n for n in EARLY}
    for step in run.steps(planned):
        rng = np.random.default_rng([3, step])
        noise = torch.Generator().manual_seed(step)
        # a fresh optimizer is warmed up whenever it begins
        warm = min(1.0, (run.samples - restarted + 1) / (100 * args.batch))
        rate = warm * learning_rate(run.samples, planned, args.rate, warmup=0)
        set_rate(both, rate, MUON_RATE)
        # chunks join one after another, so that a CPU need not encode them all before it can begin
        known = min(SCENES // CHUNK, 1 + run.samples // 30_000)
        for index in range(len(chunks), known):
            chunks[index] = latents.chunk(index)
        picked = rng.integers(0, known * CHUNK, args.batch)
        captions = ["" if rng.random() < 0.1 else loose_caption(scene(int(i)), rng)[0] for i in picked]
        with torch.no_grad():
            context = text(torch.from_numpy(tokens(captions)).to(device))[0]
        x0 = torch.stack([chunks[int(i) // CHUNK][int(i) % CHUNK] for i in picked]).float().to(device)
        t = torch.from_numpy(rng.integers(0, 1000, args.batch)).to(device)
        eps = torch.randn(x0.shape, generator=noise).to(device)
        a = signal[t].view(-1, 1, 1, 1).float()
        x = (a.sqrt() * x0 + (1 - a).sqrt() * eps).contiguous(memory_format=torch.channels_last)
        listens = args.small or run.samples >= LISTEN_FROM
        if not args.small:
            heard = rng.random(args.batch) >= (OUTER_SILENT if listens else 1.0)
            outer.context = torch.where(torch.from_numpy(heard).to(device).view(-1, 1, 1), context, empty)
        with autocast(device, args.bf16):
            guess = unet(x, t, context=context)
        outer.context = None
        # max(1, 1 / SNR): the plain eps loss hardly sees the noisy end, where text decides what is drawn (Salimans &
        # Ho 2022, section 4)
        weight = ((1 - a) / a).clamp(min=1.0)
        error = (guess.float() - eps).square()
        loss = (weight * error).mean()
        descend(loss, unet, *both.values())
        # the average begins anew with what the outer levels begin to learn
        average.update(unet, step - (LISTEN_FROM // args.batch if listens and not args.small else averaged_from))
        before = run.samples
        run.done(args.batch, loss=loss.item(), eps=error.mean().item())
        if before // args.look != run.samples // args.look:
            run.log({"samples": run.samples} | look(base, average.module, text, latents, device, listens))
        for mark in marks:
            if before < mark <= run.samples:
                write_weights(
                    run.folder / f"early-{mark}.safetensors",
                    average.module.state_dict(),
                    run.samples,
                    unet=json.dumps(size),
                )
    write_weights(run.folder / "ema.safetensors", average.module.state_dict(), run.samples, unet=json.dumps(size))


if __name__ == "__main__":
    main()
