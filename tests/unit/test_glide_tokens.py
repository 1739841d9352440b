"""GLIDE's tokens against the recorded ones."""

import pytest
from glide_tools import facts

from guidance_lab.glide import tokenize
from guidance_lab.glide.tokenizer import PADDING, encode

CASES = facts()["tokens"]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_the_recorded_prompts(case):
    ids = encode(case["prompt"])
    assert len(ids) == case["n"] and ids[: len(case["ids"])] == case["ids"]


def test_there_are_enough_of_them_and_they_are_cut_and_padded():
    assert len(CASES) >= 20
    for length in (128, 48, 5):
        tokens, mask = tokenize([case["prompt"] for case in CASES], length)
        assert tokens.shape == mask.shape == (len(CASES), length)
        for row, shown, case in zip(tokens.tolist(), mask.tolist(), CASES, strict=True):
            kept = case["ids"][:length]
            assert row == kept + [PADDING] * (length - len(kept))
            assert shown == [True] * len(kept) + [False] * (length - len(kept))


def test_the_empty_prompt_is_padding_only_and_a_long_one_has_none():
    tokens, mask = tokenize(["", facts()["prompts"][2]])
    assert (tokens[0] == PADDING).all() and not mask[0].any() and mask[1].all()


def test_no_texts_and_a_bare_text():
    assert tokenize([], 8)[0].shape == (0, 8)
    with pytest.raises(ValueError, match="list of texts"):
        tokenize("a cube")
