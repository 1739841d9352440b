"""The layer editor of the canvas without a browser: its own tests by node, and its parser against `xti.prompts` on
the same texts.
"""

import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from guidance_lab.xti.layers import named_table, table_for
from guidance_lab.xti.prompts import parse

TESTS = Path(__file__).resolve().parent.parent / "canvas_unit"
TABLES = {
    "sd1": named_table("sd1"),
    "sdxl": named_table("sdxl"),
    "sdxl blocks": named_table("sdxl", per_block=True),
    "wan": table_for({"image_model": "wan2.1", "num_layers": 30}),
    "flux": table_for({"image_model": "flux", "depth": 5, "depth_single_blocks": 7}),
}
TEXTS = [
    "", "\n\n", "# only a comment", "middle: a green lizard", "middle: a\n", "middle: a\r\nouter: b\r\n",
    "0-3, 10-15 @0-0.5 x0.8: a red: cube", "MID @ .25-1 x 1.5: b", "innermost 1 x-1: c", "innermost 0: c",
    "innermost  99: c",
    "middle", "middle a: b @0-1", "middle @: b", "middle @0: b", "middle @0.5-0.4: b", "middle @0-1.5: b",
    "middle @a-b: c",
    "middle @-0.1-0.5: c", "middle @0-0.5 @0.5-1: c", "middle x: c", "middle xa: c", "middle x.: c", "middle x1.: c",
    "MID x0.8 @0-1: c",
    "midle: a", ",: a", "MID,,IN08: a", " : a", "16: a", "0-99: a", "5-3: a", "OUT03-IN01: a", "IN04.1: a",
    "IN04-IN05: a", "blocks: a",
    "blocks.3: a", "blocks.1-blocks.4: a", "down: a\nup: b\nMID: c", "all: a\nMID: b", "MID @0-0.5: a\nMID @0.5-1: b",
    "MID @0-0.6: a\nMID @0.5-1: b", "middle:", "middle:   ", "mid: lower case", "fine: a\ncoarse: b\n\n# c\n inner : d",
    "０-３: full-width digits", "MID x０.５: half", "MID @0-0.5 x٢: arabic two",
    f"MID x{'9' * 400}: a", f"MID x{'٩' * 400}: a", "MID: 全角　スペース　",
    "MID\u3000: a", "all\u2028MID: b", "MID: a\x0bIN08: b",
    "MID : a : b", "0 - 3 , MID: spaces", "-3: a", "3-: a", "-: a",
    "double: a\nsingle: b", "single @0-0.5: a", "Double, single_blocks.3: a", "single_blocks: a",
    "innermost: a", "innermost x: a", "innermost 3 x2: a", "ALL X2: a", "all x2 : a",
]  # fmt: skip
PIECES = [
    "middle", "outer", "down", "up", "all", "innermost ", "MID", "IN08", "OUT03", "IN07-OUT05", "blocks.2", "IN04.1",
    "0-3", "12", "7",
    ",", ", ", " ", "-", "@",
    "@0-0.4", " @0.2-0.7", " x0.5", " x", ": ", ":", "a cat", "\n", "\n", "# ", ".", "x2", "\t", "\u3000", "３", "\x85",
    "\ufeff",
]  # fmt: skip


def test_the_model_of_the_editor(tmp_path):
    node = shutil.which("node")
    if node is None:
        reason = "the tests of the layer editor's model need node (https://nodejs.org, 20 or newer) on the PATH"
        # On a build machine a test that is silently left out would look like one that passed.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    fixture = tmp_path / "layer_texts.json"
    fixture.write_text(json.dumps(_fixture()), encoding="utf-8")
    environment = {**os.environ, "GUIDANCE_LAB_LAYER_TEXTS": str(fixture)}
    files = sorted(map(str, TESTS.glob("*.test.mjs")))
    run = subprocess.run(
        [node, "--test", *files], env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert "skipped 0" in run.stdout, run.stdout[-1500:]


def _fixture() -> dict:
    """Texts that a person may type, right and wrong, and what the node's parser makes of them."""
    chance = random.Random(3)
    texts = [*TEXTS, *("".join(chance.choices(PIECES, k=chance.randint(2, 9))) for _ in range(4000))]
    return {
        "tables": {name: _table(table) for name, table in TABLES.items()},
        "texts": [
            {"table": name, "text": text, **_parsed(text, table)} for text in texts for name, table in TABLES.items()
        ],
    }


def _table(table) -> dict:
    layers = [
        {"name": layer.name, "direction": layer.direction, "resolution": layer.resolution, "place": layer.block[0]}
        for layer in table.layers
    ]
    return {"architecture": table.architecture, "layers": layers, "inside_out": table.inside_out()}


def _parsed(text: str, table) -> dict:
    try:
        prompts = parse(text, table)
    except ValueError as error:
        return {"error": str(error), "prompts": None}
    return {"error": None, "prompts": [[p.layers, p.text, p.strength, p.start, p.end, p.line] for p in prompts]}
