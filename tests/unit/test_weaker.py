"""The damage of Weaker Version as pure functions: limits, closed forms, and randomness that depends on seed and sigma
alone.
"""

import math

import pytest
import torch

from guidance_lab.guidance import weaker


def test_step_generator_depends_on_seed_and_sigma_only():
    def draw(seed, sigma):
        return torch.rand(4, generator=weaker.step_generator(seed, sigma)).tolist()

    state = torch.random.get_rng_state()
    assert draw(1, 0.5) == draw(1, 0.5)
    assert draw(1, 0.5) != draw(2, 0.5)
    assert draw(1, 0.5) != draw(1, 0.25)
    assert draw(2**64 - 1, 14.6) == draw(2**64 - 1, 14.6)
    assert torch.equal(torch.random.get_rng_state(), state), "the global random state was touched"
    # Pinned: another draw would change what saved workflows make.
    assert draw(0, 1.0) == pytest.approx([0.397557616, 0.385430396, 0.870610774, 0.085080147], abs=1e-8)


def test_choose_blocks_counts_and_order():
    blocks = list(range(22))
    drawn = weaker.choose_blocks(blocks, 0.1, weaker.step_generator(3, 1.0))
    assert len(drawn) == 2 and drawn == sorted(drawn) and set(drawn) <= set(blocks)
    assert weaker.choose_blocks(blocks, 0.0, weaker.step_generator(3, 1.0)) == []
    assert weaker.choose_blocks([], 0.5, weaker.step_generator(3, 1.0)) == []
    assert weaker.choose_blocks(blocks, 1.0, weaker.step_generator(3, 1.0)) == blocks
    assert len(weaker.choose_blocks([1, 2, 3], 0.01, weaker.step_generator(3, 1.0))) == 1, "one block at least"
    with pytest.raises(ValueError, match="drop fraction 1.5"):
        weaker.choose_blocks(blocks, 1.5, weaker.step_generator(3, 1.0))


def test_choose_blocks_is_uniform():
    counts = torch.zeros(10)
    for step in range(2000):
        counts[weaker.choose_blocks(range(10), 0.2, weaker.step_generator(step, 0.5))] += 1
    assert counts.sum() == 4000
    assert (counts / 400 - 1).abs().max() < 0.2  # 4.4 standard deviations of a fair draw


def masked_attention(q, k, v, text, extra_mask=None, scale=None):
    """The definition: softmax over everything, with the image-to-image part set to minus infinity off the diagonal."""
    tokens = q.shape[-2]
    mask = torch.zeros(tokens, tokens)
    mask[text:, text:] = torch.where(torch.eye(tokens - text, dtype=torch.bool), 0.0, -math.inf)
    if extra_mask is not None:
        mask = mask + extra_mask
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return (q @ k.transpose(-1, -2) * scale + mask).softmax(-1) @ v


def test_identity_attention_without_text_is_the_values(generator):
    q, k, v = torch.randn(3, 2, 4, 9, 8, generator=generator)
    assert torch.equal(weaker.identity_attention(q, k, v, 0), v)


@pytest.mark.parametrize("text", [1, 3])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_identity_attention_beside_text_is_a_masked_attention(generator, text, scale):
    q, k, v = 2 * torch.randn(3, 2, 4, 9, 8, generator=generator)
    expected = masked_attention(q, k, v, text, scale=scale)[..., text:, :]
    assert torch.allclose(weaker.identity_attention(q, k, v, text, scale=scale), expected, atol=1e-6)


def test_identity_attention_keeps_a_mask(generator):
    q, k, v = 2 * torch.randn(3, 2, 4, 9, 8, generator=generator)
    additive = torch.randn(2, 1, 9, 9, generator=generator)
    allowed = torch.ones(9, 9, dtype=torch.bool)
    allowed[:, 1] = False
    hidden = torch.zeros(9, 9).masked_fill(~allowed, -math.inf)
    assert torch.allclose(
        weaker.identity_attention(q, k, v, 3, additive), masked_attention(q, k, v, 3, additive)[..., 3:, :], atol=1e-6
    )
    assert torch.allclose(
        weaker.identity_attention(q, k, v, 3, allowed), masked_attention(q, k, v, 3, hidden)[..., 3:, :], atol=1e-6
    )
    one_row = additive[:, :, :1]
    assert torch.allclose(
        weaker.identity_attention(q, k, v, 3, one_row), masked_attention(q, k, v, 3, one_row)[..., 3:, :], atol=1e-6
    )


