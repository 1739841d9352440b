"""Damaged copies of a trained network: the guides that Karras 2024 (sec. 5.1) reports as NOT working, as negative
controls.
"""

import copy

import torch

from guidance_lab.experiments.toy.model import EnergyNet


def with_weight_noise(net: EnergyNet, relative: float, generator: torch.Generator) -> EnergyNet:
    """A copy with Gaussian noise of `relative` (0.05 = 5 %) of every layer's weight magnitude added to its weights."""
    noisy = copy.deepcopy(net)
    for layer in (noisy.input, *noisy.hidden):
        magnitude = layer.weight.square().mean().sqrt()
        layer.weight.add_(relative * magnitude * torch.randn(layer.weight.shape, generator=generator))
    return noisy


def quantised(net: EnergyNet, bits: int) -> EnergyNet:
    """A copy whose weights are rounded to `bits` bits, symmetric around zero, one scale per layer."""
    rounded = copy.deepcopy(net)
    top = 2 ** (bits - 1) - 1
    for layer in (rounded.input, *rounded.hidden):
        step = layer.weight.abs().max() / top
        layer.weight.copy_((layer.weight / step).round() * step)
    return rounded


def interpolated(net: EnergyNet, earlier: EnergyNet, share: float) -> EnergyNet:
    """A copy whose weights have moved by `share` (0 to 1) of the way to those of an earlier snapshot."""
    between = copy.deepcopy(net)
    for weight, goal in zip(between.parameters(), earlier.parameters(), strict=True):
        weight.lerp_(goal, share)
    return between


class _Dropout(EnergyNet):
    rate: float
    generator: torch.Generator

    def layer(self, index, h):
        kept = torch.rand(h.shape, generator=self.generator) >= self.rate
        return super().layer(index, h) * kept / (1 - self.rate)


class _Skipping(EnergyNet):
    skipped: int

    def layer(self, index, h):
        return h if index == self.skipped else super().layer(index, h)


class _Misinformed(EnergyNet):
    factor: float

    def noise_input(self, sigma):
        return super().noise_input(sigma * self.factor)


def _copy_as(cls: type[EnergyNet], net: EnergyNet) -> EnergyNet:
    copied = cls(net.width)
    copied.load_state_dict(net.state_dict())
    return copied.eval().requires_grad_(False)


def with_dropout(net: EnergyNet, rate: float, generator: torch.Generator) -> EnergyNet:
    """A copy that drops `rate` of the features after every hidden layer, anew at each evaluation."""
    copied = _copy_as(_Dropout, net)
    copied.rate, copied.generator = rate, generator
    return copied


def with_layer_skipped(net: EnergyNet, index: int) -> EnergyNet:
    """A copy without hidden layer `index` (0 to 3)."""
    copied = _copy_as(_Skipping, net)
    copied.skipped = index
    return copied


def told_higher_sigma(net: EnergyNet, factor: float) -> EnergyNet:
    """A copy that is told `factor` times the noise level of its input and is otherwise treated the same: self-guidance
    (arXiv:2412.05827) as the pack's Weaker Version node does it, which shifts the timestep of the network and nothing
    else.
    """
    copied = _copy_as(_Misinformed, net)
    copied.factor = factor
    return copied
