"""Neutral is identical, a repeated run is the same run, and nothing stays behind, also after an error."""

from functools import partial

import comfy.model_management
import pytest
import torch
from comfy.model_management import InterruptProcessingException
from pair_tools import STEPS, CallCounter, PaperGuider, pair, run_guider, with_attention_patch, with_lora

pytestmark = pytest.mark.side(4)


@pytest.fixture
def sample(sample):
    return partial(sample, steps=STEPS)


def test_weight_1_is_stock_and_never_loads_the_guide(
    tiny_model, tiny_model_b, cond, latent, sample, run_node, monkeypatch
):
    stock = sample(tiny_model, cond(1), cond(2), latent())
    comfy.model_management.unload_all_models()
    guide = CallCounter(tiny_model_b)
    assert torch.equal(sample(pair(run_node, tiny_model, guide.model, 1.0), cond(1), cond(2), latent()), stock)
    assert guide.calls == 0
    assert not any(loaded.model is tiny_model_b.model for loaded in comfy.model_management.loaded_models())


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_an_identical_pair_is_stock_at_any_weight_without_more_calls(
    tiny_model, cond, latent, sample, run_node, cfg, caplog
):
    counter = CallCounter(tiny_model)
    stock = sample(counter.model, cond(1), cond(2), latent(), cfg=cfg)
    calls = counter.calls
    guided = pair(run_node, counter.model, counter.model.clone(), 7.3)
    assert "are the same" in caplog.text
    assert torch.equal(sample(guided, cond(1), cond(2), latent(), cfg=cfg), stock)
    assert counter.calls == 2 * calls


def test_a_lora_after_an_identical_pair_makes_it_a_pair(tiny_model, cond, latent, sample, run_node):
    """Only at sampling is it known what the main model is: the guide stays without the LoRA that was put on the
    output.
    """
    late = with_lora(pair(run_node, tiny_model, tiny_model, 1.7))
    early = pair(run_node, with_lora(tiny_model), tiny_model, 1.7)
    result = sample(late, cond(1), cond(2), latent())
    assert torch.equal(result, sample(early, cond(1), cond(2), latent()))
    assert not torch.equal(result, sample(with_lora(tiny_model), cond(1), cond(2), latent()))


def test_an_equal_guide_on_another_module_changes_nothing(tiny_model, tiny_model_b, cond, latent, sample, run_node):
    weights = {k: v.clone() for k, v in tiny_model_b.model.state_dict().items()}
    try:
        tiny_model_b.model.load_state_dict(tiny_model.model.state_dict())
        guided = pair(run_node, tiny_model, tiny_model_b, 5.0)  # cfg 1, as a batch of two rounds otherwise than one
        assert torch.equal(
            sample(guided, cond(1), cond(2), latent(), cfg=1.0), sample(tiny_model, cond(1), cond(2), latent(), cfg=1.0)
        )
    finally:
        tiny_model_b.model.load_state_dict(weights)


def test_three_runs_are_one_and_stock_is_unchanged_afterwards(tiny_model, tiny_model_b, cond, latent, sample, run_node):
    stock = sample(tiny_model, cond(1), cond(2), latent())
    stock_b = sample(tiny_model_b, cond(1), cond(2), latent())
    for guide in (tiny_model_b, with_lora(tiny_model), with_attention_patch(tiny_model)):
        model = pair(run_node, tiny_model, guide, 1.7)
        first, second, third = (sample(model, cond(1), cond(2), latent()) for _ in range(3))
        assert torch.equal(first, second) and torch.equal(first, third)
        assert not torch.equal(first, stock)
        assert torch.equal(sample(tiny_model, cond(1), cond(2), latent()), stock)
        assert torch.equal(sample(tiny_model_b, cond(1), cond(2), latent()), stock_b)
        assert tiny_model.model.current_patcher is None and guide.model.current_patcher is None


def test_two_prompts_never_meet(tiny_model, tiny_model_b, cond, latent, sample, run_node):
    model = pair(run_node, tiny_model, tiny_model_b, 1.7)
    alone = sample(pair(run_node, tiny_model, tiny_model_b, 1.7), cond(3), cond(2), latent(seed=1), seed=4)
    sample(model, cond(1), cond(2), latent(batch=2))
    assert torch.equal(sample(model, cond(3), cond(2), latent(seed=1), seed=4), alone)


class _Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("main", _Stop),
        ("guide", _Stop),
        ("shared guide", _Stop),
        ("load", _Stop),
        ("guide", InterruptProcessingException),
    ],
)
def test_an_error_in_mid_run_leaves_the_host_clean(
    tiny_model, tiny_model_b, cond, latent, sample, run_node, monkeypatch, where, error
):
    stock = sample(tiny_model, cond(1), cond(2), latent())
    guide = with_attention_patch(tiny_model) if where == "shared guide" else tiny_model_b.clone()
    good = sample(pair(run_node, tiny_model, guide, 1.7), cond(1), cond(2), latent())
    calls = []

    def fail(executor, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise error("on purpose")
        return executor(*args, **kwargs)

    main, failing_guide = tiny_model.clone(), guide.clone()
    if where == "load":
        load = comfy.model_management.load_models_gpu

        def failing_load(*args, **kwargs):
            load(*args, **kwargs)
            raise error("on purpose")

        monkeypatch.setattr(comfy.model_management, "load_models_gpu", failing_load)
    else:
        (main if where == "main" else failing_guide).add_wrapper_with_key("apply_model", "fail", fail)
    with pytest.raises(error):
        sample(pair(run_node, main, failing_guide, 1.7), cond(1), cond(2), latent())
    monkeypatch.undo()
    assert tiny_model.model.current_patcher is None and guide.model.current_patcher is None
    assert torch.equal(sample(tiny_model, cond(1), cond(2), latent()), stock)
    assert torch.equal(sample(pair(run_node, tiny_model, guide, 1.7), cond(1), cond(2), latent()), good)


def test_the_incoming_models_are_not_edited(tiny_model, tiny_model_b, cond, latent, sample, run_node):
    def look(model):
        return (
            sorted(model.model_options),
            len(model.wrappers),
            len(model.additional_models),
            len(model.patches),
            model.patches_uuid,
        )

    before = look(tiny_model), look(tiny_model_b)
    sample(pair(run_node, tiny_model, tiny_model_b, 1.7), cond(1), cond(2), latent())
    assert (look(tiny_model), look(tiny_model_b)) == before


def test_the_reference_guider_is_not_neutral_by_accident(tiny_model, tiny_model_b, cond, latent, sample):
    """The guider that other tests compare with is stock at w_c = 1 and something else above."""
    guider = PaperGuider(tiny_model, tiny_model_b, 4.0, 1.0)
    guider.set_conds(cond(1), cond(2))
    assert torch.equal(run_guider(guider, latent()), sample(tiny_model, cond(1), cond(2), latent()))
