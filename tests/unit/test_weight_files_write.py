"""Saving: whole or not at all, never over another file, and one sentence when the disk says no."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from guidance_lab.weight_files import free_name, save_tensors

ROOT = Path(__file__).resolve().parents[2]
TENSORS = {"a": torch.arange(100_000.0), "b": torch.ones(3)}


def refused(action, message):
    with pytest.raises(ValueError, match=message) as caught:
        action()
    assert "\n" not in str(caught.value)


def test_what_is_written_is_read_back(tmp_path):
    shared = torch.ones(4)
    save_tensors({**TENSORS, "c": shared, "d": shared}, tmp_path / "new" / "x.safetensors", {"key": "value"})
    found = load_file(tmp_path / "new" / "x.safetensors")
    assert torch.equal(found["a"], TENSORS["a"]) and torch.equal(found["d"], shared)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.safetensors"]


@pytest.fixture
def small_files():
    """No file of this process can be larger than 64 KiB."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, small_files):
    path = tmp_path / "x.safetensors"
    save_tensors({"old": torch.ones(2)}, path, {})
    before = path.read_bytes()
    refused(lambda: save_tensors(TENSORS, path, {}), "x.safetensors could not be written: .*; nothing was changed")
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_full_disk(tmp_path):
    """On a real file system of 64 KiB, where the tests may make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        save_tensors({"old": torch.ones(2)}, disk / "x.safetensors", {})
        before = (disk / "x.safetensors").read_bytes()
        refused(lambda: save_tensors(TENSORS, disk / "x.safetensors", {}), "the disk is full; nothing was changed")
        assert (disk / "x.safetensors").read_bytes() == before and len(list(disk.iterdir())) == 1
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    refused(lambda: save_tensors(TENSORS, tmp_path / "file" / "x.safetensors", {}), "could not be written")
    refused(lambda: free_name(tmp_path / "file", "x"), "No file x can be made")


def test_names_are_new(tmp_path):
    assert [free_name(tmp_path, "x").name for _ in range(3)] == [f"x_0000{i}_.safetensors" for i in (1, 2, 3)]
    assert free_name(tmp_path, "x", 10**30).name == "x_00004_.safetensors"
    assert free_name(tmp_path, "x", 7).name == "x_00007_.safetensors"


def test_two_processes_never_get_one_name(tmp_path):
    code = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from tools.pack import load_pack; load_pack()
from guidance_lab.weight_files import free_name
input()
print(*[free_name({str(tmp_path)!r}, "x").name for _ in range(200)])
"""
    savers = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for saver in savers:
        saver.stdin.write("\n")
        saver.stdin.flush()
    names = [name for saver in savers for name in saver.communicate(timeout=300)[0].split()]
    assert len(names) == len(set(names)) == 400
