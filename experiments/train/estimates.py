"""Training scenes as the diffusion model sees them half-way: what a captioner is asked about while it guides.

A score that guides from p(caption | x_t) has to know how little a blurred estimate tells (Dhariwal and Nichol,
2105.05233, section 4, train their classifier on noisy pictures for that). Here the picture is the estimate x0(x_t) of a
noised training scene, and its caption is the scene's own: no reader and no finished sample says what is right.
"""

import numpy as np
import torch

from guidance_lab.experiments.data import scene
from guidance_lab.experiments.sampling import encode
from guidance_lab.experiments.training import RUNS
from guidance_lab.shapes import shipped
from guidance_lab.shapes.render import render
from guidance_lab.shapes.words import loose_caption

BATCH = 100
ESTIMATES, REDRAWS = (50, 850), (250, 600)  # timesteps from which a scene is estimated, and drawn to the end
# Above these the estimate of a captioned model shows the caption and no longer the scene: the caption is left out.
TOLD_BELOW, TOLD_REDRAWS_BELOW = 500, 450
STEPS = 4  # of Euler, from there to the end


def estimated(count: int) -> dict[str, torch.Tensor]:
    """`estimates` and `redraws` of the first `count` training scenes, each uint8 [count, 128, 128, 3]; cached beside
    the runs. About 70 ms a scene on one core. `count` is a multiple of 100.

    Half of the scenes are estimated without their caption, as classifier-free guidance does.
    """
    path = RUNS / f"estimates-{count}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(_drawn(count), path)
    return torch.load(path, weights_only=True)


@torch.no_grad()
def _drawn(count: int) -> dict[str, torch.Tensor]:
    clip, vae, patcher = shipped.load_clip(), shipped.load_vae(), shipped.load_model("main")
    base = patcher.model.eval()
    latent_format, sigmas, empty = base.latent_format, base.model_sampling.sigmas, encode(clip, [""])

    def denoised(x: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return base.apply_model(x, sigma, c_crossattn=context).float()

    def decoded(z: torch.Tensor) -> torch.Tensor:
        return (vae.decode(latent_format.process_out(z)).clamp(0, 1) * 255).round().byte()

    estimates, redraws = [], []
    for start in range(0, count, BATCH):
        rng, generator = np.random.default_rng([77, start]), torch.Generator().manual_seed(start)
        scenes = [scene(i) for i in range(start, start + BATCH)]
        pictures = torch.from_numpy(np.stack([render(s) for s in scenes])).float() / 255
        z = latent_format.process_in(vae.encode(pictures).float())
        context = encode(clip, [loose_caption(s, rng)[0] if rng.random() < 0.5 else "" for s in scenes])

        def noised(low: int, high: int, told_below: int, rng=rng, generator=generator, z=z, context=context):
            """(timesteps, x_t, contexts) of the batch at random timesteps."""
            t = torch.from_numpy(rng.integers(low, high, BATCH))
            x = z + sigmas[t].float().view(-1, 1, 1, 1) * torch.randn(z.shape, generator=generator)
            return t, x, torch.where((t < told_below).view(-1, 1, 1), context, empty.expand_as(context))

        t, x, told = noised(*ESTIMATES, TOLD_BELOW)
        estimates.append(decoded(denoised(x, sigmas[t].float(), told)))
        t, x, told = noised(*REDRAWS, TOLD_REDRAWS_BELOW)
        sigma = sigmas[t].float()
        for left in reversed(range(STEPS)):
            lower = sigmas[t * left // STEPS].float() if left else torch.zeros(BATCH)
            x0 = denoised(x, sigma, told)
            x, sigma = x0 + (lower / sigma).view(-1, 1, 1, 1) * (x - x0), lower
        redraws.append(decoded(x))
        if start % 1000 == 0:
            print(f"estimated {start} of {count}", flush=True)
    return {"estimates": torch.cat(estimates), "redraws": torch.cat(redraws)}
