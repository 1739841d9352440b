"""The checks of `evidence architectures` on two of its cases; the others take minutes and gigabytes."""

import pytest
import torch

from guidance_lab.experiments.evidence import architectures


def checked(name):
    with torch.random.fork_rng(devices=[]):
        return architectures.check(architectures.CASES[name], name)


def test_a_clip_of_transformers_at_its_true_size():
    """It is read inside inference mode, as a node reads it, and its gradient is right and within the estimate."""
    row = checked("CLIPModel")
    assert row["answer"] == "loads" and 151 < row["parameters"] < 152
    assert row["gradient"] < 1e-3 and 1 < row["kept"] < row["reserved"]


@pytest.mark.parametrize("name", ["smolvlm", "qwen2_5_vl"])
def test_captioners_that_are_not_supported_are_refused_in_one_sentence(name):
    row = checked(name)
    assert set(row) == {"architecture", "answer"} and "a captioner has to be one of" in row["answer"]
    assert "\n" not in row["answer"]
