"""How long from opening the page to the first picture: ComfyUI's real canvas in Chromium, an example, the run button.

A fresh browser profile each time, so nothing of the page is cached, and a server that has let go of models and results.
The clock starts when the page is asked for; it stops when a picture of the run is loaded and on a node. The median over
`--repeats` of each renderer, with what it is made of: the page until the canvas is there, the example, the run.
"""

import argparse
import json
import os
import statistics
import sys
import time
import urllib.request
from pathlib import Path

from tools.canvas import chromium, find_chromium, save_settings
from tools.demo import DEFAULT_WORKFLOW, load_example
from tools.host import DevError, Host, read_version
from tools.server import open_url, running_server

READY = "() => Boolean(window.app?.graph && window.LiteGraph?.registered_node_types['KSampler'])"
LOADED = "count => app.graph.nodes.length === count"
# In the classic renderer a node holds its pictures, in Nodes 2.0 they are elements of the page.
SHOWN = """() => app.graph.nodes.some(node => [...(node.imgs ?? []),
  ...document.querySelectorAll(`[data-node-id="${node.id}"] img`)]
    .some(one => one.complete && one.naturalWidth >= 64))"""
PARTS = ("page", "example", "run", "whole")


def once(browser, url: str, workflow: dict, name: str) -> tuple[float, ...]:
    """Seconds of PARTS."""
    context = browser.new_context(viewport={"width": 1920, "height": 1080})
    try:
        page = context.new_page()
        page.set_default_timeout(300_000)
        times = [time.perf_counter()]
        page.goto(url, wait_until="commit")
        page.wait_for_function(READY)
        times.append(time.perf_counter())
        # The start-up graph comes after that, with no event to wait for, and would take the place of the example.
        page.wait_for_timeout(1500)
        page.evaluate("async ([json, name]) => { await app.loadGraphData(json, true, true, name) }", [workflow, name])
        page.wait_for_function(LOADED, arg=len(workflow["nodes"]))
        times.append(time.perf_counter())
        page.get_by_test_id("queue-button").click()
        page.wait_for_function(SHOWN, polling=50)
        times.append(time.perf_counter())
    finally:
        context.close()
    return (*(end - start for start, end in zip(times, times[1:], strict=False)), times[-1] - times[0])


def forget(url: str) -> None:
    """The server lets go of models and of the results that it would hand out again."""
    body = json.dumps({"unload_models": True, "free_memory": True}).encode()
    open_url(urllib.request.Request(f"{url}/free", body, {"Content-Type": "application/json"}), timeout=60).close()
    time.sleep(2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py bench first_picture", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workflow", default=DEFAULT_WORKFLOW, help="a file of example_workflows, without .json")
    options = parser.parse_args()
    if find_chromium() is None:
        sys.exit("error: this needs Chromium or Chrome on the PATH.")
    name, workflow = load_example(options.workflow)
    comfyui = Path(os.environ["COMFYUI_PATH"])
    host = Host(comfyui, Path(sys.executable), read_version(comfyui))
    print(f"{name}, ComfyUI {host.version}, {options.repeats} repeats; seconds, median (smallest to largest)")
    with running_server(host) as server, chromium() as browser:
        for renderer in ("classic", "nodes2"):
            save_settings(server.url, nodes2=renderer == "nodes2")
            runs = []
            for _ in range(options.repeats):
                forget(server.url)
                runs.append(once(browser, server.url, workflow, name))
            for part, values in zip(PARTS, zip(*runs, strict=True), strict=True):
                print(
                    f"{renderer:8} {part:8} {statistics.median(values):6.1f} ({min(values):.1f} to {max(values):.1f})"
                )


if __name__ == "__main__":
    try:
        main()
    except DevError as error:
        sys.exit(f"error: {error}")
