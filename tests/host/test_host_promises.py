"""What the host layer promises in small print: each of these lines was once changed without any test noticing."""

import gc
import math

import comfy.hooks
import comfy.model_management
import comfy.samplers
import pytest
import tiny_networks
import torch
from clip_tools import LinearScorer, guide, one_evaluation, watched
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from pair_tools import pair, with_lora

from guidance_lab.nodes.host import Guidance, attach, own_module
from guidance_lab.nodes.host.gradient import differentiable_weights, gradient_memory


class Look(Guidance):
    """Calls `look(step)` in every evaluation and changes nothing."""

    name = "look"

    def __init__(self, look):
        self.look = look

    def step(self, step, state):
        self.look(step)
        return step.denoised


def test_the_next_noise_level_is_the_next_lower_one_of_the_schedule(tiny_model, cond):
    """On a level, between two, above all and below all; a level within rounding of the asked one is that one."""
    found = {}
    edge = (torch.tensor(1.0) * (1 - 1e-6)).item()
    asked = {1.0: 0.5, 3.0: 1.0, 0.5: 0.25, 0.3: 0.25, 0.25: 0.0, 0.1: 0.0}

    def look(step):
        for sigma in asked:
            found[sigma] = step.run.next_sigma(torch.full((2,), sigma)).tolist()

    model = attach(tiny_model, Look(look))
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(cond(1), cond(2))
    sampler = comfy.samplers.KSAMPLER(
        lambda wrapped, noise, sigmas, extra_args, callback, disable: wrapped(noise, sigmas[:1], **extra_args)
    )
    sigmas = torch.tensor([1.0, edge, 0.5, 0.25, 0.0])
    with torch.inference_mode():
        guider.sample(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), sampler, sigmas, disable_pbar=True)
    assert found == {sigma: [following] * 2 for sigma, following in asked.items()}


def test_differential_diffusion_is_asked_for_its_mask_at_every_step(sample, run_node):
    """Its mask grows from step to step; the shift of CLIP guidance stays inside what it is at that step."""
    model = tiny_networks.build("SD15")
    soft = torch.linspace(0, 1, 8).expand(1, 8, 8).clone()
    guided, watch = watched(guide(run_node, DifferentialDiffusion.execute(model)[0], LinearScorer()))
    prompt = tiny_networks.positive()
    sample(guided, prompt, prompt, {"samples": torch.ones(1, 4, 8, 8), "noise_mask": soft}, steps=6)
    sampling = model.model.model_sampling
    top = float(sampling.timestep(watch.steps[0].sigma[0]))
    inside = []
    for step, shift in zip(watch.steps, watch.shifts, strict=True):
        now = soft >= float(sampling.timestep(step.sigma[0])) / top
        assert torch.equal(shift[0].abs().sum(0) > 0, now[0])
        inside.append(int(now.sum()))
    assert inside[0] < inside[2] < inside[-1]


def test_a_picture_that_is_predicted_in_tiles_is_guided_as_a_whole(tiny_model, cond, latent, sample):
    """A tiled model calls the host once for each tile, with the same conds; a prediction of one tile is not C."""
    model, seen = tiny_model.clone(), []

    def tiled(args):
        halves = [
            comfy.samplers.calc_cond_batch(args["model"], args["conds"], x, args["sigma"], args["model_options"])
            for x in args["input"].chunk(2, -1)
        ]
        return [torch.cat(parts, -1) for parts in zip(*halves, strict=True)]

    model.set_model_sampler_calc_cond_batch_function(tiled)
    model.set_model_sampler_post_cfg_function(
        lambda args: (seen.append((args["cond_denoised"], args["uncond_denoised"])), args["denoised"])[1]
    )

    def look(step):
        assert torch.equal(step.cond_denoised, seen[-1][0]) and torch.equal(step.uncond_denoised, seen[-1][1])
        again = step.run.main.conds["positive"][:]  # conds that the guider has not asked for
        assert all(torch.allclose(step.predict(again), step.cond_denoised, atol=1e-4) for _ in range(2))

    sample(attach(model, Look(look)), cond(1), cond(2), latent(), steps=2)
    assert len(seen) == 2


def test_c_is_what_other_wrappers_of_the_prediction_make_of_it(tiny_model, cond, latent, sample):
    """The guidance listens outside of all of them, and before any pre-CFG hook."""
    model, seen = tiny_model.clone(), []

    def doubled(executor, *args):
        return [2 * prediction for prediction in executor(*args)]

    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "another pack", doubled)
    model.set_model_sampler_pre_cfg_function(
        lambda args: (seen.append(args["conds_out"]), [out + 1 for out in args["conds_out"]])[1]
    )

    class Again(Guidance):
        def begin(self, run):
            return run.main.conds["positive"][:]

        def extra_conds(self, step, positive):
            return [positive]

        def step(self, step, positive):
            assert torch.equal(step.cond_denoised, seen[-1][0]) and torch.equal(step.uncond_denoised, seen[-1][1])
            assert torch.allclose(step.predict(positive), step.cond_denoised, atol=1e-4)
            return step.denoised

    sample(attach(model, Again()), cond(1), cond(2), latent(), steps=2)
    assert len(seen) == 2


