"""Guidance Trace under ComfyUI's node cache: the trace node stays cached, the sampler runs again, the plot must show
the new run.
"""

import asyncio
import json
import os
import struct

import aiohttp
import pytest

from tools.client import run_prompt
from tools.host import DevError

FILE = "trace-test.safetensors"
PROGRESS_TEXT = 3  # the kind of binary message that carries text for a node


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
    return {
        node: {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}} for node, (kind, inputs) in nodes.items()
    }


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


async def texts_during(server, prompt: dict) -> list[tuple[str, str]]:
    """(node id, text) of every progress text that the server sends while the prompt runs."""
    shown = []
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{server.url}/ws?clientId=reader") as socket:
        await session.post(f"{server.url}/prompt", json={"prompt": prompt, "client_id": "reader"})
        async for message in socket:
            if message.type is aiohttp.WSMsgType.BINARY and struct.unpack(">I", message.data[:4])[0] == PROGRESS_TEXT:
                length = struct.unpack(">I", message.data[4:8])[0]
                shown.append((message.data[8 : 8 + length].decode(), message.data[8 + length :].decode()))
            elif message.type is aiohttp.WSMsgType.TEXT:
                event = json.loads(message.data)
                if event["type"] == "executing" and event["data"]["node"] is None:
                    return shown
    raise AssertionError("the server went away")


def test_the_trace_node_shows_every_step_while_it_is_cached(server, checkpoint):
    numbers(server, graph(checkpoint, seed=3, steps=2))
    shown = asyncio.run(asyncio.wait_for(texts_during(server, graph(checkpoint, seed=4, steps=2)), 300))
    on_trace = [text for node, text in shown if node == "2"]
    assert len(on_trace) == 2
    assert on_trace[0].startswith("step 1, sigma 14.6: CFG ")


def test_a_plot_that_nothing_was_sampled_for_says_so(server, checkpoint):
    prompt = graph(checkpoint, seed=1, steps=2, sampled=False)
    del prompt["6"]
    # One more node before the trace, so that it is a new trace and not the cached one of the other test.
    untouched = {"model": ["1", 0], "sampling": "eps", "zsnr": False}
    prompt["9"] = {"class_type": "ModelSamplingDiscrete", "inputs": untouched, "_meta": {"title": "new"}}
    prompt["2"]["inputs"]["model"] = ["9", 0]
    with pytest.raises(
        DevError, match=r"node 7 \(GuidanceLab_GuidanceTracePlot\) failed: Guidance Trace Plot found no sampling run"
    ):
        run_prompt(server.url, prompt, timeout=300)
