"""Batch and instance norms of frozen networks: the gradient of one picture is right, however its memory is ordered."""

import itertools

import pytest
import torch

from guidance_lab.nodes.host.networks import as_patcher

CHANNELS = 64


def transposed(x: torch.Tensor) -> torch.Tensor:
    """The same values as a reshape of transposed tokens leaves them, which is what attention's backward pass gives."""
    return x.flatten(2).transpose(1, 2).contiguous().transpose(1, 2).reshape(x.shape)


ORDERS = {
    "contiguous": torch.Tensor.contiguous,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": transposed,
}
NORMS = {
    "batch": torch.nn.BatchNorm2d,
    "instance": lambda channels: torch.nn.InstanceNorm2d(channels, affine=True),
}


def norm_of(kind: str) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    norm = NORMS[kind](CHANNELS)
    torch.nn.init.normal_(norm.weight, generator=generator)
    if kind == "batch":
        norm.running_mean.normal_(generator=generator)
        norm.running_var.uniform_(0.5, 1.5, generator=generator)
    return norm


def written_out(kind: str, norm: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """weight * (x - mean) / sqrt(var + eps) + bias."""
    if kind == "batch":
        mean, var = norm.running_mean[:, None, None], norm.running_var[:, None, None]
    else:
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, correction=0)
    return norm.weight[:, None, None] * (x - mean) / (var + norm.eps).sqrt() + norm.bias[:, None, None]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", NORMS)
def test_the_gradient_is_that_of_the_formula_in_every_order_of_memory(kind, count):
    norm = as_patcher(norm_of(kind)).model
    generator = torch.Generator().manual_seed(1)
    x, gradient = torch.randn(2, count, CHANNELS, 8, 8, generator=generator)
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(written_out(kind, norm, leaf), leaf, gradient)[0]
    for order, of_gradient in itertools.product(ORDERS, ORDERS):
        leaf = ORDERS[order](x).clone().requires_grad_()
        found = torch.autograd.grad(norm(leaf), leaf, ORDERS[of_gradient](gradient))[0]
        assert torch.allclose(found, expected, atol=1e-4), (order, of_gradient)
