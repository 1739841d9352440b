"""What tests of unusual graphs share: ControlNets, hooks and wrappers, and samplings step by step."""

import comfy.cldm.cldm
import comfy.controlnet
import comfy.hooks
import comfy.ops
import comfy.samplers
import tiny_networks
import torch
from pair_tools import with_lora
from tiny_networks import positive


def noise(model, **size):
    return tiny_networks.noisy(model, 1, **size)


def far(a, b):
    """How far a is from b, as a share of b."""
    return ((a - b).norm() / b.norm()).item()


def control_lora(network_config, seed=3):
    """A Control-LoRA for a tiny UNet: its hint block and zero convolutions, and low-rank changes of some weights."""
    config = {k: v for k, v in network_config.items() if k != "out_channels"}
    network = comfy.cldm.cldm.ControlNet(
        **config, hint_channels=3, operations=comfy.ops.disable_weight_init, dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, value in network.state_dict().items():
        if key.split(".")[0] in ("input_hint_block", "zero_convs", "middle_block_out"):
            fan_in = value[0].numel() if value.ndim > 1 else 4
            weights[key] = torch.randn(value.shape, generator=generator) / fan_in**0.5
        elif key.endswith("attn1.to_q.weight"):
            name = key.removesuffix(".weight")
            weights[f"{name}.up"] = 0.3 * torch.randn(value.shape[0], 2, generator=generator)
            weights[f"{name}.down"] = 0.3 * torch.randn(2, value.shape[1], generator=generator)
    return comfy.controlnet.ControlLora(weights)


def run(model, conditioning, steps=4, cfg=1.0, sampler=None, x=None):
    """A whole sampling at cfg 1; every x, sigma and prediction of it."""
    seen = []

    def spy(args):
        seen.append((args["input"].clone(), args["sigma"].clone(), args["denoised"].clone()))
        return args["denoised"]

    watched = model.clone()
    watched.set_model_sampler_post_cfg_function(spy)
    guider = comfy.samplers.CFGGuider(watched)
    guider.set_conds(conditioning, conditioning)
    guider.set_cfg(cfg)
    x = noise(model) if x is None else x
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    with torch.inference_mode():
        sampler = sampler or comfy.samplers.sampler_object("euler")
        result = guider.sample(x, torch.zeros_like(x), sampler, sigmas, seed=0, disable_pbar=True)
    return result, seen


def hooked(model, keyframes, seed=1):
    """The positive with a LoRA hook whose strength changes on the way."""
    hook = comfy.hooks.WeightHook(strength_model=1.0)
    hook.weights = {key: patches[0][1] for key, patches in with_lora(model).patches.items()}
    hook.need_weight_init = False
    group = comfy.hooks.HookGroup()
    group.add(hook)
    schedule = comfy.hooks.HookKeyframeGroup()
    for percent, strength in keyframes:
        schedule.add(comfy.hooks.HookKeyframe(strength, start_percent=percent, guarantee_steps=0))
    group.set_keyframes_on_hooks(schedule)
    return comfy.hooks.set_hooks_for_conditioning(positive(seed), group)


def row_by_row(apply_model, args):
    """Evaluates each row of the batch alone, as wrappers for small memory do: tensors are cut, all else stays."""
    total = args["input"].shape[0]

    def part(value, row):
        return value[row : row + 1] if isinstance(value, torch.Tensor) and value.shape[:1] == (total,) else value

    def evaluated(row):
        c = {key: part(value, row) for key, value in args["c"].items()}
        return apply_model(part(args["input"], row), part(args["timestep"], row), **c)

    return torch.cat([evaluated(row) for row in range(total)])


def tiles(size, at_once):
    """A wrapper that evaluates square tiles, `at_once` together under each other, and averages where they overlap: what
    Tiled Diffusion (shiimizu/ComfyUI-TiledDiffusion, MultiDiffusion) does.
    """

    def evaluate(apply_model, args):
        x, t, rows = args["input"], args["timestep"], args["input"].shape[0]
        height, width = x.shape[-2:]
        corners = [
            (i, j) for i in range(0, height - size + 1, size // 2) for j in range(0, width - size + 1, size // 2)
        ]
        total, count = torch.zeros_like(x), torch.zeros_like(x)
        for begin in range(0, len(corners), at_once):
            group = [(..., slice(i, i + size), slice(j, j + size)) for i, j in corners[begin : begin + at_once]]
            x_tile = torch.cat([x[where] for where in group])
            c = {
                k: v.repeat(len(group), *[1] * (v.ndim - 1)) if isinstance(v, torch.Tensor) else v
                for k, v in args["c"].items()
            }
            out = apply_model(x_tile, t.repeat(len(group)), **c)
            for i, where in enumerate(group):
                total[where] += out[i * rows : (i + 1) * rows]
                count[where] += 1
        return total / count

    return evaluate


def wrapped(model, wrapper):
    changed = model.clone()
    changed.set_model_unet_function_wrapper(wrapper)
    return changed
