"""Start a ComfyUI headless with only this pack, in a throw-away place, and always stop it. Standard library only."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from tools.host import ROOT, DevError, Host

# The server is on this machine, so a proxy in the environment must not be asked for it.
open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

IMPORT_FAILURES = ("IMPORT FAILED", "Error while calling comfy_entrypoint", "Guidance Lab: no nodes of the family")
PACK_FOLDER = "comfyui-guidance-lab"
MODEL_FOLDERS = (
    "checkpoints",
    "loras",
    "vae",
    "text_encoders",
    "clip_vision",
    "embeddings",
    "diffusion_models",
    "galip",
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check_port(port: int) -> None:
    """Raise DevError when something already answers on this port."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise DevError(f"port {port} is in use; choose another one with --port, or leave it out for a free one.")


def prepare_base(base: Path) -> None:
    """The folders of a ComfyUI base directory, with this pack as its only custom node."""
    for folder in ("input", "output", "user", "temp", "custom_nodes", *(f"models/{name}" for name in MODEL_FOLDERS)):
        (base / folder).mkdir(parents=True, exist_ok=True)
    pack = base / "custom_nodes" / PACK_FOLDER
    if pack.exists():
        return
    try:
        pack.symlink_to(ROOT, target_is_directory=True)
    except OSError:  # Windows without the right to make links
        shutil.copytree(ROOT, pack, ignore=shutil.ignore_patterns(".git", "__pycache__", "out", "tests", "runs"))


class Server:
    """A running ComfyUI at `url` with base directory `base`; what it says goes to `log`."""

    def __init__(self, process: subprocess.Popen, url: str, base: Path, log: Path):
        self.process, self.url, self.base, self.log = process, url, base, log

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str):
        """The JSON that a GET of `path` answers. Raises DevError when the server does not answer."""
        try:
            with open_url(self.url + path, timeout=60) as answer:
                return json.load(answer)
        except OSError as error:
            raise DevError(
                f"ComfyUI at {self.url} does not answer {path} ({error}); its last line: {self._last_line()}"
            ) from error

    def _last_line(self) -> str:
        lines = [line for line in self.log_text().splitlines() if line.strip()]
        return lines[-1] if lines else "(none)"

    def wait_ready(self, seconds: float) -> None:
        """Return when the server answers and the pack is in it. Raises DevError when it ends, hangs, or lacks the
        pack.
        """
        deadline = time.monotonic() + seconds
        while True:
            if self.process.poll() is not None:
                raise DevError(f"ComfyUI ended while starting: {self._last_line()} (whole log: {self.log})")
            try:
                open_url(self.url + "/system_stats", timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                pass
            if time.monotonic() > deadline:
                raise DevError(
                    f"ComfyUI did not answer within {seconds:.0f} seconds: {self._last_line()} (whole log: {self.log})"
                )
            time.sleep(0.2)
        # ComfyUI starts all the same when a pack fails to import, and says so only in its log.
        for line in self.log_text().splitlines():
            if any(sign in line for sign in IMPORT_FAILURES):
                raise DevError(f"ComfyUI could not load the pack: {line.strip()} (whole log: {self.log})")


def _needs_cpu(host: Host) -> bool:
    probe = "import torch; print(int(torch.cuda.is_available() or torch.backends.mps.is_available()))"
    answer = subprocess.run([host.python, "-c", probe], capture_output=True, text=True)
    return answer.stdout.strip() != "1"


@contextlib.contextmanager
def running_server(
    host: Host, port: int | None = None, base: Path | None = None, cpu: bool | None = None, ready_seconds: float = 300
):
    """Yield a Server that is ready; stop it however the block is left.

    `port` None takes a free one; `base` None makes a throw-away base directory; `cpu` None means: only without a GPU.
    The log is kept (its path is in the error) when the server failed, otherwise it goes with the rest.
    """
    if port is not None:
        check_port(port)
    port = port or free_port()
    if cpu is None:
        cpu = _needs_cpu(host)
    temporary = Path(tempfile.mkdtemp(prefix="guidance-lab-server-"))
    base = base or temporary / "base"
    prepare_base(base)
    command = [
        host.python, host.comfyui / "main.py", "--port", port, "--base-directory", base, "--database-url", "sqlite:///:memory:",
        "--disable-api-nodes", "--disable-auto-launch",
        *(["--cpu"] if cpu else []),
        "--disable-all-custom-nodes", "--whitelist-custom-nodes", PACK_FOLDER,
    ]  # fmt: skip
    log = temporary / "server.log"
    keep_log = False
    with open(log, "w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            cwd=host.comfyui,
            env={**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    try:
        server = Server(process, f"http://127.0.0.1:{port}", base, log)
        server.wait_ready(ready_seconds)
        yield server
    except DevError:
        keep_log = True
        raise
    finally:
        stop(process)
        if not keep_log:
            shutil.rmtree(temporary, ignore_errors=True)


def stop(process: subprocess.Popen) -> None:
    """End a process: politely, and after ten seconds not."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
