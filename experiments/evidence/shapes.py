"""Whether Shapes is good enough to measure with: the readers on fresh renders and after the VAE, and the unguided
pictures of every model.

Prints PASS or FAIL for each bar of the project and ends with exit code 1 when one fails; draws the contact sheet of the
README.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from guidance_lab.experiments.evidence.pictures import DOCS, READ, contact_sheet
from guidance_lab.experiments.sampling import draw, encode
from guidance_lab.shapes import shipped
from guidance_lab.shapes.read import judge, read
from guidance_lab.shapes.render import render
from guidance_lab.shapes.world import Scene, parse, random_scene
from tools.report import arguments, insert_tables, write_report

READERS = 0.99  # right on renders after the VAE, for all that is judged
UNGUIDED = 0.60  # object and colour right in single-object prompts, without guidance
SHEET = [
    "a red ball on white", "a green star on sand", "a blue car on gray", "a yellow house on black",
    "a purple cube on white",
    "a cyan lizard on sand", "a red striped house on white", "a blue dotted ball on gray",
    "a green striped car on white",
    "a yellow star left of a purple ball on black", "a red cube above a blue car on sand",
    "a green lizard above a red house on white",
]  # fmt: skip


def shares(scenes: list[Scene], pictures: np.ndarray) -> dict[str, float]:
    """Mean of every judgement over the pictures."""
    rows = [judge(scene, read(picture)) for scene, picture in zip(scenes, pictures, strict=True)]
    return {
        key: float(np.mean([row[key] for row in rows if key in row])) for key in READ if any(key in row for row in rows)
    }


@torch.no_grad()
def through(vae, pictures: np.ndarray) -> np.ndarray:
    """Pictures [N, 128, 128, 3] after encoding and decoding."""
    pixels = torch.from_numpy(pictures).float() / 255
    back = torch.cat([vae.decode(vae.encode(chunk)) for chunk in pixels.split(100)])
    return (back.clamp(0, 1) * 255).round().byte().numpy()


def main() -> int:
    args = arguments(__doc__.splitlines()[0]).parse_args()
    count = 100 if args.quick else 1000
    clip, vae = shipped.load_clip(), shipped.load_vae()
    rng = np.random.default_rng(31)
    scenes = [random_scene(rng) for _ in range(count)]
    fresh = np.stack([render(scene) for scene in scenes])
    rows = [{"pictures": "fresh renders"} | shares(scenes, fresh)]
    rows.append({"pictures": "renders after the VAE"} | shares(scenes, through(vae, fresh)))
    singles = [parse(random_scene(rng, 1).caption) for _ in range(count)]
    contexts, empty = encode(clip, [scene.caption for scene in singles]), encode(clip, [""])
    for name in shipped.MODELS:
        drawn = draw(shipped.load_model(name), vae, contexts, empty, seed=5)
        rows.append({"pictures": f"{name} model, one thing, no guidance"} | shares(singles, drawn))
    judged = ("object", "colour", "background", "count")
    bars = [
        (f"readers right on at least {READERS:.0%} after the VAE ({key})", rows[1][key] >= READERS, rows[1][key])
        for key in judged
    ] + [
        (
            f"unguided object and colour right in at least {UNGUIDED:.0%}",
            rows[2]["colour"] >= UNGUIDED,
            rows[2]["colour"],
        )
    ]
    lines = ["| pictures | " + " | ".join(READ) + " |", "| --- " * (len(READ) + 1) + "|"]
    lines += [
        f"| {row['pictures']} | " + " | ".join(f"{row[key]:.3f}" if key in row else "" for key in READ) + " |"
        for row in rows
    ]
    lines += ["", "| bar | measured | |", "| --- | --- | --- |"]
    lines += [f"| {text} | {value:.3f} | {'PASS' if held else 'FAIL'} |" for text, held, value in bars]
    print("\n".join(lines))
    folder = args.json.parent if args.quick and args.json else DOCS
    write_report(args.json or folder / "shapes.json", {text: value for text, _, value in bars}, rows)
    if not args.quick:
        insert_tables(Path(folder) / "shapes.md", "\n".join(lines))
        sheet = encode(clip, SHEET)
        contact_sheet(
            folder / "shapes.png",
            [draw(shipped.load_model("main"), vae, sheet, empty, seed, cfg=2.0) for seed in (1, 2, 3)],
        )
    return 0 if all(held for _, held, _ in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
