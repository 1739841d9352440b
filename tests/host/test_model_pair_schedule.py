"""When the guide is evaluated and what for: windows by sigma, forwards per step, hooks, one load, and the closed form
of Gaussians.
"""

from functools import partial

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import CFGGuider
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from pair_tools import CallCounter, pair, run_guider

from guidance_lab.guidance.schedule import float32

pytestmark = pytest.mark.side(4)


@pytest.fixture
def sample(sample):
    return partial(sample, steps=4)


def sigmas_of(model, steps=4):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)


@pytest.mark.parametrize(("cfg", "rows"), [(1.0, 1), (4.0, 2)])
def test_forwards_per_step(tiny_model, tiny_model_b, cond, latent, sample, run_node, cfg, rows):
    """Autoguidance alone is two predictions per step, with CFG three in two calls: cond and uncond stay one batch."""
    main, guide = CallCounter(tiny_model), CallCounter(tiny_model_b)
    sample(pair(run_node, main.model, guide.model), cond(1), cond(2), latent(), cfg=cfg)
    assert main.rows == [rows] * 4 and guide.rows == [1] * 4
    assert guide.sigmas == main.sigmas


@pytest.mark.parametrize("sampler_name", ["euler", "heun", "dpm_2", "dpmpp_sde"])
def test_the_window_is_a_range_of_sigma_with_both_ends(
    tiny_model, tiny_model_b, cond, latent, sample, run_node, sampler_name
):
    sampling = tiny_model.get_model_object("model_sampling")
    main, guide = CallCounter(tiny_model), CallCounter(tiny_model_b)
    model = pair(run_node, main.model, guide.model, start_percent=0.2, end_percent=0.7)
    sample(model, cond(1), cond(2), latent(), sampler_name, steps=5)
    high, low = float32(sampling.percent_to_sigma(0.2)), float32(sampling.percent_to_sigma(0.7))
    assert guide.sigmas == [s for s in main.sigmas if low <= s <= high]
    assert 0 < guide.calls < main.calls


@pytest.mark.parametrize("end", ["start_percent", "end_percent"])
def test_a_step_on_the_boundary_belongs_to_the_window(tiny_model, tiny_model_b, cond, latent, run_node, end):
    """A flow model's percent_to_sigma is double precision and samplers carry float32: unrounded, this step would be
    lost.
    """
    flow, flow_b = (ModelSamplingSD3().patch(model, 3.0)[0] for model in (tiny_model, tiny_model_b))
    to_sigma = flow.get_model_object("model_sampling").percent_to_sigma
    rounded_out = [
        p / 10 for p in range(1, 10) if (float32(to_sigma(p / 10)) > to_sigma(p / 10)) == (end == "start_percent")
    ]
    percent = next(p for p in rounded_out if float32(to_sigma(p)) != to_sigma(p))
    guide = CallCounter(flow_b)
    model = pair(run_node, flow, guide.model, **{end: percent})
    sigmas = torch.tensor([to_sigma(percent), 0.0])
    run_guider(CFGGuider.execute(model, cond(1), cond(2), 3.0)[0], latent(seed=1), sigmas=sigmas)
    assert guide.calls == 1


def test_outside_the_window_the_result_is_stock(tiny_model, tiny_model_b, cond, latent, run_node):
    model = pair(run_node, tiny_model, tiny_model_b, start_percent=0.9, end_percent=1.0)
    sigmas = sigmas_of(tiny_model, 6)[:3]

    def run(model):
        return run_guider(CFGGuider.execute(model, cond(1), cond(2), 3.0)[0], latent(), sigmas=sigmas)

    assert torch.equal(run(model), run(tiny_model))


def test_cfg_override_changes_the_cfg_weight_only(tiny_model, tiny_model_b, cond, latent, run_node):
    """Core's CFG Override swaps guider.cfg in a percent range; over the whole range it is sampling at the other cfg."""
    from comfy_extras.nodes_custom_sampler import CFGOverride

    model = pair(run_node, tiny_model, tiny_model_b, 1.7)
    overridden = CFGOverride.execute(model, 2.5, 0.0, 1.0)[0]
    result = run_guider(CFGGuider.execute(overridden, cond(1), cond(2), 6.0)[0], latent())
    assert torch.equal(result, run_guider(CFGGuider.execute(model, cond(1), cond(2), 2.5)[0], latent()))


