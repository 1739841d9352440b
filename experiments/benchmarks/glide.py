"""What a step of GLIDE costs in ComfyUI beside the bare network: `python dev.py bench glide [--rounds N]`.

The base network at its released size (385 million weights, random ones) on one 64x64 picture with CFG, so two rows.
Bare: the library's network, called once. Host: one step of GLIDE Sampler under a CFGGuider, timed inside the sampling,
with everything between it and the network. Both run in each round of one process, every other round in the other order;
ratios are medians over the rounds. On a CPU the ratio that counts is that of processor time, which other programs
change little. Peak memory is what the device held above the weights: CUDA's own count, or, on a CPU, how far the
resident set of this process rose. A round takes about 15 seconds of one core.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import torch

from guidance_lab.glide.config import Config

BASE = Config("base", 192, (1, 2, 3, 4), 3, (False, True, True, True), 128, 512, 16)
SIDE, CFG, STEPS = 64, 3.0, "100"


def weights(config: Config) -> dict[str, torch.Tensor]:
    """Random weights of the size of the released ones; norms stay near the identity."""
    from guidance_lab.glide.text import TextEncoder
    from guidance_lab.glide.unet import UNet

    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        parts = UNet(config), TextEncoder(config)
    shapes = {key: value.shape for part in parts for key, value in part.state_dict().items()}

    def made(shape: torch.Size) -> torch.Tensor:
        if len(shape) < 2:
            return 1 + 0.1 * torch.randn(shape, generator=generator)
        return torch.randn(shape, generator=generator) / shape[1:].numel() ** 0.5

    return {key: made(shape) for key, shape in shapes.items()}


class Peak:
    """Bytes by which the memory in use rose above its level at `start`."""

    def __init__(self, device: torch.device):
        self.cuda = device if device.type == "cuda" else None

    def start(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.cuda)
            self.before = torch.cuda.memory_allocated(self.cuda)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
            self.before = self._resident("VmRSS")

    def rise(self) -> int:
        peak = torch.cuda.max_memory_allocated(self.cuda) if self.cuda else self._resident("VmHWM")
        return peak - self.before

    @staticmethod
    def _resident(name: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024


def now(device: torch.device) -> tuple[float, float]:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter(), time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py bench glide", description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    rounds = parser.parse_args().rounds

    import comfy.model_management
    import comfy.samplers

    from guidance_lab import glide
    from guidance_lab.glide.checkpoint import text_tensors
    from guidance_lab.nodes.glide.network import fingerprint, make_unet
    from guidance_lab.nodes.glide.sampling import ANCESTRAL, GlideSampler, sample_glide
    from guidance_lab.nodes.glide.scheduler import noise_levels
    from guidance_lab.nodes.glide.text import make_clip

    device = comfy.model_management.get_torch_device()
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    tensors, peak = weights(BASE), Peak(device)
    bare = glide.load(tensors, dtype, device)
    tokens, mask = (part.to(device) for part in glide.tokenize(["an oil painting of a corgi", ""]))
    text = bare.text(tokens, mask)
    noise = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    x, t = noise.to(device).repeat(2, 1, 1, 1), torch.tensor([500, 500], device=device)
    with torch.inference_mode():
        model = make_unet(BASE, tensors, None, dtype)
        clip = make_clip(BASE, text_tensors(tensors), fingerprint(BASE, text_tensors(tensors)), dtype)
        positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(words)) for words in ("a corgi", ""))
    del tensors
    rows = {"bare": [], "host": []}

    def measured(name: str, run):
        peak.start()
        began = now(device)
        out = run()
        ended = now(device)
        rows[name].append((ended[0] - began[0], ended[1] - began[1], peak.rise()))
        return out

    def one_step(*given, **options):
        return measured("host", lambda: sample_glide(*given, **options))

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(CFG)
    sampler = GlideSampler(one_step, {"method": ANCESTRAL})
    sigmas = noise_levels(model, STEPS, 1.0)[49:51]
    for index in range(rounds + 1):  # the first round warms up
        print(f"round {index} of {rounds}", file=sys.stderr)
        both = [
            lambda: measured("bare", lambda: bare.denoise(x, t, *text)),
            lambda: guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0),
        ]
        with torch.inference_mode():
            for run in both if index % 2 else reversed(both):
                run()
    print(f"{device}, {dtype}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads, {rounds} rounds, medians")
    for name, values in rows.items():
        wall, processor, memory = (statistics.median(column) for column in zip(*values[1:]))
        print(f"{name}: {wall:.2f} s wall, {processor:.2f} s processor, {memory / 2**20:.0f} MiB above the weights")
    for column, what in enumerate(("wall", "processor", "memory")):
        ratios = [host[column] / plain[column] for host, plain in zip(rows["host"][1:], rows["bare"][1:])]
        print(f"host / bare, {what}: {statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
