"""Prompts that are wrong, through the HTTP API of a real server: every mistake must be explained in words, and none may
end in a raw error of Python from a node of the pack.

python -m tools.fuzz_prompts --count 1400 [--seed 0]     (with the host's interpreter)
"""

import argparse
import collections
import json
import os
import random
import re
import signal
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tools.host import Host, read_version
from tools.server import Server, running_server

PREFIX = "GuidanceLab_"
RAW_TYPES = re.compile(
    r"(Attribute|Type|Key|Index|Name|UnboundLocal|Assertion|ZeroDivision|Overflow|Recursion)Error|StopIteration"
)
RAW_TEXTS = re.compile(
    r"has no attribute|unexpected keyword|required positional|not subscriptable|not iterable|not callable|unhashable|"
    r"unsupported operand|must be (str|real|int)|invalid literal|list index|not supported between|^'[^']*'$"
)
# What gives a value of each type, by a node id of FEEDERS and the number of its output; filled from /object_info.
FEEDERS = {
    "models": {"class_type": "GuidanceLab_ShapesDemoModels", "inputs": {}},
    "text": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red star", "clip": ["models", 1]}},
    "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "image": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
    "scorer": {"class_type": "GuidanceLab_ObjectiveCLIPText", "inputs": {}},
    "trace": {"class_type": "GuidanceLab_GuidanceTrace", "inputs": {}},
    "xti": {"class_type": "GuidanceLab_XTILoader", "inputs": {"file": "shapes_star.safetensors", "strength": 1.0}},
}
# No links to nodes or outputs that do not exist: where an input is unknown, they end the server's own worker thread.
ODD = [
    *(5, -1, 0, 1.5, "x", "", True, None, {}, {"a": 1}, {"samples": 3}, {"__value__": [1, 2]}, {"__value__": []}),
    *(float("nan"), float("inf"), 10**400, -(10**30), "9" * 5000, "\u0000", [], ["models"], ["models", 0]),
    *(["text", 0], ["image", 0], ["latent", 0]),
]


def flat(info: dict) -> dict[str, tuple]:
    """Input name -> (type, options) of a node as /object_info has it."""
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


class Maker:
    """Makes prompts from /object_info; `random` decides what is wrong in them."""

    def __init__(self, object_info: dict, seed: int):
        self.info, self.random = object_info, random.Random(seed)
        self.ours = sorted(name for name in object_info if name.startswith(PREFIX))
        self.sources: dict[str, list] = {}
        for key, feeder in FEEDERS.items():
            for number, kind in enumerate(object_info[feeder["class_type"]]["output"]):
                self.sources.setdefault(str(kind), [key, number])
        self.feeders = {}
        for key, feeder in FEEDERS.items():
            self.feeders[key] = {**feeder, "inputs": {**self.inputs(feeder["class_type"]), **feeder["inputs"]}}

    def value(self, name: str, kind, options: dict) -> dict:
        """Flat entries {name: value} that are right for one input."""
        if kind == "COMFY_DYNAMICCOMBO_V3":
            option = self.random.choice(options["options"])
            return {name: option["key"], **self.entries(option["inputs"], f"{name}.")}
        if kind == "COMFY_AUTOGROW_V3":
            template = options["template"]
            first = next(
                iter({**template["input"].get("required", {}), **template["input"].get("optional", {})}.values())
            )
            names = template.get("names") or [f"{template.get('prefix', 'x')}{i}" for i in range(2)]
            return {key: value for each in names[:2] for key, value in self.value(f"{name}.{each}", *first).items()}
        if kind in self.sources:
            return {name: self.sources[kind]}
        if kind == "COMBO" or isinstance(kind, list):
            choices = options.get("options") if kind == "COMBO" else kind
            return {name: self.random.choice(choices)} if choices else {}
        if kind == "INT" and "step" in name:
            return {name: options.get("min", 1)}  # quick
        standard = {"INT": 1, "FLOAT": 1.0, "STRING": "a red star", "BOOLEAN": False}
        return {name: options.get("default", standard[kind])} if kind in standard else {}

    def entries(self, inputs: dict, prefix: str = "") -> dict:
        found = {}
        for name, (kind, *options) in {**inputs.get("required", {}), **inputs.get("optional", {})}.items():
            found |= self.value(prefix + name, kind, options[0] if options else {})
        return found

    def inputs(self, node: str) -> dict:
        return self.entries(self.info[node]["input"])

    def prompt(self) -> dict:
        """A prompt around one node of ours, with one or two things wrong in its inputs."""
        node = self.random.choice(self.ours)
        inputs = self.inputs(node)
        for _ in range(self.random.choice((1, 1, 2))):
            self.spoil(node, inputs)
        nodes = {**self.feeders, "it": {"class_type": node, "inputs": inputs}}
        if not self.info[node]["output_node"]:
            nodes["end"] = {"class_type": "PreviewAny", "inputs": {"source": ["it", 0]}}
        return nodes

    def spoil(self, node: str, inputs: dict) -> None:
        names = list(inputs) or ["x"]
        name = self.random.choice(names)
        change = self.random.choice(("odd", "odd", "odd", "drop", "option", "leftover", "extra"))
        combos = [key for key, (kind, *_) in flat(self.info[node]).items() if kind == "COMFY_DYNAMICCOMBO_V3"]
        if change == "odd":
            inputs[name] = self.random.choice(ODD)
        elif change == "drop":
            inputs.pop(name, None)
        elif change == "option" and combos:
            inputs[self.random.choice(combos)] = self.random.choice(
                ["no such option", 3, None, {}, ["models", 0], ["text", 0]]
            )
        elif change == "leftover" and combos:
            combo = self.random.choice(combos)
            option = self.random.choice(flat(self.info[node])[combo][1]["options"])
            inputs |= {
                key: value for key, value in self.entries(option["inputs"], f"{combo}.").items() if key not in inputs
            }
            inputs[f"{combo}.{self.random.choice(['vae', 'clip', 'model', 'file'])}"] = self.sources["VAE"]
        else:
            inputs[self.random.choice(["extra", f"{name}.x", "decoder.vae", ""])] = self.random.choice(ODD)


