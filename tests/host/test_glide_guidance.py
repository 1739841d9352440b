"""Guidance on GLIDE's MODEL: the gradient of a noisy score moves the mean by the learned variance, as in the paper;
autoguidance is clamped with all that combines predictions; conditionings with areas keep their own variance."""

import math

import comfy.samplers
import pytest
import torch
from clip_tools import LinearScorer, guide, watched
from glide_host import encode, load, prompts, sample
from glide_tools import facts, relative, tensors

from guidance_lab.glide import diffusion
from guidance_lab.nodes.clip_guidance.objective import Scorer

GOLDEN, RUNS = tensors(), facts()["sampling"]
EMPTY = {"samples": torch.zeros(1, 3, 16, 16)}
BARS = diffusion.Schedule("squaredcos_cap_v2").abar


def timestep_of(level) -> float:
    bar = 1 / (1 + level.sigma.double().flatten()[0] ** 2)
    return float(min(range(1000), key=lambda t: abs(math.log(1 / BARS[t] - 1) - math.log(1 / bar - 1))))


class RecordedScore(Scorer):
    """A score of x_t whose gradient is the recorded cond_fn, -tanh(2x)*(1 + t/500)."""

    name, noisy, side = "recorded", True, 16

    def score(self, view, step):
        factor = 1 + timestep_of(step.level) / 500
        return -0.5 * factor * torch.log(torch.cosh(2 * view)).flatten(1).sum(1)


def recorded_guidance(run_node, **options):
    return guide(run_node, load("base")[0], RecordedScore(), size="exact", strength=1.0, **options)


def test_clip_guidance_moves_the_mean_by_the_learned_variance(run_node):
    run = RUNS["traj.clip"]
    positive, negative = prompts("base", run)
    out, kept = sample(
        recorded_guidance(run_node), positive, negative, EMPTY, GOLDEN["traj.clip.noise_T"], run["spec"],
        noises=GOLDEN["traj.clip.noise"],
    )  # fmt: skip
    samples = torch.cat([*(kept[step][1] for step in range(1, 5)), out])
    assert relative(samples, GOLDEN["traj.clip.samples"]) < 1e-4


@pytest.mark.parametrize("i", RUNS["cstep"]["i"])
def test_with_ddim_it_shifts_the_noise_and_is_not_clamped(run_node, i):
    schedule = diffusion.Schedule("squaredcos_cap_v2", "100")
    sigmas = torch.tensor([math.sqrt(1 / bar - 1) for bar in (schedule.abar[i], schedule.abar_prev[i])])
    x = GOLDEN[f"cstep.i{i}.x"]
    positive, negative = prompts("base", RUNS["cstep"])
    # x_T of a shortened schedule is latent + sigma*noise: all of it goes in as noise.
    noise = x * (1 + sigmas[0] ** 2).sqrt() / sigmas[0]
    out, kept = sample(
        recorded_guidance(run_node), positive, negative, EMPTY, noise, method="ddim", sigmas=sigmas
    )  # fmt: skip
    assert relative(kept[0][0], GOLDEN[f"cstep.i{i}.pred_xstart"]) < 2e-4
    assert i == 20 or kept[0][0].abs().max() > 1
    assert relative(out / (1 + sigmas[1] ** 2).sqrt(), GOLDEN[f"cstep.i{i}.sample"]) < 2e-5


def test_the_score_sees_the_noisy_sample_itself(run_node):
    seen = []

    class Seen(RecordedScore):
        def score(self, view, step):
            seen.append((view.detach().clone(), timestep_of(step.level)))
            return super().score(view, step)

    model = guide(run_node, load("base")[0], Seen(), size="exact", strength=0.1)
    positive, negative = prompts("base", RUNS["traj.clip"])
    _, kept = sample(model, positive, negative, EMPTY, GOLDEN["traj.clip.noise_T"], "5")
    assert [t for _, t in seen] == [999, 749, 500, 250, 0]
    for step, (view, _) in enumerate(seen):
        assert relative(view, kept[step][1]) < 1e-6


