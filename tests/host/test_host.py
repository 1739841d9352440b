"""The fixtures themselves: the tiny models are what they say and sample through the real KSampler."""

import comfy.model_base
import torch


def test_tiny_models_sample_and_differ(tiny_model, tiny_model_b, cond, latent, sample):
    assert isinstance(tiny_model.model, comfy.model_base.BaseModel)
    first = sample(tiny_model, cond(1), cond(2), latent(2))
    again = sample(tiny_model, cond(1), cond(2), latent(2))
    other = sample(tiny_model_b, cond(1), cond(2), latent(2))
    assert first.shape == (2, 4, 8, 8)
    assert torch.isfinite(first).all()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_model_fixture_is_unpatched(tiny_model):
    assert not tiny_model.patches
    assert not tiny_model.model_options["transformer_options"]


def test_sd15_layout_has_sixteen_cross_attentions(sd15_model):
    names = [name for name, _ in sd15_model.model.named_modules() if name.endswith("attn2")]
    assert len(names) == 16
