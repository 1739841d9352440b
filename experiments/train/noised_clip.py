"""Trains a noise-aware CLIP for Shapes in GLIDE's architecture (2112.10741). Run: python dev.py train noised_clip

Both towers from nothing, as GLIDE did: the picture is noised to a random timestep of GLIDE's cosine schedule and the
image tower is told which. Same captions, twins and loss as the clean Shapes CLIP, so that evidence compares the noise
and nothing else.
"""

import argparse
import math

import torch
import torch.nn.functional as F

from guidance_lab.experiments.train.clip import batch, contrastive_loss, pictures, right_answers, through_vae
from guidance_lab.experiments.training import Run, learning_rate
from guidance_lab.guidance.glide import cosine_alpha_bars
from guidance_lab.guidance.noised_clip import Encoder, ImageInput, NoisedCLIP, TextInput
from guidance_lab.shapes.clip import lengths, tokens
from guidance_lab.shapes.models import MAX_TOKENS, WIDTH, word_tokenizer

IMAGE = {"width": 128, "depth": 4, "patch": 8}
TEXT = {"width": 128, "depth": 3}


def untrained() -> NoisedCLIP:
    """Random towers for 64×64 pictures and the Shapes vocabulary."""
    image = ImageInput(IMAGE["width"], IMAGE["patch"], (64 // IMAGE["patch"]) ** 2 + 1, 1000)
    text = TextInput(TEXT["width"], len(word_tokenizer().get_vocab()), MAX_TOKENS)
    model = NoisedCLIP(
        Encoder(image, IMAGE["width"], IMAGE["depth"], WIDTH, causal=False),
        Encoder(text, TEXT["width"], TEXT["depth"], WIDTH, causal=True),
    )
    return initialize_towers(model)


def initialize_towers(model: NoisedCLIP) -> NoisedCLIP:
    """Fills both towers in place: N(0, 0.02) tables, fan-in uniform matrices, unit gains, zero biases."""
    generator = torch.Generator().manual_seed(8)
    for name, p in model.named_parameters():
        with torch.no_grad():
            if name.rpartition(".")[2].startswith("w_"):
                p.normal_(0, 0.02, generator=generator)
            elif p.ndim > 1:
                bound = 1 / math.sqrt(p[0].numel())
                p.uniform_(-bound, bound, generator=generator)
            else:
                p.fill_(1.0 if name.endswith("weight") else 0.0)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=192)
    args = parser.parse_args()
    model = untrained()
    scale = torch.nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    parameters = [*model.parameters(), scale]
    optimizer = torch.optim.AdamW(parameters, 1e-3, weight_decay=0.02)
    parts = {"model": model, "temperature": torch.nn.ParameterDict({"logit_scale": scale}), "optimizer": optimizer}
    run = Run("noised_clip", parts, every=100)
    decoded = through_vae()
    bars = torch.tensor(cosine_alpha_bars())

    def text(captions):
        ids = tokens(captions)
        return model.text(ids, lengths(ids))

    while run.step < args.steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(run.step, args.steps, 1e-3)
        generator = torch.Generator().manual_seed(run.step)
        indices, captions, wrong = batch(run.step, args.batch)
        x = pictures(indices, decoded, generator) * 2 - 1
        timestep = torch.randint(0, 1000, (len(x),), generator=generator)
        bar = bars[timestep].float().view(-1, 1, 1, 1)
        noisy = bar.sqrt() * x + (1 - bar).sqrt() * torch.randn(x.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            images, texts = model.image(noisy, timestep), text(captions + wrong)
        loss = contrastive_loss(
            F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1), captions, scale
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        run.done(args.batch, loss=loss.item(), scale=scale.exp().item())
        if run.step % 500 == 0:
            for t in (0, 300, 600):
                print(
                    t, right_answers(lambda x, t=t: model.image(noised(x * 2 - 1, bars[t].item()), t), text), flush=True
                )
    run.save()


def noised(x: torch.Tensor, bar: float) -> torch.Tensor:
    """x [B, 3, H, W] in -1..1 at one noise level, the same noise every time."""
    return math.sqrt(bar) * x + math.sqrt(1 - bar) * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


if __name__ == "__main__":
    main()
