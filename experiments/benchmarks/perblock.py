"""What per-layer prompts cost: sampling beside plain CFG at the same batch, and encoding 16 prompts in one run beside
one by one.

The UNet has SD1.5's 16 layers and random weights; the positive gives every layer a context of its own. All ways run in
the same process on the same model, one sampling of each after the other, many rounds; a ratio is the median over the
rounds, because the machine's speed changes more between rounds than the ways differ. On a busy CPU processor time says
more than wall time, so both are given.
"""

import statistics
import sys
import time
from pathlib import Path

import torch

from guidance_lab.experiments.benchmarks.autoguidance import CFG, LAYOUTS, random_model, sample_once

ROOT = Path(__file__).resolve().parents[2]


def guiders(model, width: int) -> dict:
    """Name → guider: plain CFG, CFG whose positive gives each layer its own prompt, and both sides so."""
    from comfy_extras.nodes_custom_sampler import CFGGuider

    from guidance_lab.nodes.layers import cross_attention as layers

    table = layers.layer_table(model)
    generator = torch.Generator().manual_seed(3)

    def context():
        return torch.randn(1, 77, width, generator=generator)

    def per_layer(base):
        texts = tuple({"cross_attn": context()} for _ in table.layers)
        return [
            layers.carry(
                [base, {}], layers.LayerPrompts(table, base, texts, (layers.Stretch(1.0, tuple(range(len(table)))),))
            )
        ]

    positive, negative = context(), context()
    reading = layers.read_layer_prompts(model)
    return {
        "plain": CFGGuider.execute(model, [[positive, {}]], [[negative, {}]], CFG)[0],
        "per block": CFGGuider.execute(reading, per_layer(positive), [[negative, {}]], CFG)[0],
        "per block on both sides": CFGGuider.execute(reading, per_layer(positive), per_layer(negative), CFG)[0],
    }


def measure_sampling(layout: str, rounds: int, steps: int) -> tuple[dict[str, float], list[dict]]:
    config, size = LAYOUTS[layout]
    model = random_model(config, 1)
    ways = guiders(model, config["context_dim"])
    rows, times = [], {name: ([], []) for name in ways}
    for index in range(rounds):
        print(f"{layout}: round {index + 1} of {rounds}", file=sys.stderr)
        for name, guider in ways.items():
            timed = sample_once(guider, [model.model], size, steps)
            for kept, found in zip(times[name], (timed.wall, timed.cpu), strict=True):
                kept.append(statistics.median(found[1:]))  # the first step still warms caches
    for name, (wall, cpu) in times.items():
        calls = []
        handle = model.model.diffusion_model.register_forward_pre_hook(
            lambda _, given, calls=calls: calls.append(given[0].shape[0])
        )
        sample_once(ways[name], [model.model], size, 2)
        handle.remove()
        seconds = {"seconds_per_step": statistics.median(wall), "cpu_seconds_per_step": statistics.median(cpu)}
        rows.append(
            {"layout": layout, "way": name, "calls_per_step": len(calls) / 2, "rows_per_call": max(calls), **seconds}
        )
    ratios = {
        f"{layout}: {name} / plain{label}": statistics.median(
            a / b for a, b in zip(times[name][which], times["plain"][which], strict=True)
        )
        for which, label in ((0, ""), (1, ", processor time"))
        for name in ways
        if name != "plain"
    }
    return ratios, rows


def measure_encoding(rounds: int) -> tuple[dict[str, float], list[dict]]:
    """16 prompts through a CLIP-L of random weights: one at a time, in one run, and for comparison a single prompt."""
    import comfy.sd

    sys.path.append(str(ROOT / "tests"))
    import tiny_checkpoint
    from guidance_lab.nodes.layers.encode_texts import encode_texts

    weights = {**tiny_checkpoint.unet_weights(), **tiny_checkpoint.clip_weights()}
    clip = comfy.sd.load_state_dict_guess_config(weights, output_vae=False)[1]
    tokens = [clip.tokenize(f"a photo of thing number {i}, in the style of {i + 20}") for i in range(16)]
    ways = {
        "one prompt": lambda: clip.encode_from_tokens_scheduled(tokens[0]),
        "16 prompts one by one": lambda: [clip.encode_from_tokens_scheduled(text) for text in tokens],
        "16 prompts in one run": lambda: encode_texts(clip, tokens),
    }
    now = (
        time.perf_counter if torch.cuda.is_available() else time.process_time
    )  # the results are read back, so a GPU is waited for
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, run in ways.items():
            began = now()
            with torch.inference_mode():
                run()
            times[name].append(now() - began)
    seconds = {name: statistics.median(values[1:]) for name, values in times.items()}
    ratios = {
        "encoding: 16 prompts in one run / one prompt": seconds["16 prompts in one run"] / seconds["one prompt"],
        "encoding: 16 prompts in one run / one by one": seconds["16 prompts in one run"]
        / seconds["16 prompts one by one"],
    }
    return ratios, [{"way": name, "seconds": value} for name, value in seconds.items()]


def main() -> None:
    from tools.report import arguments, print_report, write_report

    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="SD1.5 at full size also on the CPU (slow)")
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    import comfy.model_management as management

    device = management.get_torch_device()
    layouts = ["sd15", "sdxl"] if device.type == "cuda" else ["sd15"] if options.full else ["sd15-narrow"]
    rounds, steps = (2, 3) if options.quick else (options.rounds, 5)
    ratios, rows = {}, []
    for layout in layouts:
        more_ratios, more_rows = measure_sampling(layout, rounds, steps)
        ratios.update(more_ratios)
        rows += more_rows
        management.unload_all_models()
    more_ratios, more_rows = measure_encoding(rounds)
    ratios.update(more_ratios)
    rows += more_rows
    print_report(ratios, rows)
    write_report(options.json, ratios, rows, device)


if __name__ == "__main__":
    main()
