"""What every training script shares: initialization, the learning-rate curve, resumable checkpoints, a log line now
and then.

Runs lie in the folder `runs` beside this file, or in that of the environment variable SHAPES_RUNS. Where no run lies,
weights in `train/checkpoint/`, which travels with the repository, take its place.
"""

import argparse
import json
import math
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F

CHECKPOINT = Path(__file__).resolve().parent / "train" / "checkpoint"
RUNS = Path(os.environ.get("SHAPES_RUNS", Path(__file__).resolve().parent / "runs"))
SAVE_SECONDS = 600.0


def options(description: str, samples: int, batch: int, bf16: bool = True) -> argparse.ArgumentParser:
    """The options that every training has; `bf16`: whether it can use bfloat16 on a CPU."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--samples", type=int, default=samples, help=f"to train on in all ({samples})")
    parser.add_argument("--batch", type=int, default=batch, help=f"samples a step ({batch})")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    if bf16:
        parser.add_argument(
            "--bf16", action="store_true", help="bfloat16 on a CPU too: up to twice as fast with AVX-512 BF16"
        )
    return parser


def prepare(args: argparse.Namespace) -> str:
    """Sets the threads; the device to train on."""
    torch.set_num_threads(args.threads)
    return "cuda" if torch.cuda.is_available() else "cpu"


def autocast(device: str, bf16: bool = False) -> torch.autocast:
    """bfloat16 on a GPU; float32 on a CPU, where bfloat16 is slower unless the CPU has units for it (`bf16`)."""
    return torch.autocast(device, torch.bfloat16, enabled=bf16 or device == "cuda")


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


def read_outs(
    heads: torch.nn.Module,
    pooled: torch.Tensor,
    nouns: torch.Tensor,
    rows: list[tuple[dict[str, int], list[dict[str, int]]]],
) -> tuple[torch.Tensor, float]:
    """(mean cross-entropy, share that is right) of what heads (`scene` and `noun`, by what they say) read from pooled
    states [B, D] and from those of the nouns [N, W], scene by scene; `rows`: the targets of the scenes, of their nouns.
    """
    noun_rows = [row for _, its_nouns in rows for row in its_nouns]
    losses, right = [], []
    for head, states, labels in ((heads.scene, pooled, [whole for whole, _ in rows]), (heads.noun, nouns, noun_rows)):
        for key, layer in head.items():
            logits, label = layer(states), torch.tensor([row[key] for row in labels], device=states.device)
            losses.append(F.cross_entropy(logits, label))
            right.append((logits.argmax(1) == label).float().mean())
    return torch.stack(losses).mean(), torch.stack(right).mean().item()


class Run:
    """A resumable training run: named modules and optimizers in one checkpoint, replaced atomically every ten minutes,
    at the end and when the process is asked to end (SIGTERM, Ctrl-C); log lines in a JSONL file. `step` counts steps,
    `samples` what they saw."""

    def __init__(self, name: str, parts: dict[str, torch.nn.Module | torch.optim.Optimizer], every: int = 50):
        self.name, self.parts, self.every = name, parts, every
        self.folder = RUNS / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.step = self.samples = 0
        self.saved = self.since = time.time()
        self.losses: list[dict[str, float]] = []
        self.ended = False
        path = self.folder / "last.pt"
        if path.exists():
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.step, self.samples = state["step"], state.get("samples", 0)
            for key, part in parts.items():
                # runs that are older than this spelling are gone on with
                part.load_state_dict(state[key] if key in state else state["optimiser"])
            print(f"{name}: resumed at step {self.step}, {self.samples} samples", flush=True)

    def save(self) -> None:
        state = {"step": self.step, "samples": self.samples} | {
            key: part.state_dict() for key, part in self.parts.items()
        }
        torch.save(state, self.folder / "write.tmp")
        os.replace(self.folder / "write.tmp", self.folder / "last.pt")
        self.saved = time.time()

    def steps(self, samples: int) -> Iterator[int]:
        """The steps that are still to do until `samples` are seen; saves at the end or when the process shall end."""

        def end(*_) -> None:
            self.ended = True

        before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
        self.wanted, self.began, self.first = samples, time.time(), self.samples
        try:
            while self.samples < samples and not self.ended:
                yield self.step
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        self.save()
        if self.ended:
            raise SystemExit(f"{self.name}: saved at {self.samples} samples; the same command goes on.")

    def done(self, batch: int, **losses: float) -> None:
        """Counts one finished step of `batch` samples; every `every` steps logs the mean losses and the hours left,
        saves when it is time."""
        self.step += 1
        self.samples += batch
        self.losses.append(losses)
        if self.step % self.every == 0:
            mean = {k: sum(row[k] for row in self.losses) / len(self.losses) for k in losses}
            now = time.time()
            per_second = batch * len(self.losses) / (now - self.since)
            row = {"step": self.step, "samples": self.samples, "per_second": round(per_second, 1)}
            row |= {k: round(v, 5) for k, v in mean.items()}
            self.log(row, f"{(self.wanted - self.samples) / per_second / 3600:.1f} h left")
            self.losses, self.since = [], now
        if time.time() - self.saved > SAVE_SECONDS:
            self.save()

    def log(self, row: dict, note: str = "") -> None:
        """Adds a line to the run's log and prints it."""
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        print(self.name, row, note, flush=True)


def kept(name: str, folder: Path | None = None) -> tuple[dict[str, torch.Tensor], int] | None:
    """(weights in float32, samples seen) of NAME.safetensors in `folder` (`checkpoint/`, which travels with the
    repository); or None."""
    path = (folder or CHECKPOINT) / f"{name}.safetensors"
    if not path.exists():
        return None
    with safetensors.safe_open(path, "pt") as file:
        return {key: file.get_tensor(key).float() for key in file.keys()}, int(file.metadata()["samples"])


def trained(name: str, part: str = "model") -> dict[str, torch.Tensor]:
    """The weights of a finished or unfinished run; without a run, those in `checkpoint/`.

    Raises FileNotFoundError with what to train first.
    """
    path = RUNS / name / "last.pt"
    if path.exists():
        return torch.load(path, map_location="cpu", weights_only=True)[part]
    weights, _ = kept(name) or ({}, 0)
    named = {key.removeprefix(f"{part}:"): value for key, value in weights.items() if key.startswith(f"{part}:")}
    if not named and (not weights or part not in ("model", "average")):
        raise FileNotFoundError(f"No run {name!r} in {RUNS}; train it first (README.md lists the order).")
    return named or weights


def seen(name: str) -> int:
    """Samples that a run has seen so far, or the weights in `checkpoint/` where no run lies."""
    path = RUNS / name / "last.pt"
    if path.exists():
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("samples", 0))
    weights = kept(name)
    return weights[1] if weights else 0


def write_weights(path: Path, sd: dict[str, torch.Tensor], samples: int, **metadata: str) -> None:
    """Weights as fp16 safetensors, with how many samples they saw and whatever else belongs to them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = {key: value.detach().half().cpu().contiguous() for key, value in sd.items()}
    safetensors.torch.save_file(half, path, {"samples": str(samples), **metadata})
    path.chmod(0o644)
