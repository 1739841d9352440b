"""Parts of the generator against closed forms, and its promises to callers: bits, callbacks, gradients, bad input."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from galip_formula import build

from guidance_lab import galip
from guidance_lab.galip.fast import four_phase_conv, phase_kernels
from guidance_lab.galip.layers import DFBlock, upsample

TINY = galip.Dims(
    nz=12,
    cond_dim=20,
    code_channels=8,
    code_hidden=4,
    bridge_blocks=2,
    clip_width=64,
    clip_layers=4,
    clip_patch=8,
    prompts=2,
    channels=((16, 16), (16, 16), (16, 8)),
    sizes=(8, 16, 28),
)


@pytest.fixture
def model() -> galip.Generator:
    return build(galip.Generator, "netG.", TINY).double().eval()


@pytest.fixture
def batch(generator) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.randn(3, 12, generator=generator, dtype=torch.float64),
        torch.randn(3, 20, generator=generator, dtype=torch.float64),
    )


@pytest.mark.parametrize(
    "size_in, size_out, expected",
    [
        (7, 8, [0, 0, 1, 2, 3, 4, 5, 6]),
        (8, 16, [i // 2 for i in range(16)]),
        (128, 224, [4 * i // 7 for i in range(224)]),
    ],
)
def test_nearest_index_map(size_in, size_out, expected):
    columns = torch.arange(size_in, dtype=torch.float32).expand(1, 1, size_in, size_in)
    assert upsample(columns, size_out)[0, 0, 0].int().tolist() == expected
    assert upsample(columns.mT.contiguous(), size_out)[0, 0, :, 0].int().tolist() == expected


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_four_phases_equal_upsampling_then_convolution(generator, memory_format):
    x = torch.randn(2, 5, 6, 7, generator=generator, dtype=torch.float64).contiguous(memory_format=memory_format)
    weight = torch.randn(4, 5, 3, 3, generator=generator, dtype=torch.float64)
    bias = torch.randn(4, generator=generator, dtype=torch.float64)
    expected = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)
    result = four_phase_conv(x, phase_kernels(weight), bias)
    torch.testing.assert_close(result, expected)
    assert result.is_contiguous(memory_format=memory_format)


def test_taps_that_meet_are_rounded_once(generator):
    weight = torch.randn(4, 5, 3, 3, generator=generator).to(torch.bfloat16)
    assert torch.equal(phase_kernels(weight), phase_kernels(weight.double()).to(torch.bfloat16))


def test_modulation_commutes_with_nearest(generator):
    block = DFBlock(4, 3)
    x = torch.randn(2, 3, 7, 7, generator=generator)
    modulations = [
        (torch.randn(2, 3, 1, 1, generator=generator), torch.randn(2, 3, 1, 1, generator=generator)) for _ in range(2)
    ]
    assert torch.equal(upsample(block(x, modulations, galip.FAST), 8), block(upsample(x, 8), modulations, galip.FAST))


def test_fresh_affines_ignore_the_condition(generator):
    fresh = galip.Generator(TINY)
    for gamma, beta in fresh.modulations(torch.randn(2, 32, generator=generator)):
        assert torch.equal(gamma, torch.ones_like(gamma)) and torch.equal(beta, torch.zeros_like(beta))


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_gradients_of_the_fast_path(model, batch, mode):
    """Derived weights must not hide parameters from a gradient; the frozen CLIP gets none."""
    gradients = []
    for fast in (galip.PLAIN, galip.FAST):
        model.fast = fast
        model.train(mode)
        noise = batch[0].clone().requires_grad_()
        model.zero_grad()
        model(noise, batch[1]).square().mean().backward()
        gradients.append(
            {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None} | {"noise": noise.grad}
        )
    plain, fast = gradients
    trainable = {name for name, _ in model.named_parameters() if "CLIP_ViT" not in name}
    assert plain.keys() == fast.keys() == trainable | {"noise"}
    for name in plain:
        torch.testing.assert_close(fast[name], plain[name])


def test_derived_weights_follow_the_parameters(model, batch):
    with torch.no_grad():
        before = model(*batch)
        changed = {name: value * 1.5 for name, value in model.state_dict().items()}
        model.load_state_dict(changed)
        after = model(*batch)
        model.fast = galip.PLAIN
        torch.testing.assert_close(after, model(*batch))
        assert not torch.allclose(before, after)
        model.fast = galip.FAST
        half = copy.deepcopy(model).to(torch.float32)
        assert half.hidden_weight.dtype == half.GBlocks[1].phases.dtype == torch.float32
        assert model.train().hidden_weight is None and model.GBlocks[1].phases is None


def test_derived_weights_are_not_saved(model):
    assert model.hidden_weight is not None
    assert model.state_dict().keys() == galip.Generator(TINY).state_dict().keys()


def test_inference_mode(model, batch):
    with torch.inference_mode():
        loaded = galip.load_generator(model.state_dict(), torch.float64, sizes=TINY.sizes)
        assert torch.equal(loaded(*batch), model(*batch))


def test_callback_between_micro_batches(model, batch):
    calls = []
    with torch.no_grad():
        model(*batch, callback=lambda done, total: calls.append((done, total)))
        model(*batch, micro_batch_size=2, callback=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3), (2, 3), (3, 3)]


def test_interrupt(model, batch):
    class Interrupted(Exception):
        pass

    runs = []
    model.to_rgb.register_forward_hook(lambda *_: runs.append(1))

    def stop(done, total):
        if done == 2:
            raise Interrupted

    with torch.no_grad(), pytest.raises(Interrupted):
        model(*batch, callback=stop)
    assert len(runs) == 2


def test_image_has_the_dtype_of_the_noise(model, batch):
    noise, sentence = batch
    with torch.no_grad():
        image = model.to(torch.bfloat16)(noise.float(), sentence)
    assert image.dtype == torch.float32 and image.shape == (3, 3, 28, 28)


@pytest.mark.parametrize(
    "noise, sentence, words",
    [
        ((2, 11), (2, 20), r"noise.*\[2, 11\].*\[batch, 12\]"),
        ((2, 12), (2, 768), r"sentence embedding.*768.*20"),
        ((2, 12), (2, 1, 20), "sentence embedding"),
        ((2, 12), (1, 20), "2 noise vectors and 1"),
        ((0, 12), (0, 20), "at least one"),
    ],
)
def test_wrong_input_is_refused(model, noise, sentence, words):
    with pytest.raises(ValueError, match=words):
        model(torch.zeros(noise), torch.zeros(sentence))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"clip_width": 80}, "80"),
        ({"prompts": 4}, "at most 3"),
        ({"sizes": (8, 16)}, "3 blocks"),
        ({"sizes": (8, 0, 28)}, "positive"),
        ({"channels": ((16, 16), (8, 16), (16, 8))}, "GBlocks.0.*GBlocks.1"),
    ],
)
def test_impossible_sizes_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(TINY, **change)
