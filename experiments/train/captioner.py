"""Trains the Shapes captioner: the exact caption of each picture, by next-word cross-entropy. Run: python dev.py train
captioner

A BLIP of 1.1 M parameters (transformers' own classes): a ViT of 3 layers with patches of 16 pixels, and a text decoder
of 2 layers that looks at its patches. Two thirds of the pictures went through the VAE and a third is blurred and noisy,
because it will be asked about the middle of sampling.
"""

import json

import numpy as np
import torch

from guidance_lab.experiments.data import CHUNK, SCENES, scene
from guidance_lab.experiments.muon import optimizers, set_rate
from guidance_lab.experiments.train.clip import CHUNKS, MUON_RATE, Pictures, normalized
from guidance_lab.experiments.training import RUNS, Run, autocast, descend, initialize, learning_rate, options, prepare
from guidance_lab.shapes.captioner import captioner
from guidance_lab.shapes.render import render
from guidance_lab.shapes.words import MAX_TOKENS, tokens, vocabulary
from guidance_lab.shapes.world import Scene, parse

ENDS = ("vision_model.embeddings.", "text_decoder.bert.embeddings.", "text_decoder.cls.")


def untrained() -> torch.nn.Module:
    """The captioner to train; transformers' own weights of BLIP's image tower would be nothing at all."""
    with torch.random.fork_rng(devices=[]):
        network = captioner()
    initialize(network, seed=8)
    for part in network.modules():  # BLIP keeps one in a module called `embeddings`
        if isinstance(part, torch.nn.LayerNorm):
            part.reset_parameters()
    return network


def labels(captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids `<start> … <end>` [B, MAX_TOKENS] and the same as labels, with what is only padding masked (-100)."""
    ids = torch.from_numpy(tokens(captions))
    ends = ids == vocabulary()["<end>"]
    return ids, ids.masked_fill(ends & (ends.cumsum(1) > 1), -100)


def compared(asked: Scene, caption: str) -> dict[str, float]:
    """What a caption says right about a scene: each of `object`, `colour`, `texture` as a share of its things, the rest
    0 or 1."""
    try:
        said = parse(caption)
    except ValueError:
        return dict.fromkeys(("object", "colour", "texture", "background", "relation", "count", "all"), 0.0)
    pairs = list(zip(asked.things, said.things, strict=False))
    right = {
        key: sum(getattr(a, k) == getattr(b, k) for a, b in pairs) / len(asked.things)
        for key, k in (("object", "name"), ("colour", "colour"), ("texture", "texture"))
    }
    right["background"] = float(said.background == asked.background)
    right["count"] = float(len(said.things) == len(asked.things))
    right["relation"] = float(said.relation == asked.relation and right["count"])
    right["all"] = float(caption == asked.caption)
    return right


@torch.no_grad()
def accuracy(network, images: torch.Tensor, scenes: list[Scene]) -> dict[str, float]:
    """Means of `compared` over greedy captions of images [N, 3, 128, 128] in 0..1."""
    words, rows, device = list(vocabulary()), [], next(network.parameters()).device
    for start in range(0, len(scenes), 64):
        x = normalized(images[start : start + 64].to(device))
        ids = network.eval().generate(pixel_values=x, max_new_tokens=MAX_TOKENS - 2, num_beams=1, do_sample=False)
        for wanted, row in zip(scenes[start : start + 64], ids.tolist(), strict=True):
            said = " ".join(words[i] for i in row if not words[i].startswith("<"))
            rows.append(compared(wanted, said))
    return {key: round(sum(row[key] for row in rows) / len(rows), 3) for key in rows[0]}


def unseen(count: int) -> tuple[torch.Tensor, list[Scene]]:
    """Renders [count, 3, 128, 128] in 0..1 that training never saw, and their scenes."""
    scenes = [scene(SCENES + i) for i in range(count)]
    return torch.from_numpy(np.stack([render(s) for s in scenes])).permute(0, 3, 1, 2).float() / 255, scenes


def main() -> None:
    args = options(__doc__, samples=400_000, batch=96).parse_args()
    device = prepare(args)
    network = untrained().to(device)
    both = optimizers(network, ENDS, 1e-3)
    run = Run("captioner", {"model": network} | both)
    shown = Pictures(device)
    for step in run.steps(args.samples):
        rng = np.random.default_rng([8, step])
        set_rate(both, learning_rate(run.samples, args.samples, 1e-3, warmup=100 * args.batch), MUON_RATE)
        picked = rng.integers(0, CHUNKS * CHUNK, args.batch)
        x = shown(picked, torch.Generator().manual_seed(step)).to(device)
        ids, wanted = labels([scene(int(i)).caption for i in picked])
        network.train()
        with autocast(device, args.bf16):
            loss = network(pixel_values=normalized(x), input_ids=ids.to(device), labels=wanted.to(device)).loss
        descend(loss, network, *both.values())
        run.done(args.batch, loss=loss.item())
        if run.step % 500 == 0:
            run.log({"step": run.step} | accuracy(network, *unseen(256)))
    result = {"captioner": accuracy(network, *unseen(512)), "samples": run.samples}
    (RUNS / "captioner" / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
