"""Cosine and spherical similarity: their values, their gradients' ratio, and the places where they could blow up."""

import math

import torch

from guidance_lab.guidance.similarity import cosine, spherical


def pair(angle: float) -> tuple[torch.Tensor, torch.Tensor]:
    angle = torch.tensor(angle, dtype=torch.float64)
    image = torch.stack([angle.cos(), angle.sin()])[None] * 3
    return image.requires_grad_(), torch.tensor([[2.0, 0.0]], dtype=torch.float64)


def gradient(score, image, target):
    return torch.autograd.grad(score(image, target).sum(), image)[0]


def test_values_are_the_angle_whatever_the_lengths():
    for angle in (0.3, 1.2, 2.9):
        image, target = pair(angle)
        torch.testing.assert_close(cosine(image, target).item(), math.cos(angle), rtol=1e-12, atol=0)
        torch.testing.assert_close(spherical(image, target).item(), -(angle**2) / 2, rtol=1e-9, atol=0)


def test_the_gradients_are_parallel_with_ratio_theta_over_sine():
    for value, ratio in ((0.20, 1.398), (0.35, 1.295)):
        angle = torch.tensor(value, dtype=torch.float64).acos()
        image, target = pair(angle.item())
        a, b = gradient(spherical, image, target), gradient(cosine, image, target)
        torch.testing.assert_close(a, b * angle / angle.sin(), rtol=1e-9, atol=1e-12)
        assert abs((angle / angle.sin()).item() - ratio) < 1e-3


def test_equal_and_opposite_embeddings_have_finite_gradients():
    for angle in (0.0, torch.pi):
        image, target = pair(angle)
        for kind in (torch.float64, torch.float32):
            leaf = image.detach().to(kind).requires_grad_()
            assert torch.isfinite(gradient(spherical, leaf, target.to(kind))).all()
            assert torch.isfinite(spherical(leaf, target.to(kind))).all()


def test_one_target_serves_the_batch():
    images = torch.eye(3)
    assert cosine(images, torch.tensor([[0.0, 5.0, 0.0]])).tolist() == [0.0, 1.0, 0.0]
    assert spherical(images, torch.tensor([[0.0, 5.0, 0.0]])).argmax() == 1
