"""Neutral caption guidance is stock ComfyUI bit for bit; runs repeat, and nothing stays behind, also after an error."""

from functools import partial

import caption_tools
import comfy.model_management
import pytest
import torch
from caption_tools import NEGATIVE, PROMPT, SAYS, STEPS, ChosenWords, counted_encodings, encoded
from comfy.model_management import InterruptProcessingException
from pair_tools import CallCounter

SAMPLERS = ["euler", "heun", "dpmpp_2m", "dpmpp_sde", "euler_ancestral", "uni_pc", "euler_cfg_pp"]


@pytest.fixture
def guided(run_node, shapes):
    """`guided(captioner, …)` → the MODEL that the node gives."""
    return partial(caption_tools.guided, run_node, shapes)


@pytest.fixture
def conds(shapes):
    """(positive, negative) of the prompts of this file."""
    return encoded(shapes[1], PROMPT), encoded(shapes[1], NEGATIVE)


@pytest.fixture
def sample(sample):
    return partial(sample, steps=STEPS)


@pytest.mark.parametrize("sampler_name", SAMPLERS)
@pytest.mark.parametrize("says", [PROMPT, ""], ids=["the prompt", "nothing"])
def test_a_caption_that_says_the_prompt_is_cfg_exactly(shapes, guided, conds, latent, sample, sampler_name, says):
    captioner, counter = ChosenWords(says), CallCounter(shapes[0])
    stock = sample(counter.model, *conds, latent(batch=2, seed=3), sampler_name)
    calls = counter.calls
    assert torch.equal(
        sample(guided(captioner, model=counter.model), *conds, latent(batch=2, seed=3), sampler_name), stock
    )
    assert len(captioner.shown) >= STEPS - 1
    assert counter.calls == 2 * calls and set(counter.rows) == {2 * 2}


def test_the_prompt_as_text_finds_the_same_words_in_other_letters(shapes, guided, conds, latent, sample):
    """The weight of a word is not in a caption, so the encoded texts differ: only the text says that both are the
    prompt.
    """
    positive = encoded(shapes[1], "a (red:1.3) cube on white"), conds[1]
    stock = sample(shapes[0], *positive, latent(seed=3))
    assert not torch.equal(sample(guided(ChosenWords(PROMPT)), *positive, latent(seed=3)), stock)
    told = guided(ChosenWords(PROMPT), prompt="  A RED   cube on white. ")
    assert torch.equal(sample(told, *positive, latent(seed=3)), stock)


def test_a_positive_without_a_pooled_text_is_the_prompt_too(shapes, guided, conds, latent, sample):
    bare = [[conds[0][0][0], {}]], conds[1]
    assert torch.equal(
        sample(guided(ChosenWords(PROMPT)), *bare, latent(seed=3)), sample(shapes[0], *bare, latent(seed=3))
    )


def test_a_batch_of_prompts_is_compared_row_by_row(shapes, guided, conds, latent, sample):
    says = [PROMPT, SAYS]
    positive = caption_tools.together(shapes[1], says)
    counter = CallCounter(shapes[0])
    stock = sample(counter.model, positive, conds[1], latent(batch=2, seed=3))
    assert torch.equal(
        sample(guided(ChosenWords(says), model=counter.model), positive, conds[1], latent(batch=2, seed=3)), stock
    )
    assert set(counter.rows) == {4}  # not even asked for: D_b of the same words would be D_c, too
    assert not torch.equal(sample(guided(ChosenWords(says[::-1])), positive, conds[1], latent(batch=2, seed=3)), stock)


@pytest.mark.parametrize("options", [{"scale": 0.0}, {"start_percent": 1.0}], ids=["scale 0", "empty window"])
def test_off_is_stock_without_a_look(shapes, guided, conds, latent, sample, options):
    captioner = ChosenWords(SAYS)
    stock = sample(shapes[0], *conds, latent(seed=3))
    with counted_encodings(shapes[1]) as encodings:
        assert torch.equal(sample(guided(captioner, **options), *conds, latent(seed=3)), stock)
    assert not captioner.shown and not encodings


def test_at_scale_0_nothing_more_is_loaded(shapes, guided, conds, latent, sample):
    comfy.model_management.unload_all_models()
    sample(guided(ChosenWords(SAYS), scale=0.0), *conds, latent())
    assert {loaded.model for loaded in comfy.model_management.loaded_models()} == {shapes[0].model}


def test_three_runs_are_one_and_stock_is_unchanged_afterwards(shapes, guided, conds, latent, sample):
    stock = sample(shapes[0], *conds, latent(seed=3))
    look = sorted(shapes[0].model_options), len(shapes[0].additional_models), len(shapes[0].wrappers)
    words = SAYS, "a red ball on white"
    results = [sample(guided(ChosenWords(*words)), *conds, latent(seed=3)) for _ in range(2)]
    model = guided(ChosenWords(*words, words[0], *words))
    results.append(sample(model, *conds, latent(seed=3)))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], stock)
    assert torch.equal(sample(shapes[0], *conds, latent(seed=3)), stock)
    assert (sorted(shapes[0].model_options), len(shapes[0].additional_models), len(shapes[0].wrappers)) == look
    assert shapes[0].model.current_patcher is None


def test_one_model_runs_again_and_again(guided, conds, latent, sample):
    model = guided(ChosenWords(SAYS))
    first, second, third = (sample(model, *conds, latent(seed=3)) for _ in range(3))
    assert torch.equal(first, second) and torch.equal(first, third)


def test_two_prompts_never_meet(shapes, guided, conds, latent, sample):
    model, other = guided(ChosenWords(SAYS)), (encoded(shapes[1], "a cyan house on gray"), conds[1])
    alone = sample(guided(ChosenWords(SAYS)), *other, latent(seed=1), seed=4)
    sample(model, *conds, latent(batch=2))
    assert torch.equal(sample(model, *other, latent(seed=1), seed=4), alone)


def test_random_numbers_are_those_of_stock(shapes, guided, conds, latent, sample):
    after = []
    for model in (shapes[0], guided(ChosenWords(SAYS))):
        torch.manual_seed(5)
        sample(model, *conds, latent(seed=3), "euler_ancestral")
        after.append(torch.get_rng_state())
    assert torch.equal(*after)


class _Failing(ChosenWords):
    def __init__(self, error):
        super().__init__(SAYS)
        self.error = error

    def caption(self, images):
        if self.shown:
            raise self.error("on purpose")
        return super().caption(images)


@pytest.mark.parametrize("error", [RuntimeError, InterruptProcessingException])
@pytest.mark.parametrize("where", ["captioner", "model"])
def test_an_error_in_mid_run_leaves_the_host_clean(shapes, guided, conds, latent, sample, where, error):
    stock = sample(shapes[0], *conds, latent(seed=3))
    good = sample(guided(ChosenWords(SAYS)), *conds, latent(seed=3))
    model, calls = shapes[0].clone(), []

    def fail(executor, *args, **kwargs):
        calls.append(1)
        if where == "model" and len(calls) == 3:
            raise error("on purpose")
        return executor(*args, **kwargs)

    model.add_wrapper_with_key("apply_model", "fail", fail)
    with pytest.raises(error):
        sample(
            guided(_Failing(error) if where == "captioner" else ChosenWords(SAYS), model=model), *conds, latent(seed=3)
        )
    assert shapes[0].model.current_patcher is None
    assert "load_model" not in vars(shapes[1])
    assert torch.equal(sample(shapes[0], *conds, latent(seed=3)), stock)
    assert torch.equal(sample(guided(ChosenWords(SAYS)), *conds, latent(seed=3)), good)
