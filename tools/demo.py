"""`python dev.py demo`: one example workflow through the HTTP API of a headless ComfyUI, to a picture on disk."""

import argparse
import json
import signal
import sys
from pathlib import Path

from tools.client import needed_files, run_prompt, save_images, to_api
from tools.host import ROOT, DevError, Host, read_version, say
from tools.server import running_server

EXAMPLES = ROOT / "example_workflows"
DEFAULT_WORKFLOW = "Autoguidance (Shapes)"


def load_example(name: str | None) -> tuple[str, dict]:
    """Name and UI JSON of an example workflow; None takes the default. Raises DevError listing what there is."""
    names = sorted(path.stem for path in EXAMPLES.glob("*.json"))
    if name is None:
        name = DEFAULT_WORKFLOW if DEFAULT_WORKFLOW in names else next(iter(names), None)
    if name not in names:
        raise DevError(f"no example workflow '{name}'; there is: {', '.join(names) or 'none'}.")
    return name, json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))


class ProgressBar:
    """One line that says which node runs and how far it is; on anything but a terminal one line per node."""

    def __init__(self):
        self.terminal, self.node = sys.stderr.isatty(), None

    def __call__(self, node: str, value: int, maximum: int) -> None:
        if self.terminal:
            done = round(24 * value / max(maximum, 1))
            print(
                f"\r\033[K[{'#' * done}{'.' * (24 - done)}] {node} {value}/{maximum}",
                end="",
                file=sys.stderr,
                flush=True,
            )
        elif node != self.node:
            say(f"  {node}")
        self.node = node

    def close(self) -> None:
        if self.terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py demo")
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--workflow")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--port", type=int)
    options = parser.parse_args()
    name, workflow = load_example(options.workflow)
    if needed_files(workflow):
        files = ", ".join(f"models/{file}" for file in needed_files(workflow))
        raise DevError(f"'{name}' needs {files}, which is not shipped; open it in your own ComfyUI instead.")
    host = Host(options.comfyui, Path(sys.executable), read_version(options.comfyui))
    say(f"starting ComfyUI {host.version}")
    with running_server(host, options.port) as server:
        say(f"running '{name}'")
        bar = ProgressBar()
        try:
            images = run_prompt(server.url, to_api(workflow, server.get("/object_info")), bar)
        finally:
            bar.close()
        paths = save_images(server.url, images, options.out)
    if not paths:
        raise DevError(f"'{name}' ran but made no picture.")
    for path in paths:
        print(path)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    try:
        main()
    except DevError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
