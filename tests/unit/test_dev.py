"""dev.py as a person runs it: mistakes end in one sentence and an exit code that is not 0."""

import http.server
import json
import socket
import subprocess
import sys
import threading

import pytest

from tools.host import ROOT
from tools.server import open_url


def dev(*arguments):
    return subprocess.run([sys.executable, ROOT / "dev.py", *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("host", "--comfyui", "1.2.3"),
            "error: '1.2.3' is neither a ComfyUI folder nor a known version; known versions: 0.30.0, ",
        ),
        (("bench", "nothing"), "error: no bench 'nothing'; there is: "),
        (("evidence",), "error: which evidence; there is: "),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence):
    done = dev(*arguments)
    assert done.returncode != 0
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == 1


def test_port_in_use():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = dev("serve", "--port", str(port))
    assert done.returncode != 0
    assert f"error: port {port} is in use" in done.stderr


def test_unknown_workflow_lists_the_examples():
    done = dev("demo", "--workflow", "No such example")
    assert done.returncode != 0
    assert "error: no example workflow 'No such example'; there is: " in done.stderr


def test_host_json_is_the_last_line():
    done = dev("host", "--json")
    assert done.returncode == 0
    assert set(json.loads(done.stdout.splitlines()[-1])) == {"comfyui", "python", "version"}


def test_an_isolated_interpreter_starts_it():
    """`python -I` and ComfyUI's portable build leave the script's own folder out of the path."""
    done = subprocess.run([sys.executable, "-I", ROOT / "dev.py", "host", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_proxy_in_the_environment_is_not_asked_for_this_machine(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with open_url(f"http://127.0.0.1:{server.server_port}/", timeout=5) as answer:
            assert answer.status == 200
        server.shutdown()
