"""What autoguidance costs per step: our pair beside the bare evaluations, core's Dual Model CFG Guider and plain CFG.

Every way runs in the same process on the same two random models and is timed around each model evaluation of the
sampler, one sampling of each way after the other, many rounds; a ratio is the median over the rounds. Wall time is what
a user waits for; on a busy CPU the processor time of this process says more, so both are given.
"""

import statistics
import sys
import time

import torch

UNET = dict(
    image_size=32, in_channels=4, out_channels=4, model_channels=320, use_spatial_transformer=True, legacy=False
)
SD15 = dict(
    num_heads=8, context_dim=768, num_res_blocks=[2] * 4, transformer_depth=[1] * 6 + [0] * 2,
    transformer_depth_output=[1] * 9 + [0] * 3, transformer_depth_middle=1,
)  # fmt: skip
LAYOUTS = {
    # all layers of SD1.5 at the width of the first, 128 pixels
    "sd15-narrow": ({**SD15, "channel_mult": [1, 1, 1, 1]}, 16),
    "sd15": ({**SD15, "channel_mult": [1, 2, 4, 4]}, 64),
    "sdxl": (
        dict(
            num_head_channels=64, context_dim=2048, channel_mult=[1, 2, 4], num_res_blocks=[2] * 3,
            transformer_depth=[0, 0, 2, 2, 10, 10],
            transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10], transformer_depth_middle=10,
            use_linear_in_transformer=True,
            adm_in_channels=2816, num_classes="sequential",
        ),
        128,
    ),
}  # fmt: skip
WEIGHT, CFG = 2.0, 4.0


def random_model(config: dict, seed: int):
    """A MODEL with random half-precision weights, loaded as a checkpoint is."""
    import comfy.ops
    import comfy.sd
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    network = UNetModel(**UNET, **config, device="meta", operations=comfy.ops.disable_weight_init)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, parameter in network.state_dict().items():
        value = (
            torch.randn(parameter.shape, generator=generator) / max(1, parameter[0].numel()) ** 0.5
            if parameter.ndim > 1
            else None
        )
        constant = 1.0 if name.endswith("weight") else 0.0
        weights["model.diffusion_model." + name] = (
            torch.full(parameter.shape, constant) if value is None else value
        ).half()
    return comfy.sd.load_state_dict_guess_config(weights, output_vae=False, output_clip=False)[0]


class Stopwatch:
    """A sampler (Euler) that times each model evaluation, wall and processor time, and looks at the weights between
    steps.
    """

    def __init__(self, modules: list[torch.nn.Module]):
        self.modules, self.wall, self.cpu, self.moved = modules, [], [], 0

    def _places(self):
        return [parameter.data_ptr() for module in self.modules for parameter in module.parameters()]

    def __call__(self, model, x, sigmas, extra_args=None, callback=None, disable=None):
        places = None
        for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
            began, began_cpu = self._now(x)
            denoised = model(x, sigma * x.new_ones(x.shape[0]), **extra_args)
            ended, ended_cpu = self._now(x)
            self.wall.append(ended - began)
            self.cpu.append(ended_cpu - began_cpu)
            before, places = places, self._places()
            self.moved += 0 if before is None else sum(a != b for a, b in zip(before, places, strict=True))
            x = x + (x - denoised) / sigma * (following - sigma)
        return x

    def _now(self, x):
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)
        return time.perf_counter(), time.process_time()


def guiders(main, guide, positive, negative) -> dict:
    """Name → guider."""
    import comfy.model_management
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import CFGGuider, DualModelGuider

    class Bare(comfy.samplers.CFGGuider):
        """The floor: one forward of the main model on `rows` rows and one of the guide on a single row, nothing
        combined.
        """

        rows = 1

        def outer_sample(self, *args, **kwargs):
            comfy.model_management.load_models_gpu([self.model_patcher, guide])
            return super().outer_sample(*args, **kwargs)

        def predict_noise(self, x, timestep, model_options=None, seed=None):
            given = {name: cond.cond for name, cond in self.conds["positive"][0]["model_conds"].items()}
            wide = {name: value.repeat(self.rows, *[1] * (value.ndim - 1)) for name, value in given.items()}
            denoised = self.inner_model.apply_model(x.repeat(self.rows, 1, 1, 1), timestep.repeat(self.rows), **wide)
            guide.model.apply_model(x, timestep, **given)
            return denoised[: x.shape[0]]

    class BareWithCFG(Bare):
        rows = 2

    from guidance_lab.nodes.autoguidance.model_pair import AutoguidanceModelPair

    pair = AutoguidanceModelPair.PREPARE_CLASS_CLONE(None).execute(main, guide, WEIGHT)[0]
    bare, bare_cfg = Bare(main), BareWithCFG(main)
    for guider in (bare, bare_cfg):
        guider.set_conds(positive, negative)
    return {
        "floor": bare,
        "pair": CFGGuider.execute(pair, positive, negative, 1.0)[0],
        "core dual model guider": DualModelGuider.execute(main, positive, WEIGHT, guide, positive)[0],
        "CFG": CFGGuider.execute(main, positive, negative, CFG)[0],
        "floor with CFG": bare_cfg,
        "pair with CFG": CFGGuider.execute(pair, positive, negative, CFG)[0],
    }


