"""GALIP's speed: our generator beside the official arithmetic and beside a 50-step diffusion sample.

Full-size generator with formula weights. The plain path is the official order of operations, in the official batches;
the fast path is what GALIP Sampler uses. Every way runs in the same process, one after the other in many rounds; a
ratio is the median over the rounds. Wall time is what a user waits for; on a busy CPU the processor time of this
process says more, so both are given.

The diffusion model has SD1.5's layout at full size and random weights. Its sample is the UNet with CFG alone, without
text encoder and VAE, and few of the 50 steps are measured, as they are all alike; both make GALIP's lead smaller, not
larger.
"""

import copy
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "a red vintage car parked in front of a mountain lake at sunset"
STEPS, CFG = 50, 7.5


def build_generator():
    """The full-size generator with formula weights, fp32."""
    from galip_formula import formula_state_dict

    from guidance_lab.galip import Generator, load_generator

    with torch.device("meta"):
        shapes = Generator()
    return load_generator(formula_state_dict(shapes, "netG."))


def inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 100, generator=generator), 0.45 * torch.randn(batch, 512, generator=generator)


def ways(generator, device: torch.device) -> dict:
    """Name → function of the batch that draws it."""
    from guidance_lab.galip import FAST, PLAIN

    generator.to(device)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16} | (
        {"fp16": torch.float16} if device.type == "cuda" else {}
    )
    generators = {
        name: generator if name == "fp32" else copy.deepcopy(generator).to(dtype).eval()
        for name, dtype in dtypes.items()
    }

    def draw(name, fast):
        def run(batch):
            generators[name].fast = fast
            noise, sentence = (tensor.to(device) for tensor in inputs(batch))
            return generators[name](noise, sentence, micro_batch_size=batch if fast is PLAIN else None)

        return run

    return {"plain fp32": draw("fp32", PLAIN)} | {f"fast {name}": draw(name, FAST) for name in generators}


def timed(device: torch.device, run, *given) -> tuple[float, float]:
    """(wall, processor) seconds of `run(*given)`."""

    def now():
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter(), time.process_time()

    began, began_cpu = now()
    with torch.inference_mode():
        run(*given)
    ended, ended_cpu = now()
    return ended - began, ended_cpu - began_cpu


def measure_generator(
    generator, device: torch.device, batches: list[int], rounds: int
) -> tuple[dict[str, float], list[dict]]:
    """Ratios of the plain path to the fast ones, and one row per way and batch."""
    ratios, rows = {}, []
    functions = ways(generator, device)
    for batch in batches:
        times = {name: [] for name in functions}
        for index in range(rounds + 1):
            print(f"generator, batch {batch}: round {index} of {rounds}", file=sys.stderr)
            for name, run in functions.items():
                taken = timed(device, run, batch)
                if index:  # the first round warms caches
                    times[name].append(taken)
        for name, taken in times.items():
            wall, cpu = (statistics.median(column) for column in zip(*taken))
            rows.append(
                {"way": name, "batch": batch, "seconds": wall, "cpu_seconds": cpu, "pictures_per_second": batch / wall}
            )
            for column, label in ((0, ""), (1, ", processor time")):
                if name != "plain fp32":
                    pairs = zip(times["plain fp32"], taken)
                    ratios[f"batch {batch}: plain fp32 / {name}{label}"] = statistics.median(
                        a[column] / b[column] for a, b in pairs
                    )
    return ratios, rows


def measure_nodes(generator, rounds: int, device: torch.device) -> dict:
    """One picture as a user gets it: CLIP Text Encode, then GALIP Sampler, with the models loaded."""
    import nodes as comfy_nodes
    from galip_formula import formula_state_dict

    from guidance_lab.galip import FAST, TextEncoder
    from guidance_lab.nodes.galip import Galip, GALIPSampler
    from guidance_lab.nodes.galip.text_tower import text_tower

    with torch.device("meta"):
        tower = TextEncoder()
    clip = text_tower(formula_state_dict(tower, "clip."))
    generator.fast = FAST
    galip = Galip(generator)

    def encode():
        return comfy_nodes.CLIPTextEncode().encode(clip, PROMPT)[0]

    with torch.inference_mode():
        conditioning = encode()
    text, picture = [], []
    for index in range(rounds + 1):
        taken = timed(device, encode), timed(device, GALIPSampler.execute, galip, conditioning, index)
        if index:
            text.append(taken[0])
            picture.append(taken[1])
    totals = [[a + b for a, b in zip(one, other)] for one, other in zip(text, picture)]
    wall, cpu = (statistics.median(column) for column in zip(*totals))
    encoding = statistics.median(wall for wall, _ in text)
    way = f"nodes {str(galip.dtype).removeprefix('torch.')}, text encoding included"
    return {"way": way, "batch": 1, "seconds": wall, "cpu_seconds": cpu, "encoding_seconds": encoding}


def measure_diffusion(sides: dict[int, int]) -> list[dict]:
    """Seconds of a 50-step sample with CFG. `sides`: side in pixels → how many steps are measured."""
    from comfy_extras.nodes_custom_sampler import CFGGuider

    from guidance_lab.experiments.benchmarks.autoguidance import LAYOUTS, random_model, sample_once

    model = random_model(LAYOUTS["sd15"][0], 1)
    generator = torch.Generator().manual_seed(3)
    positive, negative = ([[torch.randn(1, 77, 768, generator=generator), {}]] for _ in range(2))
    guider = CFGGuider.execute(model, positive, negative, CFG)[0]
    rows = []
    for side, steps in sides.items():
        print(f"diffusion, {side} pixels", file=sys.stderr)
        taken = sample_once(guider, [model.model], side // 8, steps + 1)
        wall, cpu = (STEPS * statistics.median(times[1:]) for times in (taken.wall, taken.cpu))
        way = f"SD1.5 layout, {STEPS} steps, {side} pixels"
        rows.append({"way": way, "batch": 1, "seconds": wall, "cpu_seconds": cpu, "measured_steps": steps})
    return rows


def main() -> None:
    sys.path[len(sys.path) :] = [str(ROOT), str(ROOT / "tests")]
    from tools.report import arguments, print_report, write_report

    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--no-diffusion", action="store_true", help="without the diffusion model, which takes minutes on a CPU"
    )
    options = parser.parse_args()
    import comfy.model_management as management

    device = management.get_torch_device()
    rounds = 1 if options.quick else options.rounds
    batches = [1, 4, 16, 64] if device.type == "cuda" else [1, 4]
    with torch.inference_mode():
        generator = build_generator()
    ratios, rows = measure_generator(generator, device, batches, rounds)
    nodes = measure_nodes(generator, rounds, device)
    rows.append(nodes)
    management.unload_all_models()
    if not (options.quick or options.no_diffusion):
        for row in measure_diffusion({224: 2, 512: 1}):
            rows.append(row)
            ratios[f"{row['way']} / nodes"] = row["seconds"] / nodes["seconds"]
            ratios[f"{row['way']} / nodes, processor time"] = row["cpu_seconds"] / nodes["cpu_seconds"]
    print_report(ratios, rows)
    write_report(options.json, ratios, rows, device)


if __name__ == "__main__":
    main()