def test_gaussian_rows():
    rows = weaker.gaussian_rows(7, 1.3)
    assert torch.allclose(rows.sum(1), torch.ones(7))
    assert rows[3, 2] / rows[3, 3] == pytest.approx(math.exp(-1 / (2 * 1.3**2)), rel=1e-6)
    assert torch.allclose(weaker.gaussian_rows(7, 0.01), torch.eye(7))
    assert torch.equal(weaker.gaussian_rows(8, weaker.INFINITE_BLUR), torch.full((8, 8), 1 / 8))


def test_infinite_blur_is_the_mean_query(generator):
    q = torch.randn(2, 4, 12, 5, generator=generator)
    blurred = weaker.blur_queries(q, (4, 3), weaker.INFINITE_BLUR)
    assert torch.allclose(blurred, q.mean(-2, keepdim=True).expand_as(q), atol=1e-6)
    assert torch.allclose(weaker.blur_queries(q, (4, 3), 5000.0), blurred, atol=1e-5), (
        "the limit is reached continuously"
    )


def test_blur_leaves_constants_and_zero_sigma_alone(generator):
    q = torch.randn(1, 12, 5, generator=generator)
    assert weaker.blur_queries(q, (4, 3), 0.0) is q
    constant = torch.full((1, 12, 5), 3.0)
    assert torch.allclose(weaker.blur_queries(constant, (4, 3), 1.5), constant)
    assert torch.allclose(weaker.blur_queries(q, (4, 3), 0.01), q)


def test_blur_is_row_major_and_two_dimensional():
    q = torch.zeros(1, 12, 1)
    q[0, 4] = 1.0  # row 1, column 1 of a 4 x 3 grid
    blurred = weaker.blur_queries(q, (4, 3), 0.8)[0, :, 0].reshape(4, 3)
    expected = torch.outer(weaker.gaussian_rows(4, 0.8)[:, 1], weaker.gaussian_rows(3, 0.8)[:, 1])
    assert torch.allclose(blurred, expected, atol=1e-7)


def test_blur_touches_only_the_grid(generator):
    q = torch.randn(2, 3, 20, 5, generator=generator)
    blurred = weaker.blur_queries(q, (4, 3), 2.0, first=5)
    assert torch.equal(blurred[..., :5, :], q[..., :5, :]) and torch.equal(blurred[..., 17:, :], q[..., 17:, :])
    assert torch.equal(blurred[..., 5:17, :], weaker.blur_queries(q[..., 5:17, :], (4, 3), 2.0))
    assert weaker.blur_queries(q.half(), (4, 3), 2.0).dtype == torch.float16
    with pytest.raises(ValueError, match="grid of 5 x 5 tokens does not fit in 20"):
        weaker.blur_queries(q, (5, 5), 2.0)
    with pytest.raises(ValueError, match="negative"):
        weaker.blur_queries(q, (4, 3), -1.0)


def test_token_order_is_a_permutation():
    order = weaker.token_order(50, weaker.step_generator(1, 1.0))
    assert sorted(order.tolist()) == list(range(50))
    assert order.tolist() != list(range(50))
    assert torch.equal(order, weaker.token_order(50, weaker.step_generator(1, 1.0)))


def test_shifted_sigma():
    sigma = torch.tensor([0.5, 0.95, 1.0])
    assert torch.allclose(weaker.shifted_sigma(sigma, 0.1, 1.0), torch.tensor([0.55, 1.0, 1.0]))
    assert torch.equal(weaker.shifted_sigma(sigma, 0.0, 1.0), sigma)
    beyond = torch.tensor([20.0])
    assert torch.equal(weaker.shifted_sigma(beyond, 0.1, 14.6), beyond), "never lower than the true noise level"
    with pytest.raises(ValueError, match="negative"):
        weaker.shifted_sigma(sigma, -0.1, 1.0)


def test_blend_strengths():
    assert weaker.blend_strengths(0.25) == (0.75, 0.25)
    with pytest.raises(ValueError, match="outside 0..1"):
        weaker.blend_strengths(1.01)
    with pytest.raises(ValueError, match="outside 0..1"):
        weaker.blend_strengths(math.nan)
