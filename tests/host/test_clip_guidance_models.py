"""Gradients through the model, of every architecture that people use, against finite differences of real
evaluations.
"""

import pytest
import tiny_networks
import torch
from clip_tools import RGB, QuadraticScorer, guide, one_evaluation

from guidance_lab.guidance.crops import whole_view
from guidance_lab.guidance.cross_modal import blend
from guidance_lab.guidance.frames import flow, ve
from guidance_lab.nodes.host.decode import make_decoder

LUMINA = dict(
    image_model="lumina2", patch_size=2, in_channels=16, dim=72, n_layers=2, n_refiner_layers=1, n_heads=3,
    n_kv_heads=3, qk_norm=True,
    cap_feat_dim=24, axes_dims=[8, 8, 8], axes_lens=[30, 32, 32], rope_theta=10000.0, ffn_dim_multiplier=4.0,
)  # fmt: skip
# name -> sigma in the middle of its own schedule
SIGMAS = {"SD15": 2.0, "SDXL": 2.0, "SD3": 0.6, "Flux": 0.6, "Lumina2": 0.6, "WAN21_T2V": 0.6, "QwenImage": 0.6}


def build(name: str, inference: bool):
    with torch.inference_mode(inference):
        return tiny_networks.build(name, config=LUMINA if name == "Lumina2" else None)


@pytest.mark.parametrize("blended", ["UPainting", "x0"])
@pytest.mark.parametrize("name", SIGMAS)
def test_through_the_model_agrees_with_finite_differences(run_node, name, blended):
    model = build(name, inference=blended == "x0")
    sigma, cfg = SIGMAS[name], 3.0
    conds = tiny_networks.positive(1, name), tiny_networks.positive(2, name)
    scorer = QuadraticScorer(side=8)
    decoder = make_decoder(RGB, model)
    x = sigma * tiny_networks.noisy(model, batch=1, height=8, width=8)
    direction = tiny_networks.noisy(model, batch=1, height=8, width=8, seed=9)
    frame = ve if name in ("SD15", "SDXL") else flow
    level = frame(sigma, x)

    def score(at):
        denoised = one_evaluation(model, at, sigma, *conds, cfg=cfg)
        seen = blend(at, denoised, level) if blended == "UPainting" else denoised
        return scorer.score(whole_view(decoder.decode(seen), 8), None).double().item()

    guided = guide(run_node, model, scorer, size="exact", strength=1.0, gradient="through model", blend=blended)
    unguided = one_evaluation(model, x, sigma, *conds, cfg=cfg)
    shift = one_evaluation(guided, x, sigma, *conds, cfg=cfg) - unguided
    gradient = shift * level.alpha / level.sigma**2
    step = 1e-2
    difference = (score(x + step * direction) - score(x - step * direction)) / (2 * step)
    assert abs(difference) > 1e-3
    assert (gradient * direction).sum().item() == pytest.approx(difference, rel=1e-2)
