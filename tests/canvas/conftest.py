"""The canvas layer: ComfyUI's real frontend in Chromium, on the server of the whole run."""

import os
from pathlib import Path

import pytest

from tools.canvas import Canvas, chromium, find_chromium

RENDERERS = ("classic", "nodes2")
LAN_NAME = "studio.lan"  # the browser takes it for this machine: a page from another machine's name, over plain HTTP


@pytest.fixture(scope="package")
def browser():
    if find_chromium() is None:
        reason = (
            "the canvas layer needs Chromium or Chrome on the PATH (on Debian: apt install chromium fonts-noto-cjk)"
        )
        # On a build machine a layer that is silently left out would look like one that passed.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with chromium(f"--host-resolver-rules=MAP {LAN_NAME} 127.0.0.1") as running:
        yield running


@pytest.fixture(scope="package", params=RENDERERS)
def renderer_canvas(request, browser, server):
    """One page per renderer for all examples: loading the page is what costs time."""
    canvas = Canvas(browser, server.url, nodes2=request.param == "nodes2")
    yield canvas, request.param
    canvas.close()


@pytest.fixture
def lan_url(server) -> str:
    """The server under the name that a machine of the local network has."""
    return f"http://{LAN_NAME}:{server.url.rsplit(':', 1)[1]}"


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory) -> Path:
    """Where screenshots go: GUIDANCE_LAB_SCREENSHOTS, else a temporary folder."""
    folder = Path(os.environ.get("GUIDANCE_LAB_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