def post(url: str, path: str, content: dict) -> dict:
    request = urllib.request.Request(url + path, json.dumps(content).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        body = error.read()
        return json.loads(body) if body[:1] == b"{" else {"error": {"message": f"HTTP {error.code}"}}


def outcome(server: Server, prompt: dict, seconds: float = 30) -> tuple[str, list[tuple[str, str, str]]]:
    """("done" | "refused" | "failed" | "stopped", [(node class, type of the exception, its text)])."""
    answer = post(server.url, "/prompt", {"prompt": prompt})
    errors = []
    for each in answer.get("node_errors", {}).values() if isinstance(answer.get("node_errors"), dict) else ():
        for error in each["errors"]:
            kind = (error.get("extra_info") or {}).get("exception_type", "")
            if error["type"].startswith("exception") or error["type"] == "custom_validation_failed":
                errors.append((each["class_type"], kind, error["details"]))
    if "prompt_id" not in answer:
        return "refused", errors
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        history = server.get(f"/history/{answer['prompt_id']}").get(answer["prompt_id"])
        if history:
            for event, data in history["status"]["messages"]:
                if event == "execution_error":
                    errors.append((data["node_type"], data["exception_type"], data["exception_message"].strip()))
            return "failed" if errors else "done", errors
        time.sleep(0.02)
    post(server.url, "/interrupt", {})
    time.sleep(2)
    return "stopped", errors


def is_raw(node: str, kind: str, text: str) -> bool:
    """Whether an error came out of a node of ours as Python words it."""
    return node.startswith(PREFIX) and bool(RAW_TYPES.search(kind) or RAW_TEXTS.search(text))


def run(server: Server, count: int, seed: int) -> tuple[collections.Counter, collections.Counter, list]:
    """Counts of outcomes, counts of raw errors by text, and the first prompt of each raw error."""
    maker = Maker(server.get("/object_info"), seed)
    outcomes, raw, examples = collections.Counter(), collections.Counter(), []
    for number in range(count):
        if number % 50 == 49:
            print(f"{number + 1} prompts, {sum(raw.values())} raw errors", flush=True)
        prompt = maker.prompt()
        what, errors = outcome(server, prompt)
        outcomes[what] += 1
        for node, kind, text in errors:
            if is_raw(node, kind, text):
                key = f"{node}: {kind}: {text[:200]}"
                raw[key] += 1
                if raw[key] == 1:
                    examples.append((key, prompt["it"]["inputs"]))
    return outcomes, raw, examples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_PATH"))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # an exception, so that the server is stopped
    comfyui = Path(options.comfyui)
    with running_server(Host(comfyui, Path(sys.executable), read_version(comfyui)), cpu=True) as server:
        outcomes, raw, examples = run(server, options.count, options.seed)
    for key, inputs in examples:
        print(f"{raw[key]} x {key}\n    {json.dumps(inputs)[:500]}")
    print(f"{sum(outcomes.values())} prompts: {dict(outcomes)}; {sum(raw.values())} raw errors from nodes of the pack")
    return 1 if raw else 0


if __name__ == "__main__":
    sys.exit(main())
