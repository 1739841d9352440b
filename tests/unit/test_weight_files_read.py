"""The safe reader: what it takes, and every kind of file that it refuses before anything is allocated."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from guidance_lab.weight_files import finite, read_tensors, read_tree
from guidance_lab.weight_files.pickle_scan import MAX_TENSORS

ROOT = Path(__file__).resolve().parents[2]
TENSORS = {"a": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), "b": torch.ones(2).half()}


def refused(path, *words, read=read_tree, **options):
    begin = time.monotonic()
    with pytest.raises(ValueError) as caught:
        read(path, **options)
    said = str(caught.value)
    assert (
        said.startswith(f"{path.name}: ")
        and not {"\n", "\u202e"} & set(said)
        and len(said) < 400
        and said.endswith(".")
    )
    assert all(word in said for word in words), said
    assert time.monotonic() - begin < 20


def saved(path, content, zipped=True):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_torch_files_with_their_nesting(tmp_path, zipped):
    content = {
        "model": {**TENSORS, "c": torch.nn.Parameter(torch.ones(2)), "n": torch.tensor(3)},
        "x": [1, 2.5, "y", None],
    }
    tree = read_tree(saved(tmp_path / "x.pt", content, zipped))
    assert torch.equal(tree.content["model"]["a"], TENSORS["a"]) and tree.content["x"] == [1, 2.5, "y", None]
    assert type(tree.content["model"]["c"]) is torch.Tensor and not tree.content["model"]["c"].requires_grad
    assert tree.content["model"]["n"].item() == 3 and tree.metadata == {}


def test_safetensors_with_metadata(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors", {"key": "value"})
    weights = read_tensors(tmp_path / "x.safetensors")
    assert torch.equal(weights.tensors["b"], TENSORS["b"]) and weights.metadata == {"key": "value"}


def test_tensors_are_normal_ones_under_inference_mode(tmp_path):
    saved(tmp_path / "x.pt", TENSORS)
    with torch.inference_mode():
        assert not any(value.is_inference() for value in read_tensors(tmp_path / "x.pt").tensors.values())


def test_wrappers_are_taken_off(tmp_path):
    saved(tmp_path / "x.pt", {"state_dict": {f"module.{key}": value for key, value in TENSORS.items()}, "epoch": 3})
    assert set(read_tensors(tmp_path / "x.pt", inside=("state_dict",)).tensors) == {"a", "b"}


def test_the_parameter_dictionaries_of_the_first_textual_inversions(tmp_path):
    words = torch.nn.ParameterDict({"*": torch.ones(1, 768)})
    saved(tmp_path / "x.pt", {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": words})
    assert torch.equal(read_tree(tmp_path / "x.pt").content["string_to_param"]["*"], torch.ones(1, 768))
    assert torch.nn.ParameterDict not in torch.serialization.get_safe_globals()


def test_tied_weights_are_no_bomb(tmp_path):
    table = torch.randn(50, 8)
    assert len(read_tensors(saved(tmp_path / "x.pt", {"in": table, "out": table, "row": table[3]})).tensors) == 3


ODD = {
    "sparse": (torch.eye(3).to_sparse(), "a sparse tensor"),
    "compressed": (torch.eye(3).to_sparse_csc(), "sparse"),
    "fp8": (torch.ones(3).to(torch.float8_e4m3fn), "8 bits"),
    "quantised": (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantised"),
    "meta": (torch.ones(3, device="meta"), "without data"),
    "complex": (torch.ones(3, dtype=torch.complex64), "ComplexFloatStorage"),
    "expanded": (torch.ones(1).expand(10**9), "1,000,000,000 numbers that are only 1 repeated"),
    "nine dimensions": (torch.ones((1,) * 9), "9 dimensions"),
    "a class": (torch.nn.Linear(2, 2), "never run"),
    "an array": (torch.ones(2).numpy(), "never run"),
    "a function": (os.mkdir, "never run"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", ODD)
def test_unusual_tensors(tmp_path, kind, zipped):
    value, words = ODD[kind]
    refused(saved(tmp_path / "x.pt", {"a": torch.ones(2), "odd": value}, zipped), words)


def test_unusual_tensors_of_safetensors(tmp_path):
    save_file({"a": torch.ones(3).to(torch.float8_e5m2)}, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", "'a'", "F8_E5M2")
    save_file({"a": torch.ones((1,) * 9)}, tmp_path / "y.safetensors")
    refused(tmp_path / "y.safetensors", "9 dimensions")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(2)], "a list, not named weights"),
        (torch.ones(2), "a tensor, not named weights"),
        ({}, "no tensors"),
        ({1: torch.ones(2)}, "numbered tensors"),
        ({"a": "text"}, "a text under 'a'"),
        ({"a": (torch.ones(2), 3)}, "a list under 'a'"),
        ({"a": {"b": torch.ones(2)}}, "a dictionary under 'a'"),
        ({"a": None}, "nothing under 'a'"),
        ({"a": torch.ones(2).long()}, "of int64, and only plain floats"),
        ({"x" * 600: torch.ones(2)}, "a name of 600 characters"),
        ({"a\nb": torch.ones(2)}, "a name with line breaks"),
        ({"a\x1b[31m": torch.ones(2)}, "control characters"),
        ({"\ud83d": torch.ones(2)}, "control characters"),
        ({"a\u202eb": torch.ones(2)}, "control characters in it ('a b"),
    ],
)
def test_what_is_no_dictionary_of_tensors(tmp_path, content, words):
    refused(saved(tmp_path / "x.pt", content), words, read=read_tensors)


def test_whole_numbers_where_they_are_asked_for(tmp_path):
    saved(tmp_path / "x.pt", {"a": torch.arange(3)})
    assert read_tensors(tmp_path / "x.pt", whole=True).tensors["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("place", [0, -1])
def test_one_number_that_is_not_finite_is_found_in_millions(place):
    """They are looked at in parts: one part that is whole does not speak for the others."""
    tensor = torch.zeros(2**22 + 1, 2, dtype=torch.float16)
    assert finite(tensor) and finite(tensor.T)
    tensor[place, 1] = torch.inf
    assert not finite(tensor) and not finite(tensor.T)


def test_a_dictionary_in_itself_and_one_that_repeats_itself(tmp_path):
    loop = {}
    loop["a"] = loop
    refused(saved(tmp_path / "x.pt", loop), "nested too deeply")
    laughs = {"a": 1}
    for _ in range(11):
        laughs = {str(i): laughs for i in range(10)}
    refused(saved(tmp_path / "y.pt", laughs), "repeats itself")


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_is_never_run(tmp_path, zipped):
    saved(tmp_path / "x.pt", {**TENSORS, "evil": Payload(tmp_path / "ran")}, zipped)
    refused(tmp_path / "x.pt", "Python code or objects, which are never run")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "y.bin").write_bytes(pickle.dumps(Payload(tmp_path / "ran"), protocol))
        refused(tmp_path / "y.bin")
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def changed(path, **members):
    """A torch file with members replaced by bytes (or left out, None); the names as `data_pkl` for data.pkl."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            content = members.get(name.partition("/")[2].replace(".", "_").replace("/", "_"), old.read(name))
            if content is not None:
                new.writestr(name, content)
    path.write_bytes(out.getvalue())
    return path


