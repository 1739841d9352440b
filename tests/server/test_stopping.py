"""However `dev.py` ends, the ComfyUI that it started ends too and its throw-away folder is gone."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from tools.server import free_port

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send to another process")


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not condition():
        time.sleep(0.2)
    return condition()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_serve_stops_its_server(comfyui, tmp_path, sent):
    port = free_port()
    environment = {**os.environ, "COMFYUI_PATH": str(comfyui), "TMPDIR": str(tmp_path)}
    command = [sys.executable, ROOT / "dev.py", "serve", "--port", str(port)]
    # as from a terminal: a background job of a script hands down an ignored SIGINT
    at_terminal = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=at_terminal)
    try:
        assert any("Ctrl-C stops it" in line for line in process.stderr)
        assert answers(port)
        process.send_signal(sent)
        assert process.wait(60) != 0
    finally:
        process.kill()
        process.wait()
    assert wait_until(lambda: not answers(port), 10)
    assert list(tmp_path.glob("guidance-lab-*")) == []
