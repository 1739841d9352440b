"""Main model and guide from one loader: one module, two sets of patches (core's dual model guider gets this wrong)."""

import gc
import weakref
from functools import partial

import comfy.model_management
import comfy.sd
import pytest
import tiny_families
import tiny_networks
import torch
from comfy.patcher_extension import PatcherInjection
from pair_tools import STEPS, CallCounter, PaperGuider, pair, run_guider, with_attention_patch, with_lora
from safetensors.torch import save_file

import tiny_checkpoint
from guidance_lab.nodes.host.models import models_loaded_with

pytestmark = pytest.mark.side(4)


@pytest.fixture
def sample(sample):
    return partial(sample, steps=STEPS)


@pytest.fixture
def twin():
    """The weights of `tiny_model` in a module of their own, so that the reference needs no sharing."""
    weights = tiny_checkpoint.unet_weights(tiny_checkpoint.TINY1, 1)
    return comfy.sd.load_state_dict_guess_config(weights, output_vae=False, output_clip=False)[0]


@pytest.fixture
def expected(cond, latent):
    def run(main, guide):
        guider = PaperGuider(main, guide, 4.0, 1.7)
        guider.set_conds(cond(1), cond(2))
        return run_guider(guider, latent())

    return run


@pytest.fixture
def guided(cond, latent, sample, run_node):
    def run(main, guide):
        return sample(pair(run_node, main, guide, 1.7), cond(1), cond(2), latent())

    return run


def test_lora_on_the_main_model_only(tiny_model, twin, guided, expected):
    result = guided(with_lora(tiny_model), tiny_model)
    assert torch.equal(result, expected(with_lora(tiny_model), twin))


def test_lora_on_the_guide_only(tiny_model, twin, guided, expected):
    assert torch.equal(guided(tiny_model, with_lora(tiny_model)), expected(tiny_model, with_lora(twin)))


def test_another_lora_on_each_side(tiny_model, twin, guided, expected):
    result = guided(with_lora(tiny_model, 5), with_lora(tiny_model, 6, 0.7))
    assert torch.equal(result, expected(with_lora(tiny_model, 5), with_lora(twin, 6, 0.7)))


def test_one_lora_on_both_sides_is_an_identical_pair(tiny_model, guided, cond, latent, sample):
    both = with_lora(tiny_model)
    assert torch.equal(guided(both, both.clone()), sample(both, cond(1), cond(2), latent()))


def test_a_copy_is_made_of_the_unpatched_weights(tiny_model, twin, guided, expected, cond, latent, sample):
    """Also while the module is loaded with another LoRA."""
    sample(with_lora(tiny_model, 9), cond(1), cond(2), latent())
    assert torch.equal(guided(tiny_model, with_lora(tiny_model)), expected(tiny_model, with_lora(twin)))


def test_a_patch_without_weights_runs_on_the_main_models_load(tiny_model, twin, guided, expected, run_node):
    guide = with_attention_patch(tiny_model)
    assert torch.equal(guided(tiny_model, guide), expected(tiny_model, with_attention_patch(twin)))
    assert models_loaded_with(pair(run_node, tiny_model, guide)) == []


def test_a_patch_on_the_main_model_does_not_touch_the_guide(tiny_model, tiny_model_b, twin, guided, expected):
    assert torch.equal(
        guided(with_attention_patch(tiny_model), tiny_model), expected(with_attention_patch(tiny_model), twin)
    )
    on_main = guided(with_attention_patch(tiny_model), tiny_model_b)
    assert torch.equal(on_main, expected(with_attention_patch(tiny_model), tiny_model_b))


def test_two_guides_that_share_a_module_with_each_other(tiny_model, tiny_model_b, cond, latent, sample, run_node):
    copy = tiny_model_b.clone()
    lora = with_lora(tiny_model_b)
    chained = pair(run_node, pair(run_node, tiny_model, copy, 1.4), lora, 1.3)
    modules = [extra.model for extra in models_loaded_with(chained)]
    assert len(modules) == 2 and modules[0] is not modules[1]
    first = sample(pair(run_node, tiny_model, copy, 1.4), cond(1), cond(2), latent(), steps=1)
    second = sample(pair(run_node, tiny_model, lora, 1.3), cond(1), cond(2), latent(), steps=1)
    stock = sample(tiny_model, cond(1), cond(2), latent(), steps=1)
    both = sample(chained, cond(1), cond(2), latent(), steps=1)
    assert torch.allclose(both - stock, (first - stock) + (second - stock), atol=1e-4 * both.abs().max())


