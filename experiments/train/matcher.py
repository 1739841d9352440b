"""Trains an image-text match for Shapes: BLIP's head that reads picture and caption together. Run: python dev.py train
matcher

It begins with the weights of the captioner that knows running estimates (`captioner_estimates`), and sees the same
pictures. Half of the captions are right; of the others four in five have one thing changed, which a contrastive score
hardly notices, and one belongs to another picture. It does not ship: `evidence matchers` asks whether it guides better.
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F

from guidance_lab.experiments.data import SCENES, scene
from guidance_lab.experiments.train.captioner import labels
from guidance_lab.experiments.train.captioner_estimates import CHECKED, RATE, pictures, rendered
from guidance_lab.experiments.train.clip import normalized, twin
from guidance_lab.experiments.train.estimates import estimated
from guidance_lab.experiments.training import RUNS, Run, descend, learning_rate
from guidance_lab.shapes.captioner import captioner
from guidance_lab.shapes.world import parse

CHANGED = 0.8  # of the wrong captions


def matcher():
    """The `BlipForImageTextRetrieval` of the captioner's size, weights random."""
    from transformers import BlipForImageTextRetrieval  # slow to import

    return BlipForImageTextRetrieval(captioner().config)


def from_captioner(sd: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A captioner's weights under the matcher's names: both towers, without the layers that write words."""
    writes = "text_decoder.cls."
    return {k.replace("text_decoder.bert.", "text_encoder."): v for k, v in sd.items() if not k.startswith(writes)}


def words(captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """(token ids, attention mask), both [B, T]."""
    ids, wanted = labels(captions)
    return ids, (wanted != -100).long()


def logits(network, x: torch.Tensor, captions: list[str]) -> torch.Tensor:
    """(no match, match) of pictures [B, 3, 128, 128] in 0..1 and their captions: [B, 2]."""
    ids, mask = words(captions)
    seen = network.vision_model(pixel_values=normalized(x)).last_hidden_state
    states = network.text_encoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state
    return network.itm_head(states[:, 0])


def misled(captions: list[str], right: np.ndarray, rng: np.random.Generator) -> list[str]:
    """The captions, with a wrong one wherever `right` is 0."""
    return [
        caption
        if fits
        else twin(parse(caption), rng).caption
        if rng.random() < CHANGED
        else scene(int(rng.integers(SCENES))).caption
        for caption, fits in zip(captions, right, strict=True)
    ]


@torch.no_grad()
def check(network, drawn: dict[str, torch.Tensor]) -> dict[str, float]:
    """How often the own caption matches better than one with one thing changed, of the kept scenes of each kind."""
    count, rng = len(drawn["estimates"]), np.random.default_rng(5)
    scenes = [scene(i) for i in range(count - CHECKED, count)]
    own, other = [s.caption for s in scenes], [twin(s, rng).caption for s in scenes]
    kinds = {name: drawn[name][-CHECKED:].permute(0, 3, 1, 2).float() / 255 for name in drawn}
    kinds["renders"] = rendered(np.arange(count - CHECKED, count))
    network.eval()
    margins = {
        kind: [logits(network, x, captions).diff()[:, 0] for captions in (own, other)] for kind, x in kinds.items()
    }
    return {kind: (a > b).float().mean().item() for kind, (a, b) in margins.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=144_000)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--scenes", type=int, default=14_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    drawn, network = estimated(args.scenes), matcher()
    begun = torch.load(RUNS / "captioner_estimates" / "last.pt", weights_only=True)["model"]
    network.load_state_dict(from_captioner(begun), strict=False)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-2, fused=True)
    run = Run("matcher", {"model": network, "optimizer": optimizer}, every=100)
    for step in run.steps(args.samples):
        rng = np.random.default_rng([11, step])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run.samples, args.samples, RATE, warmup=100 * args.batch)
        x, captions = pictures(drawn, args.batch, rng)
        right = rng.integers(0, 2, args.batch)
        network.train()
        with torch.autocast("cpu", torch.bfloat16):
            match = logits(network, x, misled(captions, right, rng))
        loss = F.cross_entropy(match.float(), torch.from_numpy(right))
        descend(loss, network, optimizer)
        run.done(args.batch, loss=loss.item())
        if run.step % 500 == 0:
            print(run.step, {k: round(v, 3) for k, v in check(network, drawn).items()}, flush=True)


if __name__ == "__main__":
    main()
