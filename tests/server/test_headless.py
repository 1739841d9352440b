"""docs/headless.md: its code is run as it stands there, and its prompts are the examples."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from tools.client import to_api

PAGE = (ROOT / "docs" / "headless.md").read_text(encoding="utf-8")


def code(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def run(command: list[str], server, cwd):
    (cwd / "docs").symlink_to(ROOT / "docs")
    environment = {**os.environ, "COMFYUI_URL": server.url, "no_proxy": "127.0.0.1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def test_api_prompts_are_the_examples(object_info, request):
    folder = ROOT / "docs" / "api"
    prompts = {}
    for path in sorted((ROOT / "example_workflows").glob("*.json")):
        prompts[path.name] = to_api(json.loads(path.read_text(encoding="utf-8")), object_info)
    if request.config.getoption("--update-api-prompts"):
        for old in folder.glob("*.json"):
            old.unlink()
        for name, prompt in prompts.items():
            (folder / name).write_text(json.dumps(prompt, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    written = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")}
    assert written == prompts, "not written yet: python dev.py test server --update-api-prompts"


def test_python_draws_with_values_of_its_own(server, tmp_path):
    script = code("python")[0]
    assert len(script.splitlines()) < 40
    done = run([sys.executable, "-c", script], server, tmp_path)
    assert done.returncode == 0, done.stderr
    pictures = done.stdout.split("\n")[:-1]
    assert pictures and all((tmp_path / name).stat().st_size > 1000 for name in pictures)


def test_python_says_what_is_wrong(server, tmp_path):
    refused = run([sys.executable, "-c", code("python")[0].replace("weight=1.5", "weight=1000.0")], server, tmp_path)
    assert refused.returncode == 1
    assert "weight is 1000.0; give a number from 0 to 20" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_progress_is_printed(server, tmp_path):
    script = code("python")[1].replace("prompt = json.load(", "prompt = fresh(json.load(", 1)
    script = script.replace('encoding="utf-8"))\n', 'encoding="utf-8")))\n', 1)
    script = (
        "def fresh(p):\n [n['inputs'].update(seed=11) for n in p.values() if 'seed' in n['inputs']]\n return p\n"
        + script
    )
    done = run([sys.executable, "-c", script], server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^node \d+: \d+ of \d+$", done.stdout, re.MULTILINE)


@pytest.mark.skipif(os.name == "nt", reason="the page's shell commands are for a POSIX shell")
def test_curl_queues(server, tmp_path):
    done = run(["sh", "-c", code("sh")[0]], server, tmp_path)
    assert set(json.loads(done.stdout)) >= {"prompt_id"}, done.stdout + done.stderr
