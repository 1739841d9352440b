"""The likelihood objective: the mean and the sum of log-softmaxes by hand, its gradient, and what is not counted."""

import math

import pytest
import torch

from guidance_lab.guidance.likelihood import CAPTION, TOKEN, log_likelihood


@pytest.fixture
def case(generator):
    """(logits [2, 3, 4], tokens, mask): three tokens, and two of three."""
    logits = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    return logits, torch.tensor([[0, 3, 1], [2, 2, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])


def by_hand(logits, tokens, counted):
    """Sum over the counted tokens of log(exp l[c] / sum exp l), number by number."""
    sums = []
    for row, ids, mask in zip(logits.tolist(), tokens.tolist(), counted.tolist(), strict=True):
        sums.append(
            sum(
                line[i] - math.log(sum(math.exp(v) for v in line))
                for line, i, m in zip(row, ids, mask, strict=True)
                if m
            )
        )
    return torch.tensor(sums, dtype=torch.float64)


def test_a_caption_is_the_sum_and_a_token_the_mean(case):
    expected = by_hand(*case)
    torch.testing.assert_close(log_likelihood(*case, per=CAPTION), expected, rtol=1e-12, atol=0)
    lengths = torch.tensor([3, 2])
    torch.testing.assert_close(log_likelihood(*case, per=TOKEN), expected / lengths, rtol=1e-12, atol=0)


def test_the_gradient_is_one_hot_minus_softmax_where_it_is_counted(case):
    logits, tokens, counted = case
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_likelihood(leaf, tokens, counted, CAPTION).sum(), leaf)
    expected = (torch.nn.functional.one_hot(tokens, 4) - logits.softmax(-1)) * counted[..., None]
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
    assert gradient[1, 2].abs().max() == 0


def test_padding_changes_nothing_whatever_it_holds(case):
    logits, tokens, counted = case
    expected = log_likelihood(logits, tokens, counted)
    filled, odd = logits.clone(), tokens.clone()
    filled[1, 2], odd[1, 2] = torch.tensor([math.nan, math.inf, -math.inf, 0.0]), 99
    leaf = filled.requires_grad_()
    value = log_likelihood(leaf, odd, counted)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    assert torch.equal(value.detach(), expected) and torch.isfinite(gradient).all()


def test_half_precision_logits_are_counted_in_float32():
    logits = torch.tensor([[[6e4, -6e4]]], dtype=torch.float16, requires_grad=True)
    value = log_likelihood(logits, torch.tensor([[1]]), torch.ones(1, 1))
    assert value.dtype == torch.float32 and value.item() == pytest.approx(-120000, rel=1e-3)


def test_what_does_not_fit_is_refused(case):
    logits, tokens, counted = case
    with pytest.raises(ValueError, match="do not belong together"):
        log_likelihood(logits[:, :2], tokens, counted)
    with pytest.raises(ValueError, match="Unknown unit 'word'"):
        log_likelihood(*case, per="word")
    with pytest.raises(ValueError, match="without a single token"):
        log_likelihood(logits, tokens, torch.zeros(2, 3))
