"""Aesthetic heads: the modules that LAION publishes, rebuilt of torch's own layers, and files that are none."""

import pytest
import torch
from torch import nn

from guidance_lab.guidance.aesthetic import head_of, rating

SIZES = (12, 8, 6, 5, 4, 1)


def published(kind: str, seed: int = 0) -> nn.Module:
    """The module of a published file. `linear`: V1. `plain`, `relu`: V2's `layers`, as that repository writes them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "linear":
            return nn.Linear(SIZES[0], 1).eval()
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(zip(SIZES, SIZES[1:], strict=False)):
            between = [nn.ReLU()] if kind == "relu" else []
            layers += [nn.Linear(a, b), *([*between, nn.Dropout(0.2)] if i < 3 else between if i == 3 else [])]
        whole = nn.Module()
        whole.layers = nn.Sequential(*layers)
        whole.forward = whole.layers.forward
        return whole.eval()


@pytest.mark.parametrize("kind", ["linear", "plain", "relu"])
def test_the_published_modules_give_the_same_rating_and_gradient(kind):
    module = published(kind)
    head = head_of({key: value.detach() for key, value in module.state_dict().items()})
    assert head.width == SIZES[0] and head.relu == (kind == "relu")
    embedding = (torch.randn(3, SIZES[0], generator=torch.Generator().manual_seed(1)) * 5).requires_grad_()
    unit = embedding / embedding.norm(dim=-1, keepdim=True)
    found, expected = rating(embedding, head), module(unit)[:, 0]
    assert torch.allclose(found, expected, atol=1e-6) and expected.std() > 1e-3
    own, theirs = (torch.autograd.grad(s.sum(), embedding, retain_graph=True)[0] for s in (found, expected))
    assert torch.allclose(own, theirs, atol=1e-6) and theirs.abs().max() > 1e-4


def weights(kind: str = "plain", **changed) -> dict:
    return {**{key: value.detach() for key, value in published(kind).state_dict().items()}, **changed}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"conv.weight": torch.zeros(3, 3)}, "no aesthetic head of LAION"),
        ({key: value for key, value in weights().items() if key != "layers.4.bias"}, "no aesthetic head of LAION"),
        ({**weights(), "extra": torch.zeros(1)}, "no aesthetic head of LAION"),
        (weights(**{"layers.2.weight": torch.zeros(6, 9)}), "do not follow one another"),
        (weights(**{"layers.7.bias": torch.zeros(2)}), "do not follow one another"),
        ({"weight": torch.zeros(5), "bias": torch.zeros(1)}, "do not follow one another"),
        ({"weight": torch.zeros(3, 8), "bias": torch.zeros(3)}, "gives 3 numbers"),
    ],
)
def test_what_is_no_head_is_refused(tensors, message):
    with pytest.raises(ValueError, match=message) as caught:
        head_of(tensors)
    assert "\n" not in str(caught.value)
