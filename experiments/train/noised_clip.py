"""Trains a noise-aware CLIP for Shapes in GLIDE's architecture (2112.10741). Run: python dev.py train noised_clip

Both towers from nothing, as GLIDE did: the picture is noised to a random timestep of GLIDE's cosine schedule and the
image tower is told which. Same captions, twins and loss as the clean Shapes CLIP.
"""

import json
import math

import torch
import torch.nn.functional as F

from guidance_lab.experiments.muon import optimizers, set_rate
from guidance_lab.experiments.train.clip import MUON_RATE, Pictures, batch, contrastive_loss, right_answers
from guidance_lab.experiments.training import RUNS, Run, autocast, descend, learning_rate, options, prepare
from guidance_lab.guidance.glide import cosine_alpha_bars
from guidance_lab.guidance.noised_clip import Encoder, ImageInput, NoisedCLIP, TextInput
from guidance_lab.shapes.models import WIDTH
from guidance_lab.shapes.words import MAX_TOKENS, tokens, vocabulary

IMAGE = {"width": 128, "depth": 4, "patch": 16}
TEXT = {"width": 128, "depth": 3}
ENDS = tuple(f"{tower}_encoder.blocks.{end}" for tower in ("image", "text") for end in ("input", "output"))


def untrained() -> NoisedCLIP:
    """Random towers for 128×128 pictures and the Shapes vocabulary."""
    image = ImageInput(IMAGE["width"], IMAGE["patch"], (128 // IMAGE["patch"]) ** 2 + 1, 1000)
    text = TextInput(TEXT["width"], len(vocabulary()), MAX_TOKENS)
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


def noised(x: torch.Tensor, bar: float) -> torch.Tensor:
    """x [B, 3, H, W] in -1..1 at one noise level, the same noise every time."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device)
    return math.sqrt(bar) * x + math.sqrt(1 - bar) * noise


def main() -> None:
    args = options(__doc__, samples=800_000, batch=192).parse_args()
    device = prepare(args)
    model = untrained().to(device)
    temperature = torch.nn.ParameterDict({"logit_scale": torch.nn.Parameter(torch.tensor(math.log(1 / 0.07)))})
    temperature.to(device)
    learned = torch.nn.ModuleList([model, temperature])
    both = optimizers(model, ENDS, 1e-3, tuple(temperature.parameters()))
    run = Run("noised_clip", {"model": model, "temperature": temperature} | both)
    shown = Pictures(device)
    bars = torch.tensor(cosine_alpha_bars())

    def text(captions: list[str]) -> torch.Tensor:
        ids = torch.from_numpy(tokens(captions))
        lengths = (ids != vocabulary()["<end>"]).sum(1) + 1  # words, the start and one end
        return model.text(ids.to(device), lengths.to(device))

    def right(timestep: int) -> dict[str, float]:
        def image(x: torch.Tensor) -> torch.Tensor:
            return model.image(noised(x.to(device) * 2 - 1, bars[timestep].item()), timestep)

        return right_answers(image, text)

    for step in run.steps(args.samples):
        set_rate(both, learning_rate(run.samples, args.samples, 1e-3, warmup=100 * args.batch), MUON_RATE)
        generator = torch.Generator().manual_seed(step)
        indices, captions, wrong = batch(step, args.batch)
        x = shown(indices, generator) * 2 - 1
        timestep = torch.randint(0, 1000, (len(x),), generator=generator)
        bar = bars[timestep].float().view(-1, 1, 1, 1)
        noisy = bar.sqrt() * x + (1 - bar).sqrt() * torch.randn(x.shape, generator=generator)
        with autocast(device, args.bf16):
            images, texts = model.image(noisy.to(device), timestep.to(device)), text(captions + wrong)
        loss = contrastive_loss(
            F.normalize(images.float(), dim=-1),
            F.normalize(texts.float(), dim=-1),
            captions,
            temperature["logit_scale"],
        )
        descend(loss, learned, *both.values())
        run.done(args.batch, loss=loss.item(), scale=temperature["logit_scale"].exp().item())
        if run.step % 500 == 0:
            for t in (0, 300, 600):
                run.log({"step": run.step, "t": t} | right(t))
    result = {"right": {t: right(t) for t in (0, 100, 300, 600)}, "samples": run.samples}
    (RUNS / "noised_clip" / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
