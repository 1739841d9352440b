"""GLIDE's diffusion: schedules, respacing, single steps and whole trajectories against the numbers of the official
code.
"""

import math

import pytest
import torch
from glide_tools import facts, relative, slope, state_dict, tensors

from guidance_lab import glide
from guidance_lab.glide import diffusion

GOLDEN, RUNS = tensors(), facts()["sampling"]
TRAJECTORIES = [name for name in RUNS if name.startswith("traj.")]


@pytest.fixture(scope="module")
def network():
    """`network(run)` → fn(x, t) of a recorded run: its prompt, its guidance, its pictures around the sample."""
    models = {}

    def make(name: str):
        run = RUNS[name]
        variant = run["variant"]
        model = models.setdefault(variant, glide.load(state_dict(variant)))
        around = {"low_res": GOLDEN["traj.upsample.low_res"]} if variant.startswith("upsample") else {}
        if variant.endswith("inpaint"):
            around |= {"inpaint_image": GOLDEN["traj.inpaint.image"], "inpaint_mask": GOLDEN["traj.inpaint.mask"]}
        texts = [
            model.text(*glide.tokenize([text], model.config.text_ctx))
            for text in (facts()["prompts"][run["prompt"]], "")
        ]

        def fn(x, t):
            cond = model.denoise(x, t, *texts[0], **around)
            return (
                cond
                if run["cfg"] is None
                else diffusion.guide(cond, model.denoise(x, t, *texts[1], **around), run["cfg"])
            )

        return fn, model.config

    return make


def known(x0):
    image, mask = GOLDEN["traj.inpaint.image"], GOLDEN["traj.inpaint.mask"]
    return x0 * (1 - mask) + image * mask


def test_betas():
    for name, expected in facts()["betas"].items():
        name, steps = name.split("/")
        values = diffusion.betas(name, int(steps))
        assert values.dtype == torch.float64 and len(values) == int(steps)
        assert values.sum().item() == pytest.approx(expected["sum"], rel=1e-12)
        assert values.square().sum().item() == pytest.approx(expected["sum_sq"], rel=1e-12)
        assert values[:3].tolist() == pytest.approx(expected["first"], rel=1e-10)
        assert values[-3:].tolist() == pytest.approx(expected["last"], rel=1e-12)
        assert values[500].item() == pytest.approx(expected["i500"], rel=1e-12)
        schedule = diffusion.Schedule(name)
        for index, value in expected["abar"].items():
            assert schedule.abar[int(index)] == pytest.approx(value, rel=1e-9)


def test_respacing():
    for spec, expected in facts()["respaced"].items():
        spec, steps = spec.rsplit("/", 1)
        assert diffusion.respaced(spec, int(steps)) == expected, spec
    assert diffusion.respaced("") == list(range(1000))


@pytest.mark.parametrize("spec", ["abc", "0", "10,0", "-3", "1001", "600,600", "ddim999", "ddim5,5", "fast28", "1.5"])
def test_bad_steps_are_refused(spec):
    with pytest.raises(ValueError):
        diffusion.respaced(spec)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="squaredcos_cap_v2"):
        diffusion.Schedule("cosine")


@pytest.mark.parametrize("i", RUNS["step"]["i"])
def test_one_ancestral_step(network, i):
    fn, config = network("step")
    schedule = diffusion.Schedule(config.noise_schedule, RUNS["step"]["spec"])
    golden = {key.split(".")[2]: value for key, value in GOLDEN.items() if key.startswith(f"step.i{i}.")}
    law = diffusion.p_mean_variance(fn, golden["x"], i, schedule)
    assert relative(law["mean"], golden["mean"]) < 2e-5
    assert (law["log_variance"] - golden["log_variance"]).abs().max() < 3e-5
    assert relative(law["pred_xstart"], golden["pred_xstart"]) < 2e-4
    step = diffusion.p_sample(fn, golden["x"], i, schedule, golden["noise"])
    assert relative(step["sample"], golden["sample"]) < 2e-5 and torch.equal(step["pred_xstart"], law["pred_xstart"])


