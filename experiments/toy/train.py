"""Training of the toy networks by exact score matching: seeded, snapshotted and resumable."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import torch

from guidance_lab.experiments.toy.distribution import mixture
from guidance_lab.experiments.toy.model import EnergyNet, ema_exponent

BATCH = 4096
SNAPSHOT_EVERY = 256
LOG_SIGMA_MEAN, LOG_SIGMA_STD = -2.3, 1.5
LEARNING_RATE, LEARNING_RATE_DECAY_FROM = 0.01, 512
EMA_STD = 0.010


def snapshot_path(folder: Path, classes: str, width: int, seed: int, iteration: int) -> Path:
    """Where the averaged weights of one run after `iteration` steps are kept."""
    return folder / f"{classes}-width{width}-seed{seed}-iter{iteration:04d}.pt"


def load(folder: Path, classes: str, width: int, seed: int, iteration: int) -> EnergyNet:
    """The averaged network of one run after `iteration` steps, ready for sampling."""
    net = EnergyNet(width)
    net.load_state_dict(torch.load(snapshot_path(folder, classes, width, seed, iteration), weights_only=True))
    return net.eval().requires_grad_(False)


def _write(state: dict, path: Path) -> None:
    """Write through a temporary file, so that an interrupted run never leaves half a file behind."""
    part = path.with_suffix(".tmp")
    torch.save(state, part)
    os.replace(part, path)


def train(
    folder: Path, classes: str, width: int, seed: int, iterations: int, report: Callable[[str], None] = print
) -> None:
    """Train one network on a class ("A" or "AB") for `iterations` steps and keep its EMA every 256 steps in `folder`.

    Loss: sigma^2 * mean |score_gt - score|^2, log sigma ~ N(-2.3, 1.5^2) (the paper's appendix C). Picks up where an
    interrupted run of the same name stopped; the learning rate does not depend on `iterations`, so a shorter run is a
    prefix of a longer one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = mixture(classes)
    name = f"{classes}-width{width}-seed{seed}"
    state_path = folder / f"{name}-state.pt"
    net, average = EnergyNet(width, seed), EnergyNet(width, seed).requires_grad_(False)
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(1000 + seed)
    start = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        net.load_state_dict(state["net"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state.get("optimizer") or state["optimiser"])  # the older spelling of kept runs
        generator.set_state(state["generator"])
        start = state["iteration"]
    exponent = ema_exponent(EMA_STD)

    for step in range(start, iterations):
        sigma = (LOG_SIGMA_MEAN + LOG_SIGMA_STD * torch.randn(BATCH, 1, generator=generator)).exp()
        x = data.sample(BATCH, 0.0, generator) + sigma * torch.randn(BATCH, 2, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE / math.sqrt(max(step / LEARNING_RATE_DECAY_FROM, 1))
        loss = (sigma**2 * (data.score(x, sigma) - net.score(x, sigma)).square()).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        net.force_magnitude()
        keep = (1 - 1 / (step + 1)) ** (exponent + 1)
        with torch.no_grad():
            for mean, value in zip(average.parameters(), net.parameters(), strict=True):
                mean.lerp_(value, 1 - keep)
        if (step + 1) % SNAPSHOT_EVERY == 0:
            _write(average.state_dict(), snapshot_path(folder, classes, width, seed, step + 1))
            state = {"net": net.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
            _write({**state, "generator": generator.get_state(), "iteration": step + 1}, state_path)
            report(f"{name}: {step + 1}/{iterations} steps, loss {loss.item():.4f}")
