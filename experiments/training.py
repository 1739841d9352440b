"""What every training script shares: initialization, the learning-rate curve, resumable checkpoints, a log line now and
then.
"""

import json
import math
import os
import time
from pathlib import Path

import torch

RUNS = Path(__file__).resolve().parent / "runs"


def initialize(module: torch.nn.Module, seed: int) -> None:
    """Fills a module whose host layers leave weights unset: fan-in uniform matrices, unit gains, zero biases, N(0,
    0.02) embeddings.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        p.requires_grad_(True)
        with torch.no_grad():
            if "embedding" in name:
                p.normal_(0, 0.02, generator=generator)
            elif p.ndim > 1:
                bound = 1 / math.sqrt(p[0].numel())
                p.uniform_(-bound, bound, generator=generator)
            else:
                p.fill_(1.0 if name.endswith("weight") else 0.0)


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100, floor: float = 0.05) -> float:
    """Linear warm-up to `peak`, then a cosine down to `floor`·peak; `step` and `steps` may count samples as well."""
    if step < warmup:
        return peak * (step + 1) / warmup
    t = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, t))))


def descend(loss: torch.Tensor, module: torch.nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    """One step down the gradient of `loss`, whose norm over the module's weights is cut at 1. No two optimizers share
    weights.
    """
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()


class Run:
    """A resumable training run: named tensors and optimizer states in one checkpoint, replaced atomically; log lines in
    a JSONL file.
    """

    def __init__(self, name: str, parts: dict[str, torch.nn.Module | torch.optim.Optimizer], every: int = 250):
        self.folder = RUNS / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.parts, self.every, self.step, self._since, self._losses = parts, every, 0, time.time(), []
        path = self.folder / "last.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.step = state["step"]
            for key, part in parts.items():
                # runs that are older than this spelling are gone on with
                part.load_state_dict(state[key] if key in state else state["optimiser"])
            print(f"{name}: resumed at step {self.step}", flush=True)

    def save(self, name: str = "last") -> None:
        state = {"step": self.step} | {key: part.state_dict() for key, part in self.parts.items()}
        torch.save(state, self.folder / "write.tmp")
        os.replace(self.folder / "write.tmp", self.folder / f"{name}.pt")

    def done(self, batch: int, **losses: float) -> None:
        """Counts one finished step; every `every` steps logs the mean losses and saves."""
        self.step += 1
        self._losses.append(losses)
        if self.step % self.every:
            return
        mean = {k: sum(row[k] for row in self._losses) / len(self._losses) for k in losses}
        rate = batch * len(self._losses) / (time.time() - self._since)
        row = {"step": self.step, "per_second": round(rate, 1)} | {k: round(v, 5) for k, v in mean.items()}
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        print(row, flush=True)
        self._losses, self._since = [], time.time()
        self.save()