def test_members_that_are_cut_or_missing(tmp_path):
    saved(tmp_path / "x.pt", TENSORS)
    whole = (tmp_path / "x.pt").read_bytes()
    for members in ({"data_0": b"\0" * 8}, {"data_0": b""}, {"data_1": None}, {"data_0": b"\0" * 4000}):
        (tmp_path / "x.pt").write_bytes(whole)
        refused(changed(tmp_path / "x.pt", **members), "a part of its numbers is cut off")
    (tmp_path / "x.pt").write_bytes(whole)
    refused(changed(tmp_path / "x.pt", data_pkl=None), "damaged")


def test_a_packed_file_is_not_unpacked(tmp_path):
    saved(tmp_path / "x.pt", {"a": torch.zeros(1000)})
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as old,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refused(tmp_path / "y.pt", "is packed, which torch.save never does")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(tmp_path):
    saved(tmp_path / "x.pt", TENSORS)
    with zipfile.ZipFile(tmp_path / "x.pt", "a") as archive:
        archive.writestr(archive.namelist()[0].upper(), b"x")
    refused(tmp_path / "x.pt", "two of its parts have one name")


def test_a_storage_that_is_larger_than_the_file(tmp_path):
    """A legacy file may ask for any number of bytes before they are read."""
    saved(tmp_path / "x.pt", {"a": torch.zeros(1000)}, False)
    data = (tmp_path / "x.pt").read_bytes()
    assert data.count(b"M\xe8\x03") == 2  # its size, and that of the storage
    (tmp_path / "x.pt").write_bytes(data.replace(b"M\xe8\x03", b"J" + struct.pack("<i", 2**31 - 1)))
    refused(tmp_path / "x.pt", "damaged: a part of its numbers is cut off")


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "data", [b"", b"P", b"<!DOCTYPE html>quota", b"\x80\x02", b"\x80\x02}.", b"PK\x03\x04" + b"\0" * 100]
)
def test_other_files(tmp_path, data, ending):
    (tmp_path / f"x{ending}").write_bytes(data)
    refused(tmp_path / f"x{ending}", "damaged" if data else "is empty")


