"""A few folders of each kind whose files are wrong in their structure; `tools/fuzz_readers.py` does many more."""

import collections
import random

import fuzz_files
import fuzz_folders
import pytest


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", fuzz_folders.READERS)
def test_one_sentence_or_taken(name, tmp_path):
    (tmp_path / "case").mkdir()
    cases, read = fuzz_folders.READERS[name](tmp_path)
    assert fuzz_files.attempt(read, cases.good)
    for number in range(12):
        fuzz_files.attempt(read, cases.folder(number, tmp_path / "case"))
    if cases.left:
        cases.put_right()
    left = {path.name: path.read_bytes() for path in (tmp_path / "case" / cases.good.name).iterdir()}
    assert left == cases.files  # so that the next case begins with a good folder


def test_every_kind_of_change_is_made():
    kinds, content = collections.Counter(), {"a": {"b": [1, 2, {"c": "x"}]}, "d": None, "e": [[1], "y"]}
    for number in range(1500):
        fuzz_folders.changed(random.Random(number), content, kinds)
    wanted = {f"value: {kind}" for kind in fuzz_folders.VALUES} | {f"json: {kind}" for kind in fuzz_folders.CHANGES}
    assert not wanted - set(kinds)
    assert content == {"a": {"b": [1, 2, {"c": "x"}]}, "d": None, "e": [[1], "y"]}


def test_every_kind_of_damage_is_done(tmp_path):
    (tmp_path / "case").mkdir()
    cases, _ = fuzz_folders.READERS["weights_index"](tmp_path)
    for number in range(1500):
        cases.folder(number, tmp_path / "case")
    assert {f"file: {kind}" for kind in fuzz_folders.TEXTS} | {"weights"} <= set(cases.kinds)
