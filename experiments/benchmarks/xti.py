"""Training steps per second: XTI beside plain textual inversion and beside ComfyUI's own LoRA training node, on the
Shapes models.

All ways train on the same latents at the same batch, in float32 and without gradient checkpointing. The time of a step
is the difference between a long and a short run, so that setting up (core's node loads a second copy of the model) does
not count; a ratio is the median over the rounds. On a busy CPU processor time says more than wall time, so both are
given.
"""

import statistics
import sys
import time

import torch

from guidance_lab.shapes import shipped
from guidance_lab.shapes.models import LATENT

BATCH = 4


def ways(model, clip, latents: dict) -> dict:
    """Name → function that trains so many steps."""
    from comfy.weight_adapter import adapter_maps
    from comfy_extras.nodes_train import TrainLoraNode

    from guidance_lab.nodes.layers.xti_train import XTITrain

    node = XTITrain.PREPARE_CLASS_CLONE(None)
    given = dict(
        captions={"captions": "own lines", "lines": "a {} on white"},
        regulariser={"regulariser": "none"},
        latents=latents,
    )

    def ours(shared: bool, **more):
        return lambda steps: node.execute(
            model,
            clip,
            "cube",
            steps=steps,
            batch=BATCH,
            pictures_at_once=BATCH,
            preview_every=0,
            shared=shared,
            **{**given, **more},
        )

    def core(steps: int):
        options = dict(
            batch_size=BATCH, steps=steps, grad_accumulation_steps=1, learning_rate=5e-4, rank=8, optimizer="AdamW",
            loss_function="MSE",
            seed=0, training_dtype="fp32", lora_dtype="fp32", quantized_backward=False,
            algorithm=next(iter(adapter_maps)),
            gradient_checkpointing=False, checkpoint_depth=1, offloading=False, existing_lora="[None]",
            bucket_mode=False,
            bypass_mode=False,
        )  # fmt: skip
        positive = clip.encode_from_tokens_scheduled(clip.tokenize("a cube on white"))
        TrainLoraNode.execute(
            model=[model], latents=[latents], positive=[positive], **{key: [value] for key, value in options.items()}
        )

    density = {"regulariser": "density", "weight": 1e-5, "bandwidth": 0.0}
    return {
        "XTI": ours(False),
        "textual inversion": ours(True),
        "XTI with density": ours(False, regulariser=density),
        "core LoRA": core,
    }


def seconds_per_step(train, steps: int) -> tuple[float, float]:
    """(wall, processor) seconds of one step."""
    clocks = []
    for count in (steps, 3 * steps):
        began = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            train(count)
        clocks.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return tuple(max(long - short, 1e-9) / (2 * steps) for short, long in zip(*clocks, strict=True))


def main() -> None:
    from tools.report import arguments, print_report, write_report

    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    import comfy.model_management as management

    with torch.inference_mode():
        model, clip = shipped.load_model("main"), shipped.load_clip()
    latents = {"samples": torch.randn(BATCH, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(0))}
    rounds, steps = (1, 3) if options.quick else (options.rounds, 10)
    times: dict[str, list[tuple[float, float]]] = {}
    for index in range(rounds):
        print(f"round {index + 1} of {rounds}", file=sys.stderr)
        for name, train in ways(model, clip, latents).items():
            times.setdefault(name, []).append(seconds_per_step(train, steps))
    rows = []
    for name, pairs in times.items():
        wall, processor = (statistics.median(values) for values in zip(*pairs, strict=True))
        rows.append(
            {"way": name, "batch": BATCH, "steps_per_second": 1 / wall, "steps_per_processor_second": 1 / processor}
        )
    ratios = {}
    for name in ("textual inversion", "core LoRA"):
        for i, clock in enumerate(("", ", processor time")):
            pairs = zip(times["XTI"], times[name], strict=True)
            ratios[f"steps/s, XTI / {name}{clock}"] = statistics.median(other[i] / own[i] for own, other in pairs)
    print_report(ratios, rows)
    write_report(options.json, ratios, rows, management.get_torch_device())


if __name__ == "__main__":
    main()
