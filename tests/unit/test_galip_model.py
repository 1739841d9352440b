"""The full-size generator against the official code's numbers: every stage, every precision, every optimization, every
mistake.
"""

import copy
import functools
import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from galip_formula import build, inputs
from safetensors.torch import load_file

from guidance_lab import galip
from guidance_lab.galip import clip, layers
from guidance_lab.galip import generator as generator_module

FIXTURES = Path(__file__).parent.parent / "fixtures/galip"
GOLDEN = load_file(FIXTURES / "golden.safetensors")
STAGES = [
    "fc_code",
    "mapping.FBlocks.3",
    "mapping.conv_fuse",
    "mapping.CLIP_ViT",
    "mapping",
    *(f"GBlocks.{i}" for i in range(6)),
]
OPTIMIZATIONS = [field.name for field in fields(galip.Fast)]
TOLERANCE = 1e-5


def rel_rms(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value.double() - reference.double()).norm() / reference.double().norm())


def sampled(value: torch.Tensor) -> torch.Tensor:
    """The part of a stage that was recorded."""
    return value[:, ::16] if value.ndim == 2 or value.shape[-1] <= 8 else value[:, ::16, ::8, ::8]


def image_error(image: torch.Tensor) -> float:
    return rel_rms(image[:, :, ::7, ::7], GOLDEN["image"][: len(image)])


@pytest.fixture(scope="module")
def model() -> galip.Generator:
    """Full size, formula weights, built once; a test that changes it changes it back."""
    torch.set_num_threads(1)
    model = build(galip.Generator, "netG.").requires_grad_(False)
    model.GBlocks.to(memory_format=torch.channels_last)
    return model


@pytest.fixture
def plain(model, monkeypatch) -> galip.Generator:
    monkeypatch.setattr(model, "fast", galip.PLAIN)
    return model


@pytest.fixture(scope="module")
def plain_image(model) -> torch.Tensor:
    model.fast = galip.PLAIN
    with torch.no_grad():
        image = model(*inputs(1))
    model.fast = galip.FAST
    return image


def test_formula_weights(model):
    checks = json.loads((FIXTURES / "golden.json").read_text())["weights_check"]
    for key, total in checks.items():
        assert float(model.state_dict()[key.removeprefix("netG.")].double().sum()) == pytest.approx(total, abs=1e-7)


@pytest.mark.parametrize("fast", [galip.PLAIN, galip.FAST], ids=["plain", "fast"])
def test_every_stage(model, monkeypatch, fast):
    monkeypatch.setattr(model, "fast", fast)
    seen = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.__setitem__(name, out))
        for name in STAGES
    ]
    with torch.no_grad():
        image = model(*inputs(), micro_batch_size=2)
    for hook in hooks:
        hook.remove()
    errors = {name: rel_rms(sampled(seen[name]), GOLDEN[name]) for name in STAGES} | {"image": image_error(image)}
    assert max(errors.values()) < TOLERANCE, errors
    statistics = json.loads((FIXTURES / "golden.json").read_text())["image"]
    assert list(image.shape) == statistics["shape"] and image.dtype == torch.float32
    assert (float(image.min()), float(image.max())) == pytest.approx((statistics["min"], statistics["max"]), rel=1e-4)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 5e-2), (torch.float16, 5e-3)])
def test_half_precision(model, dtype, tolerance):
    half = copy.deepcopy(model).to(dtype).eval()
    with torch.no_grad():
        image = half(*inputs(1))
    assert image.dtype == torch.float32
    assert 1e-5 < image_error(image) < tolerance


@pytest.mark.parametrize(
    "names",
    [["affine_first"], ["affine_first", "four_phase"], *([name] for name in OPTIMIZATIONS[2:]), OPTIMIZATIONS],
    ids=lambda names: "all" if names == OPTIMIZATIONS else names[-1],
)
def test_optimization_is_exact(model, plain_image, monkeypatch, names):
    monkeypatch.setattr(model, "fast", galip.Fast(**{name: name in names for name in OPTIMIZATIONS}))
    with torch.no_grad():
        assert rel_rms(model(*inputs(1)), plain_image) < 2e-6


def test_micro_batches_give_the_bits_of_single_images(model):
    noise, sentence = inputs()
    with torch.no_grad():
        both = model(noise, sentence)
        assert torch.equal(both[1:], model(noise[1:], sentence[1:]))
        assert rel_rms(model(noise, sentence, micro_batch_size=2), both) < 2e-6


# Deliberate mistakes. Each changes the plain path in one way; all must be far outside the tolerance.


