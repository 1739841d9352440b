"""Trains the Shapes captioner: the exact caption of each picture, by next-word cross-entropy. Run: python dev.py train
captioner

Two thirds of the pictures went through the VAE and a third is blurred and noisy, because it will be asked about the
middle of sampling. Every 500 steps it captions scenes that it never saw, greedily, and the log says how much of that is
right.
"""

import argparse

import numpy as np
import torch

from guidance_lab.experiments.train.clip import normalized, pictures, through_vae
from guidance_lab.experiments.train.diffusion import SCENES, scene
from guidance_lab.experiments.training import Run, descend, initialize, learning_rate
from guidance_lab.shapes.captioner import captioner, captioner_processor
from guidance_lab.shapes.models import word_tokenizer
from guidance_lab.shapes.render import render
from guidance_lab.shapes.world import Scene, parse

CHECKED = 256  # scenes at the end of the training set that are kept to measure on


def labels(captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids `<start> … <end>` [B, T] and the same as labels, with what is only padding masked (-100)."""
    rows = [word_tokenizer()(caption)["input_ids"] for caption in captions]
    longest = max(map(len, rows))
    end = word_tokenizer().eos_token_id
    ids = torch.tensor([row + [end] * (longest - len(row)) for row in rows])
    said = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, ids.masked_fill(said == 0, -100)


def compared(asked: Scene, caption: str) -> dict[str, float]:
    """What a caption says right about a scene: each of `object`, `colour`, `texture` as a share of its things, the rest
    0 or 1.
    """
    try:
        said = parse(caption)
    except ValueError:
        return dict.fromkeys(("object", "colour", "texture", "background", "relation", "all"), 0.0)
    pairs = list(zip(asked.things, said.things, strict=False))
    right = {key: sum(getattr(a, k) == getattr(b, k) for a, b in pairs) / len(asked.things) for key, k in
             (("object", "name"), ("colour", "colour"), ("texture", "texture"))}  # fmt: skip
    right["background"] = float(said.background == asked.background)
    right["relation"] = float(said.relation == asked.relation and len(said.things) == len(asked.things))
    right["all"] = float(caption == asked.caption)
    return right


@torch.no_grad()
def accuracy(network, images: torch.Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Means of `compared` over greedy captions of images [N, 3, 64, 64] in 0..1."""
    ids = network.generate(pixel_values=normalized(images), max_new_tokens=22, num_beams=1, do_sample=False)
    captions = captioner_processor().batch_decode(ids, skip_special_tokens=True)
    rows = [compared(asked, caption) for asked, caption in zip(scenes, captions, strict=True)]
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def check(network, decoded: torch.Tensor) -> dict[str, dict[str, float]]:
    """`accuracy` on the scenes that are kept: as renders, and through the VAE (`decoded`: all scenes so, uint8)."""
    scenes = [scene(i) for i in range(SCENES - CHECKED, SCENES)]
    renders = torch.from_numpy(np.stack([render(s) for s in scenes])).permute(0, 3, 1, 2)
    kinds = {"render": renders, "through VAE": decoded[-CHECKED:]}
    return {kind: accuracy(network.eval(), images.float() / 255, scenes) for kind, images in kinds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=96)
    args = parser.parse_args()
    network = captioner()
    initialize(network, seed=8)
    for (
        part
    ) in network.modules():  # BLIP keeps one in a module called `embeddings`, which `initialize` takes for an embedding
        if isinstance(part, torch.nn.LayerNorm):
            part.reset_parameters()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-2, fused=True)
    run = Run("captioner", {"model": network, "optimizer": optimizer})
    decoded = through_vae()
    while run.step < args.steps:
        rng = np.random.default_rng([8, run.step])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run.step, args.steps, 1e-3)
        picked = rng.integers(0, SCENES - CHECKED, args.batch)
        x = pictures(picked, decoded, torch.Generator().manual_seed(run.step))
        ids, wanted = labels([scene(int(i)).caption for i in picked])
        network.train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = network(pixel_values=normalized(x), input_ids=ids, labels=wanted).loss
        descend(loss, network, optimizer)
        run.done(args.batch, loss=loss.item())
        if run.step % 500 == 0:
            for kind, right in check(network, decoded).items():
                print(run.step, kind, {k: round(v, 3) for k, v in right.items()}, flush=True)
    run.save()


if __name__ == "__main__":
    main()
