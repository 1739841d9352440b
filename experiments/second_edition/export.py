"""Writes `checkpoint/`: what is trained so far as fp16 safetensors, so that the training goes on elsewhere. See
README.md.

The main model's EMA weights stand for its raw ones too: a training that goes on from them has a fresh optimizer.
`log.jsonl` is the main run's curve.
"""

import json
import shutil

import torch

from .train_diffusion import MAIN
from .training import CHECKPOINT, RUNS, seen, trained, write_weights

NAMES = ("vae", "decoder", "text", "main")


def main() -> None:
    for name in NAMES:
        if not (RUNS / name / "last.pt").exists():
            continue
        sd = trained(name, "average" if name == "main" else "model")
        sd = {key.removeprefix("module."): value for key, value in sd.items()}
        if name == "vae" and (RUNS / "decoder" / "last.pt").exists():
            continue  # its encoder is in the decoder's file
        write_weights(
            CHECKPOINT / f"{name}.safetensors", sd, seen(name), unet=json.dumps(MAIN) if name == "main" else ""
        )
        weights = sum(map(torch.numel, sd.values())) / 1e6
        print(f"{name}: {seen(name)} samples, {weights:.2f} M weights")
    log = RUNS / "main" / "log.jsonl"
    if log.exists():
        shutil.copy(log, CHECKPOINT / "log.jsonl")


if __name__ == "__main__":
    main()
