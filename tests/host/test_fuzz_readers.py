"""A few hundred files that are wrong in their structure, through the readers that need ComfyUI."""

import fuzz_files
import pytest
import torch


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["clip", "clip_transformers", "text_tower"])
def test_one_sentence_or_taken(name, tmp_path):
    cases, read = fuzz_files.prepared(name)
    if name in fuzz_files.IN_MEMORY:
        assert fuzz_files.attempt(read, cases.valid)
    else:
        torch.save(cases.valid, tmp_path / "good.pt")
        assert fuzz_files.attempt(read, tmp_path / "good.pt")
    for number in range(40):
        fuzz_files.attempt(read, fuzz_files.source(cases, name, number, tmp_path))
