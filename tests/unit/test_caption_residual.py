"""Caption residual: plain CFG when the caption says the prompt, linear in b, the same in every parameterization, the
right sign.
"""

import pytest
import torch
from reference import frames
from reference.caption_residual import cfg
from unit.gaussian import FRAMES

from guidance_lab.guidance.caption_residual import caption_residual, same_caption

SHAPE = (2, 4, 8, 8)


@pytest.fixture
def estimates(generator):
    return torch.randn(3, *SHAPE, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_caption_that_says_the_prompt_is_cfg_to_the_bit(estimates, dtype):
    cond, uncond, caption = estimates.to(dtype)
    guided = cfg(cond, uncond, 7.5)
    assert torch.equal(guided, uncond + (cond - uncond) * 7.5)
    assert torch.equal(caption_residual(guided, cond, cond.clone(), 3.3), guided)
    assert torch.equal(caption_residual(guided, cond, caption, 0.0), guided)
    assert not torch.equal(caption_residual(guided, cond, caption, 3.3), guided)


def test_it_is_the_formula_of_the_papers_scale(estimates):
    """D_c + s(D_c - D_uc) - b(D_b - D_c) with cfg = 1 + s."""
    cond, uncond, caption = estimates.double()
    s, b = 6.5, 1.25
    got = caption_residual(cfg(cond, uncond, 1 + s), cond, caption, b)
    torch.testing.assert_close(got, cond + s * (cond - uncond) - b * (caption - cond), rtol=1e-12, atol=1e-12)


def test_a_negative_prompt_that_is_the_caption_does_the_same(estimates):
    """With D_uc = D_b the residual only raises the cfg scale by b: it is guidance away from the caption."""
    cond, caption, _ = estimates.double()
    got = caption_residual(cfg(cond, caption, 3.0), cond, caption, 1.5)
    torch.testing.assert_close(got, cfg(cond, caption, 4.5), rtol=1e-12, atol=1e-12)


def test_linear_in_the_weight(estimates):
    cond, uncond, caption = estimates.double()
    guided = cfg(cond, uncond, 4.0)
    one, three = (caption_residual(guided, cond, caption, b) - guided for b in (1.0, 3.0))
    torch.testing.assert_close(three, 3 * one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("kind", ["eps", "v", "velocity"])
def test_the_same_in_eps_v_and_velocity(estimates, frame, kind, generator):
    x = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    level = FRAMES[frame](x)

    def guide(cond, uncond, caption):
        return caption_residual(cfg(cond, uncond, 7.0), cond, caption, 2.0)

    predictions = [getattr(frames, f"{kind}_from_denoised")(x, d, level) for d in estimates.double()]
    got = getattr(frames, f"denoised_from_{kind}")(x, guide(*predictions), level)
    torch.testing.assert_close(got, guide(*estimates.double()), rtol=1e-10, atol=1e-10)


def test_captions_are_compared_without_case_space_and_end_punctuation():
    assert same_caption(" A red cube,\n on a  table. ", "a red cube, on a table")
    assert same_caption("Été", "été")
    assert not same_caption("a red cube", "a red cubes")
    assert not same_caption("a red cube, a ball", "a red cube a ball")
