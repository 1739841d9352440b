"""Guidance Trace under ComfyUI's node cache: the trace node stays cached, the sampler runs again, the plot must show the new run."""

import json
import os

import pytest

from tools.client import run_prompt
from tools.host import DevError

FILE = "trace-test.safetensors"


@pytest.fixture(scope="module")
def checkpoint(server, tiny_checkpoint_file) -> str:
    os.link(tiny_checkpoint_file, server.base / "models" / "checkpoints" / FILE)
    return FILE


def graph(checkpoint: str, seed: int, steps: int, sampled: bool = True) -> dict:
    sampler = {"seed": seed, "steps": steps, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {"model": ["2", 0], "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["5", 0]}
    nodes = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": checkpoint}),
        "2": ("GuidanceLab_GuidanceTrace", {"model": ["1", 0]}),
        "3": ("CLIPTextEncode", {"clip": ["1", 1], "text": "a red ball"}),
        "4": ("CLIPTextEncode", {"clip": ["1", 1], "text": ""}),
        "5": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "6": ("KSampler", {**sampler, **links}),
        "7": ("GuidanceLab_GuidanceTracePlot", {"trace": ["2", 1], "after": ["6" if sampled else "5", 0]}),
        "8": ("PreviewAny", {"source": ["7", 1]}),
    }
    return {node: {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}} for node, (kind, inputs) in nodes.items()}


def numbers(server, prompt: dict) -> tuple[dict, list[dict]]:
    """The JSON of the plot after this prompt, and the preview images of the plot."""
    images = run_prompt(server.url, prompt, timeout=300)
    (run,) = server.get("/history?max_items=1").values()
    return json.loads(run["outputs"]["8"]["text"][0]), images


def test_the_plot_follows_the_sampler(server, checkpoint):
    first, images = numbers(server, graph(checkpoint, seed=1, steps=2))
    assert len(images) == 1
    second, _ = numbers(server, graph(checkpoint, seed=2, steps=3))
    third, _ = numbers(server, graph(checkpoint, seed=1, steps=2))
    assert [len(record["evaluations"]) for record in (first, second, third)] == [2, 3, 2]
    terms = [[evaluation["terms"] for evaluation in record["evaluations"]] for record in (first, second, third)]
    assert terms[0] == terms[2]
    assert terms[0] != terms[1][:2]
    assert terms[0][0][0]["name"] == "CFG"


def test_a_plot_that_nothing_was_sampled_for_says_so(server, checkpoint):
    prompt = graph(checkpoint, seed=1, steps=2, sampled=False)
    del prompt["6"]
    # One more node before the trace, so that it is a new trace and not the cached one of the other test.
    untouched = {"model": ["1", 0], "sampling": "eps", "zsnr": False}
    prompt["9"] = {"class_type": "ModelSamplingDiscrete", "inputs": untouched, "_meta": {"title": "new"}}
    prompt["2"]["inputs"]["model"] = ["9", 0]
    with pytest.raises(DevError, match=r"node 7 \(GuidanceLab_GuidanceTracePlot\) failed: Guidance Trace Plot found no sampling run"):
        run_prompt(server.url, prompt, timeout=300)