def test_other_hooks_run_as_often_as_without_the_pair_and_in_order(
    tiny_model, tiny_model_b, cond, latent, sample, run_node
):
    order = []

    def hook(name, result):
        def call(args):
            order.append(name)
            return args[result]

        return call

    model = tiny_model.clone()
    model.set_model_sampler_pre_cfg_function(hook("pre", "conds_out"))
    model.set_model_sampler_post_cfg_function(hook("post 1", "denoised"))
    model = pair(run_node, model, tiny_model_b)
    model.set_model_sampler_post_cfg_function(hook("post 2", "denoised"))
    model.set_model_sampler_cfg_function(lambda args: (order.append("cfg"), args["cond"])[1])
    sample(model, cond(1), cond(2), latent())
    assert order == ["pre", "cfg", "post 1", "post 2"] * 4


def test_a_cfg_function_of_another_node_is_the_cfg_leg(tiny_model, tiny_model_b, cond, latent, sample, run_node):
    """With a CFG function that returns the conditional prediction, cfg 4 and cfg 1 are the same result."""
    model = tiny_model.clone()
    model.set_model_sampler_cfg_function(lambda args: args["cond"])
    guided = sample(pair(run_node, model, tiny_model_b, 1.7), cond(1), cond(2), latent())
    plain = sample(pair(run_node, tiny_model, tiny_model_b, 1.7), cond(1), cond(2), latent(), cfg=1.0)
    assert (guided - plain).abs().max() <= 1e-5 * plain.abs().max()


def test_the_guide_is_loaded_in_one_call_with_the_main_model(
    tiny_model, tiny_model_b, cond, latent, sample, run_node, monkeypatch
):
    loads = []
    load = comfy.model_management.load_models_gpu

    def spy(models, *args, **kwargs):
        loads.append({patcher.model for patcher in models})
        return load(models, *args, **kwargs)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", spy)
    model = pair(run_node, tiny_model, tiny_model_b).clone().clone()
    sample(model, cond(1), cond(2), latent())
    assert loads == [{tiny_model.model, tiny_model_b.model}]
    assert len(comfy.model_management.loaded_models()) == 2


def gaussian(model, cond_variance, uncond_variance=None):
    """The MODEL as the exact denoiser of N(0, c): D = x c / (c + sigma^2), with another c for the unconditional
    prediction.
    """
    patched = model.clone()

    def denoise(_, args):
        variances = [(cond_variance, uncond_variance)[which] for which in args["cond_or_uncond"]]
        chunks = zip(
            args["input"].chunk(len(variances)), args["timestep"].chunk(len(variances)), variances, strict=True
        )
        return torch.cat([x * c / (c + s.view(-1, 1, 1, 1) ** 2) for x, s, c in chunks])

    patched.set_model_unet_function_wrapper(denoise)
    return patched


@pytest.mark.parametrize(
    ("w_u", "w_c", "expected"),
    [(1, 1, 0.49971), (1, 2, 0.35355), (1, 3, 0.25015), (2, 1, 0.25029), (2, 2, 0.17709), (1.5, 1.5, 0.29748)],
)
@pytest.mark.parametrize("one_module", [False, True])
def test_gaussians_have_a_closed_form(tiny_model, tiny_model_b, cond, latent, run_node, w_u, w_c, expected, one_module):
    """std_out = sm sqrt(R_m^(w_u + w_c - 1) R_u^(1 - w_u) R_c^(1 - w_c)) with R_i = c_i / (c_i + sm^2); the map is
    linear in the noise.
    """
    high, low, rho, steps = 14.6, 0.01, 7, 200
    ramp = torch.linspace(0, 1, steps)
    sigmas = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    main, guide = gaussian(tiny_model, 0.25, 1.0), gaussian(tiny_model if one_module else tiny_model_b, 0.5)
    guider = CFGGuider.execute(pair(run_node, main, guide, float(w_c)), cond(1), cond(2), float(w_u))[0]
    start = latent(seed=1)
    start["samples"] = torch.zeros_like(start["samples"])
    out = run_guider(guider, start, "heun", sigmas=torch.cat([sigmas, torch.zeros(1)]))
    noise = torch.randn(start["samples"].shape, generator=torch.manual_seed(0))
    scale = out / tiny_model.model.latent_format.process_out(noise)
    assert scale.std() <= 1e-5
    assert scale.mean().item() == pytest.approx(expected, abs=1e-4)