@pytest.mark.parametrize("i", RUNS["cstep"]["i"])
def test_one_ddim_step_with_a_gradient(network, i):
    fn, config = network("cstep")
    schedule = diffusion.Schedule(config.noise_schedule, RUNS["cstep"]["spec"])
    step = diffusion.ddim_sample(fn, GOLDEN[f"cstep.i{i}.x"], i, schedule, cond_fn=slope)
    assert relative(step["pred_xstart"], GOLDEN[f"cstep.i{i}.pred_xstart"]) < 2e-4
    assert relative(step["sample"], GOLDEN[f"cstep.i{i}.sample"]) < 2e-5


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_trajectories(network, name):
    run = RUNS[name]
    fn, config = network(name)
    schedule = diffusion.Schedule(config.noise_schedule, run["spec"])
    assert schedule.timesteps == run["timesteps"]
    x, noises, samples = GOLDEN[f"{name}.noise_T"] * run["temp"], GOLDEN.get(f"{name}.noise"), []
    options = {"denoised_fn": known if run["denoised_fn"] else None, "cond_fn": slope if run["cond_fn"] else None}
    for step, i in enumerate(reversed(range(len(schedule)))):
        noise = None if noises is None else noises[step : step + 1]
        if run["method"] == "ancestral":
            made = diffusion.p_sample(fn, x, i, schedule, noise, **options)
        else:
            made = diffusion.ddim_sample(fn, x, i, schedule, noise, run["eta"], **options)
        x = made["sample"]
        samples.append(x)
        if step == run["xstart_step"]:
            assert relative(made["pred_xstart"], GOLDEN[f"{name}.pred_xstart"]) < 3e-4
    assert relative(torch.cat([samples[step] for step in run["kept_steps"]]), GOLDEN[f"{name}.samples"]) < 3e-4


def test_the_bounds_of_the_log_variance(network):
    """The upper one is beta; the lower one is the posterior variance, of which the first, zero, takes the place of the
    second.
    """
    schedule = diffusion.Schedule("squaredcos_cap_v2", "100")
    v = torch.tensor([-1.0, 1.0, 3.0])
    for i in (0, 1, 50, 99):
        low, high, beyond = schedule.log_variance(v, i).tolist()
        j = max(i, 1)
        posterior = schedule.beta[j] * (1 - schedule.abar[j - 1]) / (1 - schedule.abar[j])
        assert low == pytest.approx(math.log(posterior), rel=1e-5) and high == pytest.approx(
            math.log(schedule.beta[i]), rel=1e-5
        )
        assert beyond == pytest.approx(2 * high - low, rel=1e-4)  # not clamped


def test_the_clip_comes_after_denoised_fn_and_before_the_gradient():
    schedule = diffusion.Schedule("linear", "5")
    x = torch.full((1, 3, 2, 2), 0.5)

    def silent(x, t):
        return torch.zeros(len(x), 6, 2, 2)

    def too_bright(x0):
        return torch.full_like(x0, 4.0)

    def step(**options):
        return diffusion.p_sample(silent, x, 2, schedule, torch.zeros_like(x), denoised_fn=too_bright, **options)

    clipped = step()
    assert (clipped["pred_xstart"] == 1).all()
    assert (step(clip=False)["pred_xstart"] == 4).all()
    pushed = step(cond_fn=lambda x, t: torch.ones_like(x))
    assert torch.allclose(
        pushed["sample"] - clipped["sample"], schedule.log_variance(torch.zeros(1), 2).exp().expand_as(x), rtol=1e-4
    )


def test_ddim_needs_noise_only_where_it_adds_some():
    schedule, x = diffusion.Schedule("linear", "5"), torch.zeros(1, 3, 2, 2)

    def silent(x, t):
        return torch.zeros(len(x), 6, 2, 2)

    diffusion.ddim_sample(silent, x, 0, schedule, eta=1.0)
    with pytest.raises(ValueError, match="adds noise"):
        diffusion.ddim_sample(silent, x, 2, schedule, eta=1.0)


def test_a_schedule_of_noise_levels_is_the_one_of_its_timesteps():
    by_name = diffusion.Schedule("squaredcos_cap_v2", "27")
    sigmas = [0.0, *(math.sqrt(1 / bar - 1) for bar in by_name.abar)]
    by_sigma = diffusion.Schedule.from_sigmas(sigmas)
    for name in ("abar", "abar_prev", "beta", "log_beta", "log_posterior"):
        assert getattr(by_sigma, name) == pytest.approx(getattr(by_name, name), rel=1e-9), name
    first, rest = diffusion.Schedule.from_sigmas(sigmas[:11]), diffusion.Schedule.from_sigmas(sigmas[10:])
    for name in ("abar", "abar_prev", "beta", "log_beta", "log_posterior"):
        assert getattr(first, name) + getattr(rest, name) == pytest.approx(getattr(by_name, name), rel=1e-9), name
    with pytest.raises(ValueError, match="less noise"):
        diffusion.Schedule.from_sigmas([0.0, 2.0, 2.0])