def test_a_lora_after_the_pair_acts_on_the_main_model_only(tiny_model, twin, cond, latent, sample, run_node, expected):
    late = with_lora(pair(run_node, tiny_model, with_attention_patch(tiny_model), 1.7))
    assert torch.equal(
        sample(late, cond(1), cond(2), latent()), expected(with_lora(tiny_model), with_attention_patch(twin))
    )
    assert torch.equal(sample(late, cond(1), cond(2), latent()), sample(late.clone(), cond(1), cond(2), latent()))


@pytest.fixture
def load(tmp_path):
    """`load()` → the MODEL of a core loader, always from the same file."""
    path = tmp_path / "tiny.safetensors"
    save_file({k: v.contiguous() for k, v in tiny_checkpoint.unet_weights(tiny_checkpoint.TINY1, 1).items()}, path)
    return lambda: comfy.sd.load_checkpoint_guess_config(str(path), output_vae=False, output_clip=False)[0]


def test_a_model_of_a_core_loader_is_read_again_from_its_file(load, cond, latent, sample, run_node):
    model = load()
    assert model.cached_patcher_init is not None
    guider = PaperGuider(model, with_lora(load()), 4.0, 1.7)
    guider.set_conds(cond(1), cond(2))
    guided = sample(pair(run_node, model, with_lora(model), 1.7), cond(1), cond(2), latent())
    assert torch.equal(guided, run_guider(guider, latent()))


def test_two_loaders_on_one_file_are_an_identical_pair(load, cond, latent, sample, run_node, caplog):
    model, again = load(), CallCounter(load())
    assert model.model is not again.model.model
    pair(run_node, model, load())
    assert "are the same" in caplog.text
    counted = CallCounter(model)
    again.model.wrappers = counted.model.wrappers  # so that nothing but the module differs
    guided = sample(pair(run_node, counted.model, again.model, 3.0), cond(1), cond(2), latent())
    assert torch.equal(guided, sample(model, cond(1), cond(2), latent()))
    assert counted.rows == [2] * STEPS


@pytest.mark.parametrize("from_file", [False, True])
def test_the_second_copy_goes_with_its_model(tiny_model, load, cond, latent, sample, run_node, from_file):
    main = load() if from_file else tiny_model
    model = pair(run_node, main, with_lora(main), 1.7)
    sample(model, cond(1), cond(2), latent(), steps=1)
    copy = weakref.ref(models_loaded_with(model)[0].model)
    assert copy() is not None
    del model
    gc.collect()
    assert copy() is None
    sample(main, cond(1), cond(2), latent(), steps=1)
    assert [loaded.model for loaded in comfy.model_management.loaded_models()] == [main.model]


def test_a_bypass_lora_on_a_shared_guide_is_refused(tiny_model, run_node):
    guide = tiny_model.clone()
    guide.set_injections("bypass_lora", [PatcherInjection(inject=lambda patcher: None, eject=lambda patcher: None)])
    with pytest.raises(ValueError, match="bypass mode"):
        pair(run_node, tiny_model, guide)


def test_wrappers_of_the_guide_run_and_those_of_the_main_model_do_not(
    tiny_model, tiny_model_b, cond, latent, sample, run_node
):
    for guide_model in (tiny_model_b, tiny_model):
        main, guide = CallCounter(tiny_model), CallCounter(guide_model)
        sample(pair(run_node, main.model, guide.model, 1.7), cond(1), cond(2), latent(), steps=3)
        assert (main.calls, guide.calls) == (3, 3)
        assert (main.rows, guide.rows) == ([2] * 3, [1] * 3)


def test_a_copy_keeps_nothing_of_earlier_samplings(run_node):
    """HiDream-O1 keeps keys and values of the prompt in its network, also beyond the end of a sampling."""
    main, name = tiny_families.build("HiDreamO1"), "HiDreamO1"
    sigma, text = tiny_families.sigma_at(main, 0.5), tiny_families.text("HiDreamO1", 1)
    x = tiny_families.noisy(name, main, sigma)

    def other(model):
        return with_lora(model, part="self_attn.k_proj.weight")

    c = tiny_networks.predict(main, x, sigma, text)
    b = tiny_networks.predict(other(tiny_families.build(name)), x, sigma, text)
    guided = tiny_networks.predict(pair(run_node, main, other(main), 2.0), x, sigma, text)
    assert torch.allclose(guided, c + (c - b), atol=1e-5 * float(c.abs().max()))
    assert not torch.allclose(b, c, atol=1e-3 * float(c.abs().max()))
