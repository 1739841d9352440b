"""Goes on training the Shapes captioner on the model's own pictures, so that it can guide. Run: python dev.py train
captioner_own

A quarter each: renders, blurred renders, finished pictures of the model and running estimates on the way to them, both
with what the readers see in the finished one (`own_pictures.py`). It begins with the shipped weights, and every 500
steps the log says what it makes of pictures that are kept to measure on.
"""

import argparse

import numpy as np
import torch

from guidance_lab.experiments.data import SCENES, scene
from guidance_lab.experiments.train.captioner import labels
from guidance_lab.experiments.train.captioner_estimates import blurred, rendered
from guidance_lab.experiments.train.clip import normalized
from guidance_lab.experiments.train.own_pictures import own
from guidance_lab.experiments.training import Run, descend, learning_rate
from guidance_lab.shapes import shipped

CHECKED = 300  # of the drawn pictures, at their end: kept to measure on
RATE = 5e-4


def floats(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 [N, H, W, 3] → [N, 3, H, W] in 0..1."""
    return pictures.permute(0, 3, 1, 2).float() / 255


def batch_of(
    drawn: torch.Tensor, captions: list[str], batch: int, rng: np.random.Generator
) -> tuple[torch.Tensor, list[str]]:
    """(pictures [batch, 3, 128, 128] in 0..1, their captions): a quarter of each kind; `batch`: a multiple of 4."""
    quarter = batch // 4
    fresh = rng.integers(0, SCENES, 2 * quarter)
    clear, soft = rendered(fresh).split(quarter)
    named = np.array([i for i, caption in enumerate(captions[:-CHECKED]) if caption])
    seen = rng.choice(named, 2 * quarter)
    stage = np.where(np.arange(2 * quarter) < quarter, 0, rng.integers(1, drawn.shape[1], 2 * quarter))
    x = torch.cat([clear, blurred(soft, rng), floats(drawn[torch.from_numpy(seen), torch.from_numpy(stage)])])
    return x, [scene(int(i)).caption for i in fresh] + [captions[i] for i in seen]


@torch.no_grad()
def check(network, drawn: torch.Tensor, captions: list[str]) -> dict[str, float]:
    """-log p per word of what the readers saw, for the kept pictures: finished, and estimated early to late."""
    kept = [i for i in range(len(captions) - CHECKED, len(captions)) if captions[i]]
    ids, wanted = labels([captions[i] for i in kept])
    network.eval()
    names = ["finished", *(f"estimate {k}" for k in range(1, drawn.shape[1]))]
    return {
        name: network(pixel_values=normalized(floats(drawn[kept, stage])), input_ids=ids, labels=wanted).loss.item()
        for stage, name in enumerate(names)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=144_000)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument(
        "--pictures", type=int, default=3000, help="to draw; the first time, a quarter of a second each"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    drawn, captions = own(args.pictures)
    network = shipped.load_captioner().requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-2, fused=True)
    run = Run("captioner_own", {"model": network, "optimizer": optimizer}, every=100)
    print(run.step, check(network, drawn, captions), flush=True)
    for step in run.steps(args.samples):
        rng = np.random.default_rng([10, step])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run.samples, args.samples, RATE, warmup=100 * args.batch)
        x, said = batch_of(drawn, captions, args.batch, rng)
        ids, wanted = labels(said)
        network.train()
        loss = network(pixel_values=normalized(x), input_ids=ids, labels=wanted).loss
        descend(loss, network, optimizer)
        run.done(args.batch, loss=loss.item())
        if run.step % 500 == 0:
            print(run.step, {k: round(v, 3) for k, v in check(network, drawn, captions).items()}, flush=True)


if __name__ == "__main__":
    main()
