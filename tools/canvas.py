"""ComfyUI's real canvas in Chromium, by Playwright. Runs under the host's interpreter (playwright)."""

import contextlib
import json
import os
import shutil
import time
import urllib.request

from playwright.sync_api import Page, sync_playwright

from tools.server import open_url

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--no-sandbox", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def find_chromium() -> str | None:
    """Path of a Chromium or Chrome: CHROMIUM_PATH, else the first known name on the PATH."""
    return os.environ.get("CHROMIUM_PATH") or next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


@contextlib.contextmanager
def chromium(*flags: str):
    """Yield a headless browser, started with these flags besides its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), headless=True, args=[*FLAGS, *flags])
        try:
            yield browser
        finally:
            browser.close()


class Canvas:
    """One page with ComfyUI's canvas; `errors` collects every uncaught error of the page."""

    def __init__(
        self, browser, url: str, nodes2: bool = False, locale: str = "en", width: int = 1500, height: int = 900
    ):
        self.url, self.errors = url, []
        save_settings(url, nodes2, locale)
        self.page: Page = browser.new_page(viewport={"width": width, "height": height})
        self.page.set_default_timeout(120_000)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_function(
            "() => Boolean(window.app?.graph && window.LiteGraph?.registered_node_types['KSampler'])"
        )
        self.page.wait_for_timeout(1500)  # the start-up graph is loaded after that, with no event to wait for

    def load_workflow(self, workflow: dict, name: str) -> None:
        """Open a workflow in UI format."""
        self.page.evaluate(
            "async ([json, name]) => { await app.loadGraphData(json, true, true, name) }", [workflow, name]
        )
        self.page.wait_for_timeout(500)

    def load_prompt(self, prompt: dict, name: str) -> None:
        """Open a prompt in API format; the frontend places the nodes."""
        self.page.evaluate("async ([json, name]) => { await app.loadApiJson(json, name) }", [prompt, name])
        self.page.wait_for_timeout(500)

    def to_prompt(self) -> dict:
        """What the canvas would queue, in API format."""
        return self._graph("output")

    def to_workflow(self) -> dict:
        """What the canvas would save, in UI format."""
        return self._graph("workflow")

    def _graph(self, part: str) -> dict:
        # As text, because Playwright turns what is undefined into null, which a saved file would then hold.
        return json.loads(self.page.evaluate("async (part) => JSON.stringify((await app.graphToPrompt())[part])", part))

    def queue(self, seconds: float = 600) -> dict:
        """Press the run button, wait for the end, return the history entry (`status`, `outputs`)."""
        with self.page.expect_response(lambda answer: answer.url.endswith("/api/prompt")) as waiting:
            self.page.get_by_test_id("queue-button").click()
        answer = waiting.value
        body = answer.json()
        if not answer.ok:
            raise RuntimeError(f"the server refused the prompt: {json.dumps(body)[:500]}")
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with open_url(f"{self.url}/history/{body['prompt_id']}", timeout=60) as history:
                entry = json.load(history).get(body["prompt_id"])
            if entry:
                return entry
            self.page.wait_for_timeout(200)
        raise TimeoutError(f"no result of the queued prompt within {seconds:.0f} seconds")

    def fit(self, margin: int = 40) -> None:
        """Move and scale the view so that the whole graph is in the picture."""
        self.page.evaluate(
            """(margin) => {
              const nodes = app.graph.nodes.concat(app.graph.groups ?? []);
              const left = Math.min(...nodes.map(n => n.pos[0])), top = Math.min(...nodes.map(n => n.pos[1])) - 40;
              const right = Math.max(...nodes.map(n => n.pos[0] + n.size[0]));
              const bottom = Math.max(...nodes.map(n => n.pos[1] + n.size[1]));
              const area = app.canvas.canvas.getBoundingClientRect();
              const scale = Math.min((area.width - 2 * margin - 60) / (right - left),
                (area.height - 2 * margin - 60) / (bottom - top), 1);
              app.canvas.ds.scale = scale;
              app.canvas.ds.offset = [(margin + 60) / scale - left, (margin + 50) / scale - top];
              app.canvas.setDirty(true, true);
            }""",
            margin,
        )
        self.page.wait_for_timeout(800)

    def close(self) -> None:
        self.page.close()


def save_settings(url: str, nodes2: bool, locale: str = "en") -> None:
    """What the server tells every page that is opened from now on."""
    _post(f"{url}/api/settings", {
        "Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": nodes2, "Comfy.Locale": locale,
        "Comfy.Minimap.Visible": False, "Comfy.Workflow.Persist": False,
    })  # fmt: skip


def _post(url: str, body: dict) -> None:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    open_url(request, timeout=60).close()
