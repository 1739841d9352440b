"""Trains a Shapes diffusion model on latents of the Shapes VAE with the frozen text encoder. Run: python dev.py train
diffusion

eps-prediction on SD1.5's schedule, L = E max(1, 1/SNR_t) |eps - unet(sqrt(a_t) z + sqrt(1 - a_t) eps, t, text)|², 10 %
of captions empty, EMA weights kept. The same script makes the guides of autoguidance: an early snapshot of the main
run, and `--small`, a smaller network trained for less time.
"""

import argparse
import copy

import numpy as np
import torch

from guidance_lab.experiments.train.text import encoder, loose_caption, tokens
from guidance_lab.experiments.training import RUNS, Run, initialize, learning_rate
from guidance_lab.shapes.models import autoencoder, diffusion_model, unet_config
from guidance_lab.shapes.render import render
from guidance_lab.shapes.world import Scene, random_scene

SCENES = 30_000
MAIN = {
    "width": 64,
    "mult": (1, 1, 2, 2),
}  # 32 would leave one channel to a group of the normalization, which then forgets the mean
SMALL = {"width": 32, "mult": (1, 1, 2, 2)}


def scene(index: int) -> Scene:
    """Scene `index` of the training set."""
    return random_scene(np.random.default_rng([2, index]))


@torch.no_grad()
def latents(device: str) -> torch.Tensor:
    """The training set, encoded once and normalized per channel to mean 0 and deviation 1: [SCENES, 4, 8, 8]. Cached
    beside the run.
    """
    path = RUNS / "latents.pt"
    if not path.exists():
        vae = autoencoder()
        vae.load_state_dict(torch.load(RUNS / "vae" / "last.pt", weights_only=True)["model"])
        vae.to(device).eval()
        rows = []
        for start in range(0, SCENES, 100):
            batch = np.stack([render(scene(i)) for i in range(start, start + 100)])
            x = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
            with torch.autocast(device, torch.bfloat16):
                rows.append(vae.quant_conv(vae.encoder(x)).chunk(2, 1)[0].float().cpu())
            if start % 3000 == 0:
                print(f"encoded {start} of {SCENES}", flush=True)
        z = torch.cat(rows)
        mean, std = z.mean((0, 2, 3), keepdim=True), z.std((0, 2, 3), keepdim=True)
        torch.save({"z": (z - mean) / std, "mean": mean, "std": std}, path)
    return torch.load(path, weights_only=True)["z"]


class Average(torch.nn.Module):
    """Exponential moving average of a module's weights; its horizon grows with the run, or early snapshots would be the
    initialization.
    """

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module = copy.deepcopy(module).requires_grad_(False)

    def update(self, module: torch.nn.Module, step: int) -> None:
        decay = min(0.999, (1 + step) / (10 + step))
        for mine, theirs in zip(self.module.parameters(), module.parameters(), strict=True):
            mine.lerp_(theirs.detach(), 1 - decay)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="the smaller guide, trained for 400 steps by default")
    parser.add_argument("--steps", type=int, help="optimizer steps (3000; 400 with --small)")
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()
    steps = args.steps or (400 if args.small else 3000)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    z = latents(device)
    text = encoder()
    text.load_state_dict(torch.load(RUNS / "text" / "last.pt", weights_only=True)["model"])
    text.to(device).eval()
    base = diffusion_model(unet_config(**(SMALL if args.small else MAIN)))
    unet = base.diffusion_model
    initialize(unet, seed=3)
    unet.to(device)
    average = Average(unet)
    optimizer = torch.optim.AdamW(unet.parameters(), 1e-3, weight_decay=1e-3, fused=True)
    run = Run("small" if args.small else "main", {"model": unet, "average": average, "optimizer": optimizer})
    signal = (1 / (1 + base.model_sampling.sigmas**2)).to(
        device
    )  # the schedule's cumulative alphas: sigma² = (1 - a) / a
    snapshots = {steps // 16, steps // 8, steps // 4, steps // 2}
    while run.step < steps:
        rng = np.random.default_rng([3, run.step])
        noise = torch.Generator(device).manual_seed(run.step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run.step, steps, 1e-3)
        picked = rng.integers(0, SCENES, args.batch)
        captions = ["" if rng.random() < 0.1 else loose_caption(scene(i), rng)[0] for i in picked]
        with torch.no_grad():
            context = text(tokens(captions).to(device))[0]
        x0 = z[picked].to(device)
        t = torch.from_numpy(rng.integers(0, 1000, args.batch)).to(device)
        eps = torch.randn(x0.shape, generator=noise, device=device)
        a = signal[t].view(-1, 1, 1, 1).float()
        with torch.autocast(device, torch.bfloat16):
            guess = unet(a.sqrt() * x0 + (1 - a).sqrt() * eps, t, context=context)
        # max(1, 1 / SNR): the plain eps loss hardly sees the noisy end, where text decides what is drawn (Salimans & Ho
        # 2022, section 4)
        weight = ((1 - a) / a).clamp(min=1.0)
        loss = (weight * (guess.float() - eps).square()).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        average.update(unet, run.step)
        run.done(args.batch, loss=loss.item())
        if run.step in snapshots:
            torch.save(average.module.state_dict(), run.folder / f"step{run.step}.pt")
    run.save()


if __name__ == "__main__":
    main()