def sample_once(guider, modules, size: int, steps: int) -> Stopwatch:
    import comfy.samplers

    stopwatch = Stopwatch(modules)
    noise = torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(0))
    sigmas = comfy.samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), "karras", steps)
    with torch.inference_mode():
        guider.sample(
            noise, torch.zeros_like(noise), comfy.samplers.KSAMPLER(stopwatch), sigmas, disable_pbar=True, seed=0
        )
    return stopwatch


def count_calls(name: str, guider, modules, size: int) -> dict:
    """Network calls and predicted rows per step, from one sampling of two steps; on a GPU also its peak memory."""
    calls = []
    hooks = [
        module.diffusion_model.register_forward_pre_hook(lambda _, given: calls.append(given[0].shape[0]))
        for module in modules
    ]
    device = guider.model_patcher.load_device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        sample_once(guider, modules, size, 2)
    finally:
        for hook in hooks:
            hook.remove()
    row = {"way": name, "calls_per_step": len(calls) / 2, "predictions_per_step": sum(calls) / 2}
    if device.type == "cuda":
        row["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return row


def measure(layout: str, rounds: int, steps: int) -> tuple[dict[str, float], list[dict]]:
    config, size = LAYOUTS[layout]
    main, guide = random_model(config, 1), random_model(config, 2)
    modules = [main.model, guide.model]
    generator = torch.Generator().manual_seed(3)
    positive, negative = (
        [
            [
                torch.randn(1, 77, config["context_dim"], generator=generator),
                {"pooled_output": torch.randn(1, 1280, generator=generator)},
            ]
        ]
        for _ in range(2)
    )
    ways = guiders(main, guide, positive, negative)
    rows = {name: {"layout": layout, **count_calls(name, guider, modules, size)} for name, guider in ways.items()}
    wall, cpu = {name: [] for name in ways}, {name: [] for name in ways}
    for index in range(rounds):
        print(f"{layout}: round {index + 1} of {rounds}", file=sys.stderr)
        for name, guider in ways.items():
            timed = sample_once(guider, modules, size, steps)
            wall[name].append(statistics.median(timed.wall[1:]))  # the first step still warms caches
            cpu[name].append(statistics.median(timed.cpu[1:]))
            rows[name]["weights_moved_between_steps"] = timed.moved
    for name, row in rows.items():
        row["seconds_per_step"], row["cpu_seconds_per_step"] = (
            statistics.median(wall[name]),
            statistics.median(cpu[name]),
        )

    def ratio(times, name, to):
        return statistics.median(a / b for a, b in zip(times[name], times[to], strict=True))

    ratios = {}
    for label, times in (("", wall), (", processor time", cpu)):
        for name, to in (
            ("pair", "floor"),
            ("pair with CFG", "floor with CFG"),
            ("pair", "core dual model guider"),
            ("pair", "CFG"),
        ):
            ratios[f"{layout}: {name} / {to}{label}"] = ratio(times, name, to)
    return ratios, list(rows.values())


def main() -> None:
    from tools.report import arguments, print_report, write_report

    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="SD1.5 at full size also on the CPU (slow)")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument(
        "--reserve-gib",
        type=float,
        default=0.0,
        help="GPU memory kept from ComfyUI, to run without room for both models",
    )
    options = parser.parse_args()
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    import comfy.model_management as management

    management.EXTRA_RESERVED_VRAM += int(options.reserve_gib * 2**30)
    device = management.get_torch_device()
    layouts = ["sd15", "sdxl"] if device.type == "cuda" else ["sd15"] if options.full else ["sd15-narrow"]
    ratios, rows = {}, []
    for layout in layouts:
        more_ratios, more_rows = measure(layout, *((1, 3) if options.quick else (options.rounds, 4)))
        ratios.update(more_ratios)
        rows += more_rows
        management.unload_all_models()
    print_report(ratios, rows)
    write_report(options.json, ratios, rows, device)


if __name__ == "__main__":
    main()