def test_strength_zero_changes_nothing(run_node):
    positive, negative = prompts("base", RUNS["traj.base"])
    plain, _ = sample(load("base")[0], positive, negative, EMPTY, GOLDEN["traj.base.noise_T"], cfg=3.0)
    model = guide(run_node, load("base")[0], RecordedScore(), size="exact", strength=0.0)
    guided, _ = sample(model, positive, negative, EMPTY, GOLDEN["traj.base.noise_T"], cfg=3.0)
    assert torch.equal(plain, guided)


def test_autoguidance_comes_before_the_clamp_wherever_it_is_wired(run_node):
    """Its difference of two estimates is of the size of the noise level, 20291 at the first step."""
    model, positive, noise = load("base")[0], encode(load("base")[1], "a"), GOLDEN["traj.base.noise_T"]
    weak = model.clone()  # on the same module with other weights, so it is read again from the file
    key = "diffusion_model.input_blocks.1.0.out_layers.3.weight"
    weak.add_patches({key: (torch.full((64, 64, 3, 3), 0.02),)}, 1.0)
    paired = run_node("GuidanceLab_AutoguidanceModelPair", model=model, guide_model=weak, weight=2.0)[0]
    seen, watch = watched(paired)
    out, kept = sample(seen, positive, positive, EMPTY, noise, "5")
    plain, _ = sample(model, positive, positive, EMPTY, noise, "5")
    assert all(x0.abs().max() <= 1 for x0, _ in kept.values())
    assert torch.isfinite(out).all() and relative(out, plain) > 1e-3
    assert [len(step.terms) for step in watch.steps] == [1] * 5


def test_conditionings_with_areas_keep_their_own_variance():
    """One prompt in two shares of one place is that prompt; in two halves of the picture it is something else."""
    model, clip, _ = load("base")
    text = encode(clip, facts()["prompts"][0])
    context, extra = text[0]
    halves = [[context, {**extra, "area": (16, 8, 0, 8 * side), "strength": 1.0}] for side in (0, 1)]
    shares = [[context, {**extra, "strength": 0.5}] for _ in range(2)]
    noise, noises = GOLDEN["traj.base.noise_T"], GOLDEN["traj.base.noise"]
    once, _ = sample(model, text, text, EMPTY, noise, noises=noises)
    twice, _ = sample(model, shares, text, EMPTY, noise, noises=noises)
    assert relative(twice, once) < 1e-5
    split, _ = sample(model, halves, text, EMPTY, noise, noises=noises)
    assert torch.isfinite(split).all() and relative(split, once) > 1e-3


def test_the_variance_is_the_positive_one_whatever_the_order_of_the_calls():
    model = load("base")[0]
    positive, negative = prompts("base", RUNS["traj.base"])
    noise, noises = GOLDEN["traj.base.noise_T"], GOLDEN["traj.base.noise"]
    out, _ = sample(model, positive, negative, EMPTY, noise, "5", 3.0, noises=noises)
    try:
        model.model.memory_required = lambda *args, **kwargs: 1e15  # so that the host calls once for each conditioning
        apart, _ = sample(model, positive, negative, EMPTY, noise, "5", 3.0, noises=noises)
    finally:
        del model.model.memory_required
    assert relative(apart, out) < 1e-5


def test_a_guider_with_a_single_conditioning():
    model, clip, _ = load("base")
    positive = encode(clip, facts()["prompts"][0])
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    noise, noises = GOLDEN["traj.base.noise_T"], GOLDEN["traj.base.noise"]
    out, _ = sample(model, None, None, EMPTY, noise, noises=noises, guider=guider)
    same, _ = sample(model, positive, positive, EMPTY, noise, noises=noises)
    assert torch.equal(out, same)
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"negative": positive})
    with pytest.raises(ValueError, match="needs a positive conditioning"):
        sample(model, None, None, EMPTY, noise, guider=guider)


def test_a_linear_score_pulls_in_its_direction(run_node):
    class Noisy(LinearScorer):
        noisy = True

    scorer = Noisy(side=16)
    positive, negative = prompts("base", RUNS["traj.base"])
    plain, _ = sample(load("base")[0], positive, negative, EMPTY, GOLDEN["traj.base.noise_T"], "10", 3.0)
    model = guide(run_node, load("base")[0], scorer, size="rms", strength=0.5)
    out, _ = sample(model, positive, negative, EMPTY, GOLDEN["traj.base.noise_T"], "10", 3.0)
    assert ((out - plain) * scorer.pattern).sum() > 0
