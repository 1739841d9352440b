"""Writes what is trained so far: `checkpoint/`, fp16 EMA weights that travel with the repository so that the training
goes on elsewhere, and with `--ship` the 8-bit files of `shapes/weights` that the GLIDE Loader lists.
"""

import argparse
import shutil

import torch

from guidance_lab.experiments.train.export import in_8_bits, write
from guidance_lab.experiments.training import RUNS, write_weights
from guidance_lab.shapes import shipped

from .network import CHECKPOINT, CONFIGS, VOCABULARY
from .train import trained


def released(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The released names. Of the embedding only the rows that Shapes uses are there; `token_embedding.tokens` [rows]
    says which of GPT-2's they are, and `shapes.shipped` puts them back in their places.
    """
    named = {key.removeprefix("unet.").removeprefix("text_encoder."): value for key, value in weights.items()}
    return named | {"token_embedding.tokens": torch.tensor(VOCABULARY, dtype=torch.int32)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CONFIGS, default=list(CONFIGS), help="these networks")
    parser.add_argument("--ship", action="store_true", help="write shapes/weights too")
    args = parser.parse_args()
    for name in args.only:
        found = trained(name)
        if found is None:
            continue
        weights, samples = found
        write_weights(CHECKPOINT / f"{name}.safetensors", weights, samples)
        log = RUNS / f"glide-{name}" / "log.jsonl"
        if log.exists():
            shutil.copy(log, CHECKPOINT / f"{name}.jsonl")
        print(f"{name}: {samples} samples, {sum(map(torch.numel, weights.values())) / 1e6:.2f} M weights")
        if args.ship and f"glide_{name}" in shipped.GLIDE.values():
            write(f"glide_{name}", in_8_bits(released(weights)), {"samples": str(samples)})


if __name__ == "__main__":
    main()
