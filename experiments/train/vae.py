"""Trains the Shapes VAE: L1 + MSE + hue + edges + a light KL, on fresh renders. Run: python dev.py train vae"""

import argparse

import numpy as np
import torch

from guidance_lab.experiments.training import Run, initialize, learning_rate
from guidance_lab.shapes.models import autoencoder
from guidance_lab.shapes.render import render
from guidance_lab.shapes.world import random_scene


def pictures(rng: np.random.Generator, count: int) -> torch.Tensor:
    """Fresh renders in [-1, 1]: [count, 3, 64, 64]."""
    batch = np.stack([render(random_scene(rng)) for _ in range(count)])
    # contiguous: the CPU GroupNorm backward is many times slower on channels-last memory
    return torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def edges(x: torch.Tensor) -> torch.Tensor:
    """Horizontal and vertical differences, flattened: what a blurred reconstruction loses first."""
    return torch.cat([(x[..., 1:] - x[..., :-1]).flatten(1), (x[..., 1:, :] - x[..., :-1, :]).flatten(1)], 1)


def differences(x: torch.Tensor) -> torch.Tensor:
    """R - G, G - B and B - R: hue without brightness, which a plain squared error leaves for last."""
    return x - x.roll(1, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae = autoencoder()
    initialize(vae, seed=0)
    vae.to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), 2e-3, weight_decay=1e-4)
    run = Run("vae", {"model": vae, "optimizer": optimizer})
    while run.step < args.steps:
        rng = np.random.default_rng([0, run.step])
        noise = torch.Generator(device).manual_seed(run.step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run.step, args.steps, 4e-3)
        x = pictures(rng, args.batch).to(device)
        with torch.autocast(device, torch.bfloat16):
            mean, logvar = vae.quant_conv(vae.encoder(x)).float().chunk(2, 1)
            logvar = logvar.clamp(-30, 20)
            z = mean + (logvar / 2).exp() * torch.randn(mean.shape, generator=noise, device=device)
            y = vae.decoder(vae.post_quant_conv(z)).float()
        l1 = (y - x).abs().mean()
        edge = (edges(y) - edges(x)).abs().mean()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        mse = (y - x).square().mean()
        chroma = (differences(y) - differences(x)).square().mean()
        # squared errors find the hues first (absolute error alone is content with grey medians), the edges keep stripes
        # and dots
        loss = l1 + 4 * mse + 4 * chroma + 0.5 * edge + 2e-5 * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        run.done(args.batch, l1=l1.item(), mse=mse.item(), edge=edge.item(), kl=kl.item())
    run.save()


if __name__ == "__main__":
    main()
