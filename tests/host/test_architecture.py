"""The guidance that docs/architecture.md shows is run as it stands there, against the same method without the pack."""

import ast
import re
from pathlib import Path

import comfy.samplers
import pytest
import tiny_networks
import torch
from pair_tools import CallCounter, run_guider

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
(CODE,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
ZEROED = "model = attach(model, CFGZeroStar())"


class ByHand(comfy.samplers.CFGGuider):
    """CFG-Zero* on velocities, eq. by eq. of the paper: v = (x - D) / sigma, v' = s v_u + w (v_c - s v_u), picture by
    picture; v' = 0 in the first steps.
    """

    zero_steps = 1

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        positive, negative = self.conds["positive"], self.conds["negative"]
        pair = comfy.samplers.calc_cond_batch(self.inner_model, [positive, negative], x, timestep, model_options)
        sigmas = model_options["transformer_options"]["sample_sigmas"]
        if timestep[0] in sigmas[: self.zero_steps]:
            return x
        guided = []
        for row, sigma in enumerate(timestep):
            v_c, v_u = ((x[row] - denoised[row]).double() / sigma for denoised in pair)
            s = torch.dot(v_c.flatten(), v_u.flatten()) / v_u.norm() ** 2
            guided.append(x[row] - sigma * (s * v_u + self.cfg * (v_c - s * v_u)))
        return torch.stack(guided).to(x)


@pytest.fixture(params=["SD15", "Flux"])
def world(request):
    """(MODEL, positive, negative, LATENT) of an eps and of a flow model."""
    model = tiny_networks.build(request.param)
    channels = model.model.latent_format.latent_channels
    start = {"samples": torch.zeros(2, channels, 8, 8)}
    return model, tiny_networks.positive(1, request.param), tiny_networks.positive(2, request.param), start


def shown(model, code=CODE):
    """The MODEL that the code of the page makes of `model`."""
    names = {"model": model}
    exec(compile(code, str(PAGE), "exec"), names)  # noqa: S102
    return names["model"]


def run(model, world, guider=comfy.samplers.CFGGuider, cfg=3.0, **options):
    guider = guider(model)
    for name, value in options.items():
        setattr(guider, name, value)
    guider.set_conds(*world[1:3])
    guider.set_cfg(cfg)
    return run_guider(guider, world[3], steps=4)


def test_it_is_short():
    assert len([line for line in CODE.splitlines() if line.strip()]) < 25
    read = {node.attr for node in ast.walk(ast.parse(CODE)) if isinstance(node, ast.Attribute)}
    assert {"denoised", "cond_denoised", "uncond_denoised"} <= read


@pytest.mark.parametrize("zero_steps", [0, 1, 2])
def test_it_is_the_papers_method(world, zero_steps):
    model = shown(world[0], CODE.replace(ZEROED, f"model = attach(model, CFGZeroStar({zero_steps}))"))
    expected = run(world[0], world, ByHand, zero_steps=zero_steps)
    assert torch.allclose(run(model, world), expected, rtol=1e-3, atol=1e-4 * expected.abs().max())
    assert (expected - run(world[0], world)).abs().max() > 0.01 * expected.abs().max()


def test_it_keeps_what_every_guidance_promises(world, run_node):
    counter = CallCounter(world[0])
    stock = run(world[0], world)
    model, trace = run_node("GuidanceLab_GuidanceTrace", model=shown(counter.model))
    first = run(model, world)
    assert counter.calls == 4  # no extra evaluation
    assert torch.equal(run(model, world), first) and torch.equal(run(world[0], world), stock)
    assert torch.equal(run(shown(world[0]), world, cfg=1.0), run(world[0], world, cfg=1.0))  # there is no u to scale
    terms = [{term.name: term for term in evaluation.terms} for evaluation in trace.latest.evaluations]
    assert all(set(names) == {"CFG", "CFG-Zero*"} and names["CFG-Zero*"].size > 0 for names in terms)
