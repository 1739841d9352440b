"""A few hundred files that are wrong in their structure, through the readers without ComfyUI; `tools/fuzz_readers.py`
does many more.
"""

import fuzz_cases
import fuzz_files
import pytest
import torch

NAMES = [name for name in fuzz_files.READERS if not name.startswith("clip")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*NAMES, "glide"])
def test_one_sentence_or_taken(name, tmp_path):
    cases, read = fuzz_files.prepared(name)
    for number in range(40):
        fuzz_files.attempt(read, fuzz_files.source(cases, name, number, tmp_path))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_the_file_that_is_changed_is_a_good_one(name, ending, tmp_path):
    cases, read = fuzz_files.prepared(name)
    if ending == ".pt":
        torch.save(cases.valid, tmp_path / "x.pt")
    else:
        if not all(type(value) is torch.Tensor for value in cases.valid.values()):
            pytest.skip("this layout has dictionaries in it, which only PyTorch's files can")
        entries = {key: fuzz_cases.stored(value) for key, value in cases.valid.items()}
        # Without the sizes the reader takes those of the released network, whose last one is 224.
        (tmp_path / "x.safetensors").write_bytes(fuzz_cases.safetensors(entries))
    assert fuzz_files.attempt(read, tmp_path / f"x{ending}")


@pytest.mark.filterwarnings("ignore")
def test_every_kind_of_change_is_made():
    cases, _ = fuzz_files.prepared("xti_kohya")
    for number in range(3_000):
        cases.file(number)
    wanted = {f"odd: {kind}" for kind in fuzz_cases.ODD} | {f"tree: {kind}" for kind in fuzz_cases.TREES}
    wanted |= {f"entry: {kind}" for kind in fuzz_cases.ENTRIES} | {f"header: {kind}" for kind in fuzz_cases.HEADERS}
    wanted |= {f"metadata: {kind}" for kind in fuzz_cases.METADATA}
    wanted |= {f"container: {kind}" for kind in ("cut", "bytes", "append", "prepend", "insert")}
    wanted |= {f"zip: {kind}" for kind in ("same", "cut", "grow", "drop", "double", "rename", "pickle", "same, packed")}
    assert not wanted - set(cases.kinds)


def test_a_case_is_the_same_every_time():
    """But for files of torch.save, in which addresses of memory may stand."""
    forward, backward = (fuzz_files.prepared("xti_numbered")[0] for _ in range(2))
    again = {number: backward.file(number) for number in reversed(range(80))}
    made = {number: forward.file(number) for number in range(80)}
    assert {number: ending for number, (ending, _) in made.items()} == {n: ending for n, (ending, _) in again.items()}
    own = [number for number, (_, data) in made.items() if b"data_offsets" in data]
    assert len(own) > 20 and all(made[number] == again[number] for number in own)


def test_a_raw_error_would_be_seen():
    def broken(source):
        raise KeyError("a")

    with pytest.raises(fuzz_files.RawError, match="KeyError"):
        fuzz_files.attempt(broken, None)

    def wordy(source):
        raise ValueError("two lines\nof text")

    with pytest.raises(fuzz_files.RawError, match="two lines"):
        fuzz_files.attempt(wordy, None)
