"""The classifier objective: log probabilities, their gradient, and one clear sentence for a class that is not there."""

import math

import pytest
import torch

from guidance_lab.guidance.classifier import log_probability, log_tag_probability


def test_log_probability_is_the_log_softmax_of_the_class():
    logits = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    total = math.e + math.e**2 + math.e**4
    expected = torch.tensor([2 - math.log(total), -math.log(3)], dtype=torch.float64)
    torch.testing.assert_close(log_probability(logits, 1), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(log_probability(logits, [1, 2]), expected, rtol=1e-12, atol=0)
    assert log_probability(logits, [2, 0])[0] > log_probability(logits, [0, 0])[0]


def test_the_gradient_is_one_hot_minus_softmax(generator):
    logits = torch.randn(2, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(log_probability(logits, [3, 1]).sum(), logits)
    expected = torch.nn.functional.one_hot(torch.tensor([3, 1]), 5) - logits.softmax(-1)
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-12, atol=1e-12)


def test_large_half_precision_logits_stay_finite():
    logits = torch.tensor([[6e4, -6e4]], dtype=torch.float16, requires_grad=True)
    value = log_probability(logits, 1)
    assert value.dtype == torch.float32 and value.item() == pytest.approx(-120000, rel=1e-3)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert gradient.tolist() == [[-1.0, 1.0]]


def test_tags_are_independent_of_each_other():
    logits = torch.tensor([[0.0, 3.0, -2.0]], dtype=torch.float64, requires_grad=True)
    value = log_tag_probability(logits, [0, 2])
    torch.testing.assert_close(value.item(), math.log(0.5) - math.log(1 + math.e**2), rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert gradient[0, 1] == 0 and gradient[0, 0] == 0.5


def test_wrong_classes_are_named():
    logits = torch.zeros(2, 5)
    with pytest.raises(ValueError, match="Class 5 does not exist.*0 to 4"):
        log_probability(logits, 5)
    with pytest.raises(ValueError, match="Class -1 does not exist"):
        log_probability(logits, [0, -1])
    with pytest.raises(ValueError, match="3 target classes for a batch of 2"):
        log_probability(logits, [0, 1, 2])
    with pytest.raises(ValueError, match="No tags"):
        log_tag_probability(logits, [])
