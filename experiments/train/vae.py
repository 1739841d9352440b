"""Trains the VAE: L1 + MSE + hue + edges + a light KL. Run: python dev.py train vae

`--start FILE` begins with the weights of a finished VAE of the same layout, such as the one that ships, in place
of noise; `--again` with those in `checkpoint/`, and a learning rate that begins anew.
The first 70 % of the steps see random 64-pixel crops (the network is convolutional), the rest whole pictures, whose
statistics the group normalizations will meet later. One batch has the same number of pixels either way.
"""

import math

import comfy.utils
import numpy as np
import torch

from guidance_lab.experiments.data import CHUNK, pictures, scene
from guidance_lab.experiments.training import Run, autocast, initialize, kept, learning_rate, options, prepare, trained
from guidance_lab.shapes.models import autoencoder
from guidance_lab.shapes.world import SIZE

CHUNKS = 10  # of the training set that the VAE sees


def batch_of(step: int, whole: bool, size: int) -> torch.Tensor:
    """`size` crops of 64 pixels, or (`whole`) a quarter as many whole pictures, in [-1, 1]: [B, 3, H, H], contiguous
    (faster on a CPU)."""
    rng = np.random.default_rng([0, step])
    number = int(rng.integers(CHUNKS))
    chunk = pictures(number)
    side = SIZE if whole else 64
    rows = []
    for index in rng.integers(0, CHUNK, size // 4 if whole else size):
        x, y = rng.integers(0, SIZE - side + 1, 2)
        if not whole and rng.random() < 0.85:  # most crops show a thing: the floor is learned soon
            things = scene(number * CHUNK + int(index)).things
            small = np.array([1 / thing.size**2 for thing in things])  # what is small is the last to become sharp
            thing = things[rng.choice(len(things), p=small / small.sum())]
            x, y = (int(np.clip(c - side / 2 + rng.uniform(-16, 16), 0, SIZE - side)) for c in (thing.x, thing.y))
        rows.append(chunk[index, y : y + side, x : x + side])
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def edges(x: torch.Tensor) -> torch.Tensor:
    """Horizontal and vertical differences, flattened: what a blurred reconstruction loses first."""
    return torch.cat([(x[..., 1:] - x[..., :-1]).flatten(1), (x[..., 1:, :] - x[..., :-1, :]).flatten(1)], 1)


def differences(x: torch.Tensor) -> torch.Tensor:
    """R - G, G - B and B - R: hue without brightness, which a plain squared error leaves for last."""
    return x - x.roll(1, 1)


def unscaled(sd: dict[str, torch.Tensor], scale: float = 0.18215) -> dict[str, torch.Tensor]:
    """An exported VAE, whose latents have deviation 1/scale, as one whose latents have deviation 1."""
    sd = {key: value.float() for key, value in sd.items()}
    gain = torch.tensor([scale] * 4 + [1.0] * 4)
    sd["quant_conv.weight"] = sd["quant_conv.weight"] * gain.view(-1, 1, 1, 1)
    sd["quant_conv.bias"] = sd["quant_conv.bias"] * gain
    sd["quant_conv.bias"][4:] += 2 * math.log(scale)
    sd["post_quant_conv.weight"] = sd["post_quant_conv.weight"] / scale
    return sd


def main() -> None:
    parser = options(__doc__, samples=160_000, batch=8, bf16=False)
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate (0.001)")
    parser.add_argument("--start", help="a safetensors file of weights to begin with")
    parser.add_argument("--again", action="store_true", help="begin with the weights in checkpoint/")
    parser.add_argument(
        "--decoder",
        action="store_true",
        help="train the decoder alone, on whole pictures: the latents stay what they are",
    )
    args = parser.parse_args()
    device = prepare(args)
    vae = autoencoder()
    initialize(vae, seed=0)
    if args.start:
        vae.load_state_dict(unscaled(comfy.utils.load_torch_file(args.start, safe_load=True)))
    name = "vae"
    if args.again and (weights := kept("vae")):
        vae.load_state_dict(weights[0])
    if args.decoder:
        vae.load_state_dict(trained("vae"))
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
        name = "decoder"
    vae.to(device)
    optimizer = torch.optim.AdamW([p for p in vae.parameters() if p.requires_grad], args.rate, weight_decay=1e-4)
    run = Run(name, {"model": vae, "optimizer": optimizer})
    for step in run.steps(args.samples):
        noise = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run.samples, args.samples, args.rate, warmup=20 * args.batch, floor=0.02)
        x = batch_of(step, args.decoder or run.samples >= 0.7 * args.samples, args.batch).to(device)
        with autocast(device):
            mean, logvar = vae.quant_conv(vae.encoder(x)).float().chunk(2, 1)
            logvar = logvar.clamp(-30, 20)
            z = mean + (logvar / 2).exp() * torch.randn(mean.shape, generator=noise).to(device)
            y = vae.decoder(vae.post_quant_conv(z)).float()
        l1 = (y - x).abs().mean()
        edge = (edges(y) - edges(x)).abs().mean()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        mse = (y - x).square().mean()
        chroma = (differences(y) - differences(x)).square().mean()
        # squared errors find the hues first (absolute error alone is content with grey medians), the edges keep
        # stripes and dots
        loss = l1 + 4 * mse + 4 * chroma + 0.5 * edge + 2e-5 * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        run.done(args.batch, l1=l1.item(), mse=mse.item(), chroma=chroma.item(), edge=edge.item(), kl=kl.item())


if __name__ == "__main__":
    main()
