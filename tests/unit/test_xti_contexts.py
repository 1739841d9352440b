"""Contexts of a per-layer prompt: repetition, stacking, strength."""

import pytest
import torch
from reference.contexts import stack

from guidance_lab.xti import contexts


def attention(query: torch.Tensor, context: torch.Tensor, weights: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    key, value = (context @ weight for weight in weights)
    return torch.softmax(query @ key.transpose(1, 2) / query.shape[-1] ** 0.5, dim=-1) @ value


@pytest.fixture
def attend(generator):
    query = torch.randn(2, 9, 8, generator=generator, dtype=torch.float64)
    weights = tuple(torch.randn(6, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    return lambda context: attention(query, context, weights)


def test_repetition_leaves_attention_unchanged_and_zeros_do_not(attend, generator):
    context = torch.randn(2, 7, 6, generator=generator, dtype=torch.float64)
    expected = attend(context)
    assert torch.allclose(attend(contexts.repeat_to(context, 21)), expected, rtol=0, atol=1e-13)
    zeros = torch.cat([context, torch.zeros(2, 14, 6, dtype=torch.float64)], dim=1)
    assert (attend(zeros) - expected).abs().max() > 1e-2


def test_stack_repeats_every_layer_to_the_least_common_multiple(attend, generator):
    parts = [torch.randn(2, tokens, 6, generator=generator, dtype=torch.float64) for tokens in (2, 3, 6, 4)]
    stacked = stack(parts)
    assert stacked.shape == (2, 4, 12, 6)
    for layer, part in enumerate(parts):
        assert torch.equal(stacked[:, layer, : part.shape[1]], part)
        assert torch.allclose(attend(stacked[:, layer]), attend(part), rtol=0, atol=1e-13)


def test_equal_lengths_are_stacked_as_they_are(generator):
    parts = [torch.randn(1, 77, 6, generator=generator) for _ in range(16)]
    assert torch.equal(stack(parts), torch.stack(parts, dim=1))
    assert contexts.repeat_to(parts[0], 77) is parts[0]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([], "at least one layer"),
        ([(1, 77, 6), (2, 77, 6)], "layer 1"),
        ([(1, 77, 6), (1, 77, 6), (1, 77, 8)], r"layer 2 is \(1, 77, 8\)"),
        ([(1, 511, 6), (1, 512, 6)], "511, 512 tokens only meet at 261632"),
    ],
)
def test_stack_refuses(shapes, message):
    with pytest.raises(ValueError, match=message):
        stack([torch.zeros(shape) for shape in shapes])


def test_repeat_refuses_a_length_that_cuts_the_context():
    for length in (100, 33):
        with pytest.raises(ValueError, match=f"77 tokens cannot be repeated to {length}"):
            contexts.repeat_to(torch.zeros(1, 77, 4), length)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_strength_zero_and_one_are_exact(dtype, generator):
    base, own = (torch.randn(1, 5, 4, generator=generator).to(dtype) for _ in range(2))
    assert torch.equal(contexts.weighted(base, own, 0.0), base)
    assert torch.equal(contexts.weighted(base, own, 1.0), own)
    longer = own.repeat(1, 3, 1)
    assert (
        contexts.weighted(base, longer, 0.0) is base and contexts.weighted(base, longer, 1.0) is longer
    )  # not even repeated


def test_strength_blends_and_extrapolates(generator):
    base, own = (torch.randn(1, tokens, 4, generator=generator, dtype=torch.float64) for tokens in (2, 3))
    for strength in (0.25, 1.5, -0.5):
        expected = base.repeat(1, 3, 1) + strength * (own.repeat(1, 2, 1) - base.repeat(1, 3, 1))
        assert torch.allclose(contexts.weighted(base, own, strength), expected, rtol=0, atol=1e-14)