def mapper(first=1, drop=slice(0, -1)):
    """CLIPMapper.forward with a chosen first prompted block and a choice of the tokens that are kept; the defaults are
    right.
    """

    def forward(self, features, prompts, fast):
        x = self.tokens(features)
        for index, block in enumerate(self.transformer.resblocks):
            if first <= index < first + prompts.shape[1]:
                x = block(torch.cat((x, prompts[:, index - first, None]), dim=1))[:, drop]
            else:
                x = block(x)
        return self.patches(x[:, 1:])

    return forward


def prompts_become(change):
    def mutate(model, patch):
        right = generator_module.CLIPMapper.forward
        patch.setattr(
            generator_module.CLIPMapper,
            "forward",
            lambda self, features, prompts, fast: right(self, features, change(prompts), fast),
        )

    return mutate


def prompt_without_norm(model, patch):
    def forward(self, x, seen=None, causal=False):
        queries = self.ln_1(x)
        keys = queries if seen is None else torch.cat((queries, seen), dim=1)
        x = x + self.attn(queries, keys, causal)
        return x + self.mlp(self.ln_2(x))

    patch.setattr(model, "fast", galip.Fast(kv_prompts=True))
    for block in model.mapping.CLIP_ViT.transformer.resblocks[1:9]:
        patch.setattr(block, "forward", functools.partial(forward, block))


def condition_order(model, patch):
    swap = lambda cond: cond.roll(-100, dims=1)  # noqa: E731
    modulations = galip.Generator.modulations
    linear = model.mapping.fc_prompt
    patch.setattr(galip.Generator, "modulations", lambda self, cond: modulations(self, swap(cond)))
    patch.setattr(linear, "forward", lambda cond: F.linear(swap(cond), linear.weight, linear.bias))


def other_slope(model, patch):
    patch.setattr(layers, "SLOPE", 0.1)
    patch.setattr(model.to_rgb[0], "negative_slope", 0.1)


def doubled_sizes(model, patch):
    for block, size in zip(model.GBlocks, (14, 28, 56, 112, 224, 224), strict=True):
        patch.setattr(block, "size", size)


def upsampling(mode):
    return lambda model, patch: patch.setattr(
        layers, "upsample", lambda x, size: F.interpolate(x, size=(size, size), mode=mode)
    )


def identity(name):
    return lambda model, patch: patch.setattr(model.get_submodule(name), "forward", lambda x: x)


MISTAKES = {
    "bilinear upsampling": upsampling("bilinear"),
    "nearest-exact upsampling": upsampling("nearest-exact"),
    "sizes 14, 28, 56": doubled_sizes,
    "prompts in blocks 0-7": lambda model, patch: patch.setattr(
        generator_module.CLIPMapper, "forward", mapper(first=0)
    ),
    "prompts reversed": prompts_become(lambda prompts: prompts.flip(1)),
    "no prompts": prompts_become(lambda prompts: prompts[:, :0]),
    "prompt without ln_1": prompt_without_norm,
    "wrong token dropped": lambda model, patch: patch.setattr(
        generator_module.CLIPMapper, "forward", mapper(drop=slice(1, None))
    ),
    "GELU": lambda model, patch: patch.setattr(clip.QuickGELU, "forward", lambda self, x: F.gelu(x)),
    "map weight 1": lambda model, patch: patch.setattr(generator_module, "MAP_WEIGHT", 1.0),
    "no CLIP": lambda model, patch: patch.setattr(generator_module, "MAP_WEIGHT", 0.0),
    "no ln_pre": identity("mapping.CLIP_ViT.ln_pre"),
    "no positions": lambda model, patch: patch.setitem(
        model.mapping.CLIP_ViT._parameters, "positional_embedding", torch.zeros(50, 768)
    ),
    "sentence before noise": condition_order,
    "leaky ReLU 0.1": other_slope,
    "no last leaky ReLU": identity("to_rgb.0"),
}


def test_the_mutated_mapper_is_right_without_mutation(plain, monkeypatch):
    monkeypatch.setattr(generator_module.CLIPMapper, "forward", mapper())
    with torch.no_grad():
        assert image_error(plain(*inputs(1))) < TOLERANCE


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_caught(plain, monkeypatch, mistake):
    MISTAKES[mistake](plain, monkeypatch)
    with torch.no_grad():
        assert image_error(plain(*inputs(1))) > 100 * TOLERANCE


def test_mistake_outside_the_model_is_caught(plain, plain_image):
    noise, sentence = inputs(1)
    with torch.no_grad():
        assert image_error(plain(noise, F.normalize(sentence))) > 100 * TOLERANCE
    assert image_error(plain_image.tanh()) > 100 * TOLERANCE


def test_layer_norm_eps(model):
    """1e-6 would change the image by less than the tolerance, so it is asserted."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 25 and all(norm.eps == 1e-5 for norm in norms)