def test_every_cut_of_a_small_file(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    saved(tmp_path / "x.pt", TENSORS)
    for name in ("x.pt", "x.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for length in range(0, len(whole) - 1, 37):
            (tmp_path / name).write_bytes(whole[:length])
            refused(tmp_path / name)


def header(path, content) -> Path:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 64)
    return path


@pytest.mark.parametrize(
    "content",
    [b"[]", b"{", b"[" * 50_000, b"1" * 6000, {"a": 3}, {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
     {"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}, {"a": {"dtype": 3, "shape": []}},
     {"a\n": {"dtype": "F8\n", "shape": [1], "data_offsets": [0, 4]}},
     {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}, {"\u202ea": {"dtype": "F4", "shape": [],
     "data_offsets": [0, 4]}}, {"a": {"dtype": "F32", "shape": "x"}}],
    ids=str,
)  # fmt: skip
def test_headers_of_safetensors(tmp_path, content):
    refused(header(tmp_path / "x.safetensors", content))


def test_too_many_things(tmp_path):
    empty = {f"{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(MAX_TENSORS + 5)}
    refused(header(tmp_path / "x.safetensors", empty), "more than 20,000 tensors")
    refused(saved(tmp_path / "x.pt", {str(i): i for i in range(250_000)}), "too complicated")
    refused(saved(tmp_path / "y.pt", TENSORS), "more than the 100", limit_bytes=100)
    refused(tmp_path / "none.pt", "there is no such file")
    refused(tmp_path, "there is no such file")


def test_old_torch_reads_no_pickle(tmp_path, monkeypatch):
    saved(tmp_path / "x.pt", TENSORS)
    save_file(TENSORS, tmp_path / "x.safetensors")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    refused(tmp_path / "x.pt", "torch 2.5.1+cpu (CVE-2025-32434)", "2.6", ".safetensors")
    assert read_tensors(tmp_path / "x.safetensors").tensors


MEASURE = """
import resource, sys; sys.path.insert(0, sys.argv[1])
from tools.pack import load_pack; load_pack()
import torch
from guidance_lab import weight_files
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    tensors = weight_files.read_tensors(sys.argv[2]).tensors
    total = sum(float(value.float().sum()) for value in tensors.values())
except ValueError as error:
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def megabytes(path) -> int:
    """What a process of its own needs to read the file and look at all its numbers."""
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, str(ROOT), str(path)], capture_output=True, text=True, check=True
    )
    return int(found.stdout)


def test_memory_stays_with_the_size_of_the_file(tmp_path):
    half = {"a": torch.zeros(16 * 2**20, dtype=torch.float16)}
    save_file(half, tmp_path / "x.safetensors")
    for name in ("x.safetensors", "x.pt"):
        if name.endswith("pt"):
            saved(tmp_path / name, half)
        assert megabytes(tmp_path / name) <= 4 * 32 + 64
    saved(tmp_path / "bomb.pt", {f"{i}": torch.ones(1).expand(10**8) for i in range(20)})
    saved(tmp_path / "views.pt", dict.fromkeys(map(str, range(2000)), torch.zeros(2**18)))
    saved(tmp_path / "dictionaries.pt", [{} for _ in range(150_000)])
    for name in ("bomb.pt", "views.pt", "dictionaries.pt"):
        size = (tmp_path / name).stat().st_size / 2**20
        assert megabytes(tmp_path / name) <= 4 * size + 64
