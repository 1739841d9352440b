"""Tiny networks with random weights, and what the tests of objectives share: scores, gradients, finite differences."""

import json

import open_clip
import torch
from tiny_scorers import randomized

from guidance_lab.guidance.frames import NoiseLevel
from guidance_lab.nodes.clip_guidance.objective import ScoringStep

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 16}
CONFIG = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}


def register_config(folder, name: str, config: dict) -> None:
    """Makes open_clip know an architecture of our own, as its users do."""
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{name}.json")


def tiny_clip(seed: int = 0, **options) -> open_clip.CLIP:
    """An open_clip model of CONFIG with random weights; drawn from a generator of its own."""
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        return randomized(open_clip.CLIP(**{**CONFIG, **options}), seed)


def pictures(batch: int, side: int, seed: int = 0) -> torch.Tensor:
    """Views [B, 3, side, side] in 0..1."""
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def scoring_step(seed: int = 0, sigma: float = 1.0) -> ScoringStep:
    """A step of a VE run at `sigma`."""
    return ScoringStep(NoiseLevel(torch.ones(1), torch.full((1,), float(sigma))), torch.Generator().manual_seed(seed))


def gradient(scorer, view: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """As the guidance takes it: a leaf outside inference mode, although nodes and samplers run inside."""
    with torch.inference_mode(), torch.no_grad(), torch.inference_mode(False), torch.enable_grad():
        leaf = view.clone().requires_grad_()
        return torch.autograd.grad(scorer.score(leaf, scoring_step(seed)).sum(), leaf)[0]


def check_gradient(scorer, view: torch.Tensor, step: float = 1e-2, tolerance: float = 1e-2) -> None:
    """The gradient equals central differences, relative to `tolerance`, along itself and along itself with random gains
    for tiles.
    """
    own = gradient(scorer, view)
    gains = torch.rand(len(view), 3, 4, 4, generator=torch.Generator().manual_seed(7)) * 3
    for direction in (own, own * torch.nn.functional.interpolate(gains, view.shape[-2:])):
        direction = direction / direction.norm()

        def slope(h, direction=direction):
            above, below = (
                float(scorer.score(view + sign * h * direction, scoring_step()).double().sum()) for sign in (1, -1)
            )
            return (above - below) / (2 * h)

        found, expected = float((own * direction).sum()), (4 * slope(step / 2) - slope(step)) / 3
        assert expected > 0 and abs(found - expected) < tolerance * expected, (found, expected)


def check_batch(scorer, side: int) -> None:
    """A batch of two scores, and pulls, as two singles do."""
    view = pictures(2, side)
    singles = [view[i : i + 1] for i in range(2)]
    assert torch.allclose(
        scorer.score(view, scoring_step()), torch.cat([scorer.score(one, scoring_step()) for one in singles]), atol=1e-5
    )
    together, apart = gradient(scorer, view), torch.cat([gradient(scorer, one) for one in singles])
    assert torch.allclose(together, apart, atol=1e-5 * float(apart.abs().max()) + 1e-9)
