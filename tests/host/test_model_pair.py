"""Autoguidance Model Pair against eq. 6 written out in a guider, against core's guiders, and its neutral settings."""

import comfy.samplers
import pytest
import torch
from pair_tools import CallCounter, PaperGuider, pair, run_guider

SAMPLERS = ["euler", "heun", "dpm_2", "dpmpp_2m", "dpmpp_sde"]


@pytest.mark.parametrize("sampler_name", SAMPLERS)
def test_equals_equation_6_in_ksampler(tiny_model, tiny_model_b, cond, latent, sample, run_node, sampler_name):
    positive, negative, start = cond(1), cond(2), latent(batch=2)
    guided = sample(pair(run_node, tiny_model, tiny_model_b, 1.7), positive, negative, start, sampler_name, cfg=3.0)
    guider = PaperGuider(tiny_model, tiny_model_b, w_u=3.0, w_c=1.7)
    guider.set_conds(positive, negative)
    assert torch.equal(guided, run_guider(guider, start, sampler_name))
    assert not torch.equal(guided, sample(tiny_model, positive, negative, start, sampler_name, cfg=3.0))
