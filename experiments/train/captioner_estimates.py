"""Goes on training the Shapes captioner on running estimates, so that it can guide. Run: python dev.py train
captioner_estimates

Trained on finished pictures alone it is sure of itself where a blur decides nothing: -log p(caption) per word is 0.002
on renders and 0.9 to 1.2 on the model's own estimates, and its gradient is as wrong. A quarter each: renders, blurred
renders, estimates, redraws (`estimates.py`). It begins with the shipped weights, and every 500 steps the log says what
it makes of kept scenes of each kind.
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F

from guidance_lab.experiments.data import SCENES, scene
from guidance_lab.experiments.train.captioner import accuracy, labels
from guidance_lab.experiments.train.clip import normalized
from guidance_lab.experiments.train.estimates import estimated
from guidance_lab.experiments.training import Run, descend, learning_rate
from guidance_lab.shapes import shipped
from guidance_lab.shapes.render import render
from guidance_lab.shapes.world import SIZE

CHECKED = 400  # of the estimated scenes, at their end: kept to measure on
RATE = 5e-4


def rendered(indices: np.ndarray) -> torch.Tensor:
    """Renders of these scenes, [N, 3, 128, 128] in 0..1."""
    return torch.from_numpy(np.stack([render(scene(int(i))) for i in indices])).permute(0, 3, 1, 2).float() / 255


def blurred(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Pictures [N, 3, 128, 128] made small, large again and a little noisy."""
    small = int(rng.integers(24, 96))
    x = F.interpolate(x, size=(small, small), mode="bilinear", antialias=True)
    x = F.interpolate(x, size=(SIZE, SIZE), mode="bilinear")
    return x + 0.05 * torch.from_numpy(rng.standard_normal(x.shape).astype(np.float32))


def pictures(drawn: dict[str, torch.Tensor], batch: int, rng: np.random.Generator) -> tuple[torch.Tensor, list[str]]:
    """(pictures [batch, 3, 128, 128] in 0..1, their scenes' captions): a quarter of each kind; `batch` is a multiple of
    four."""
    quarter, count = batch // 4, len(drawn["estimates"])
    fresh = rng.integers(count, SCENES, 2 * quarter)
    seen = rng.integers(0, count - CHECKED, 2 * quarter)
    clear, soft = rendered(fresh).split(quarter)
    soft = blurred(soft, rng)
    rows = [drawn["estimates"][seen[:quarter]], drawn["redraws"][seen[quarter:]]]
    x = torch.cat([clear, soft, torch.cat(rows).permute(0, 3, 1, 2).float() / 255])
    return x, [scene(int(i)).caption for i in (*fresh, *seen)]


@torch.no_grad()
def check(network, drawn: dict[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    """`accuracy` and -log p per word on the kept scenes, as renders, estimates and redraws."""
    count = len(drawn["estimates"])
    scenes = [scene(i) for i in range(count - CHECKED, count)]
    rows = {name: drawn[name][-CHECKED:].permute(0, 3, 1, 2).float() / 255 for name in drawn}
    ids, wanted = labels([s.caption for s in scenes])
    network.eval()
    found = {}
    for kind, x in {"renders": rendered(np.arange(count - CHECKED, count)), **rows}.items():
        loss = network(pixel_values=normalized(x), input_ids=ids, labels=wanted).loss.item()
        found[kind] = accuracy(network, x, scenes) | {"-log p": loss}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=240_000)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--scenes", type=int, default=14_000, help="to estimate; the first time, 70 ms each")
    args = parser.parse_args()
    torch.set_num_threads(1)
    drawn = estimated(args.scenes)
    network = shipped.load_captioner().requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-2, fused=True)
    run = Run("captioner_estimates", {"model": network, "optimizer": optimizer}, every=100)
    for step in run.steps(args.samples):
        rng = np.random.default_rng([9, step])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run.samples, args.samples, RATE, warmup=100 * args.batch)
        x, captions = pictures(drawn, args.batch, rng)
        ids, wanted = labels(captions)
        network.train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = network(pixel_values=normalized(x), input_ids=ids, labels=wanted).loss
        descend(loss, network, optimizer)
        run.done(args.batch, loss=loss.item())
        if run.step % 500 == 0:
            for kind, right in check(network, drawn).items():
                print(run.step, kind, {k: round(v, 3) for k, v in right.items()}, flush=True)


if __name__ == "__main__":
    main()