@pytest.mark.parametrize("fails", [False, True])
def test_the_hook_mode_of_an_extra_model_is_put_back(tiny_model, tiny_model_b, cond, latent, sample, run_node, fails):
    """In a run without several hooks it keeps no copies of weights, as the guider's own model does."""
    guides, modes = [], []

    def look(step):
        guides.append(step.run.models[1])
        modes.append(guides[0].hook_mode)
        if fails:
            raise KeyError("on purpose")

    model = attach(pair(run_node, tiny_model, tiny_model_b, 1.7), Look(look))
    if fails:
        with pytest.raises(KeyError):
            sample(model, cond(1), cond(2), latent(), steps=1)
    else:
        sample(model, cond(1), cond(2), latent(), steps=1)
    assert guides[0].model is tiny_model_b.model and modes == [comfy.hooks.EnumHookMode.MinVram]
    assert guides[0].hook_mode == comfy.hooks.EnumHookMode.MaxSpeed


def test_everything_is_ended_in_the_reverse_of_its_order(tiny_model, tiny_model_b, cond, latent, sample, run_node):
    """Guidances first, the last one first; then their models, the last one first. After an error nobody else does."""
    ended = []

    class Ending(Guidance):
        def __init__(self, name, fails=False):
            self.name, self.fails = name, fails

        def step(self, step, state):
            if self.fails:
                raise KeyError("on purpose")
            return step.denoised

        def end(self, run, state):
            ended.append(self.name)

    guides = with_lora(tiny_model), tiny_model_b
    model = attach(tiny_model, Ending("first guidance"))
    for name, patcher in zip(("first model", "second model"), guides, strict=True):
        patcher.add_callback(CallbacksMP.ON_CLEANUP, lambda _, name=name: ended.append(name))
        model = pair(run_node, model, patcher, 1.7)
    with pytest.raises(KeyError):
        sample(attach(model, Ending("second guidance", fails=True)), cond(1), cond(2), latent(), steps=1)
    assert ended == ["second guidance", "first guidance", "second model", "first model"]


def test_memory_management_does_not_take_the_first_module_for_the_copy(tiny_model):
    """ComfyUI looks for the patcher that a dropped clone came from, to go on with it: here that has another module."""
    copy = own_module(tiny_model)
    assert copy.model is not tiny_model.model
    comfy.model_management.load_models_gpu([copy])
    held = next(one for one in comfy.model_management.current_loaded_models if one.model is copy)
    del copy
    gc.collect()
    assert held.model is None


def test_a_weight_that_somebody_replaced_under_a_gradient_stays_replaced():
    with torch.inference_mode():
        network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    patcher = ModelPatcher(network, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))
    kept = network[1].weight
    with differentiable_weights([patcher]):
        assert network[0].weight is not None and not network[1].weight.is_inference()
        newer = torch.nn.Parameter(torch.ones(2, 2), requires_grad=False)
        network[0].weight = newer
    assert network[0].weight is newer and network[1].weight is kept


@pytest.mark.parametrize(("name", "side", "measured"), [("SD15", 64, 1.5), ("SDXL", 128, 10.0)])
def test_the_memory_of_a_gradient_is_what_was_measured(name, side, measured):
    """GiB of activations in half precision at cfg > 1, measured on the real models at 512 and 1024 pixels."""
    model = tiny_networks.build(name)
    bytes_of_a_number = comfy.model_management.dtype_size(model.model.get_dtype_inference())
    asked = gradient_memory(model, (1, 4, side, side)) * 2 / bytes_of_a_number / 2**30
    assert measured <= asked <= 2.5 * measured


@pytest.mark.parametrize("following", [1.0, 0.01])
def test_the_exact_size_is_never_capped(run_node, following):
    """gamma grad S is gamma grad S, however long the step is; the size that is the same for all scorers is capped."""
    model, prompt = tiny_networks.build("SD15"), tiny_networks.positive()
    x = 10.0 * tiny_networks.noisy(model, batch=1, height=8, width=8)
    moves = {}
    for size in ("exact", "rms"):
        guided = guide(run_node, model, LinearScorer(), gradient="through model", size=size, strength=1e-3)
        moves[size] = [
            one_evaluation(guided, x, 10.0, prompt, next_sigma=lower) - one_evaluation(model, x, 10.0, prompt)
            for lower in (9.5, following)
        ]
    norms = {size: [move.norm().item() for move in moved] for size, moved in moves.items()}
    assert torch.equal(*moves["exact"]) and norms["exact"][0] > 0
    assert norms["rms"][1] < 0.5 * norms["rms"][0] and math.isfinite(norms["rms"][1])


@pytest.mark.parametrize(("shift", "refused"), [(3.0, False), (3.0005, False), (3.06, True), (2.94, True)])
def test_how_far_the_sigmas_of_a_pair_may_lie_apart(tiny_model, tiny_model_b, run_node, shift, refused):
    main = ModelSamplingSD3().patch(tiny_model, 3.0)[0]
    other = ModelSamplingSD3().patch(tiny_model_b, shift)[0]
    if refused:
        with pytest.raises(ValueError, match="ModelSampling node"):
            pair(run_node, main, other)
    else:
        pair(run_node, main, other)
