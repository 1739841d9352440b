"""Writes `checkpoint/`: what is trained so far as fp16 safetensors, so that the training goes on elsewhere. See
README.md.

The main model's EMA weights stand for its raw ones too: a training that goes on from them has a fresh optimizer.
`log.jsonl` is the main run's curve.
"""

import json
import shutil

import torch

from .train_diffusion import MAIN, SMALL
from .training import CHECKPOINT, RUNS, seen, trained, write_weights

# Run: the parts of it that travel; of a run with one part the names are as in the network, else "part:name".
RUNS_KEPT = {
    "vae": ("model",), "decoder": ("model",), "text": ("model",), "main": ("average",), "small": ("average",),
    "clip": ("model", "projection"), "noised_clip": ("model",), "captioner": ("model",), "galip": ("average",),
}  # fmt: skip


def main() -> None:
    for name, parts in RUNS_KEPT.items():
        if not (RUNS / name / "last.pt").exists():
            continue
        if name == "vae" and (RUNS / "decoder" / "last.pt").exists():
            continue  # its encoder is in the decoder's file
        sd = {}
        for part in parts:
            prefix = f"{part}:" if len(parts) > 1 else ""
            sd |= {prefix + key.removeprefix("module."): value for key, value in trained(name, part).items()}
        size = {"main": MAIN, "small": SMALL}.get(name)
        write_weights(CHECKPOINT / f"{name}.safetensors", sd, seen(name), unet=json.dumps(size) if size else "")
        weights = sum(map(torch.numel, sd.values())) / 1e6
        print(f"{name}: {seen(name)} samples, {weights:.2f} M weights")
    log = RUNS / "main" / "log.jsonl"
    if log.exists():
        shutil.copy(log, CHECKPOINT / "log.jsonl")


if __name__ == "__main__":
    main()
