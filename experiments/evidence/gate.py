"""The gate that the Shapes models pass before they ship: readers, pictures of the main model, whether its inner levels
matter.

Writes the report (`--json`), whose `ratios` are what the gate is about, and beside it `gate.md` (tables),
`world.png` (renders), `vae.png` (renders above what the VAE makes of them) and `samples.png` (the main model, CFG 2).
What has no weights yet is left out. `--only` makes one part anew; the others stay as the file at `--json` has them.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from guidance_lab.experiments.data import SCENES, scene
from guidance_lab.experiments.latents import Latents, pixels
from guidance_lab.experiments.sampling import contexts, sample, without_text, zeroed_below
from guidance_lab.experiments.train.diffusion import MAIN, SAMPLES, frozen_text, prompts, untrained
from guidance_lab.experiments.training import CHECKPOINT, RUNS, prepare, seen, trained
from guidance_lab.shapes.read import judge, read
from guidance_lab.shapes.render import render
from guidance_lab.shapes.world import BACKGROUNDS, COLOURS, OBJECTS, TEXTURES, Scene, Thing, hue_of
from tools.report import arguments, insert_tables, write_report

READ = ("object", "colour", "texture", "background", "count", "relation", "all", "size")
PARTS = ("world", "vae", "main", "levels", "sheet")
# (key of the report, at least)
GATE = {
    "reader_object": 0.99, "reader_colour": 0.99, "reader_background": 0.99, "reader_count": 0.99,
    "reader_texture": 0.97, "reader_relation": 0.97,
    "reader_object_vae": 0.99, "reader_colour_vae": 0.99, "reader_background_vae": 0.99,
    "reader_count_vae": 0.99,
    "reader_texture_vae": 0.97, "reader_relation_vae": 0.97,
    "unguided_object_colour": 0.85, "cfg2_complex_all": 0.65, "inner_levels_cost": 0.20,
    "clip_swapped": 0.9, "galip_object_colour": 0.75,
}  # fmt: skip
SHEET = [
    "a large red ball on white", "a green star on sand", "a blue striped car on gray", "a yellow house on black",
    "a purple dotted cup on ice", "a cyan lizard on sand", "a orange mushroom on white", "a pink striped fish on ice",
    "a green tree on sand", "a small yellow dotted cube on gray", "two red mushrooms on ice",
    "three blue balls on sand", "a red house left of a green tree on ice", "a yellow star above a blue car on black",
    "a pink cup left of a cyan cup on white", "a orange fish above a purple ball on gray",
]  # fmt: skip


def judged(scenes: list[Scene], pictures: np.ndarray) -> list[dict[str, float]]:
    """What the readers say to each picture."""
    return [judge(wanted, read(picture)) for wanted, picture in zip(scenes, pictures, strict=True)]


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every judgement over the pictures that have it, and the share with object and colour right at once."""
    kept = [key for key in READ if any(key in row for row in rows)]
    found = {key: float(np.mean([row[key] for row in rows if key in row])) for key in kept}
    # a thing's colour counts only where its object is right, so `colour` is object and colour at once
    return found | {"pictures": len(rows)}


def grid(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Pictures [N, H, W, 3], N a multiple of `columns`, as one."""
    rows = [np.concatenate(list(pictures[i : i + columns]), 1) for i in range(0, len(pictures), columns)]
    return np.concatenate(rows)


def world_sheet() -> np.ndarray:
    """Every object once in its own colour, texture and background, then fresh scenes."""
    colours, backgrounds = list(COLOURS) * 2, BACKGROUNDS * 2
    first = [
        Scene((Thing(name, hue_of(colours[i]), TEXTURES[i % 3], size=80),), backgrounds[i])
        for i, name in enumerate(OBJECTS)
    ]
    return grid(np.stack([render(s) for s in [*first, *(scene(SCENES + i) for i in range(50))]]), 10)


def main_model(device: str):
    """(host model, EMA network of the main run, samples it saw)."""
    base, unet = untrained(MAIN)
    average = {key.removeprefix("module."): value for key, value in trained("main", "average").items()}
    unet.load_state_dict(average)
    base.model_sampling.to(device)
    return base, unet.to(device).eval().requires_grad_(False), seen("main")


def curve() -> list[str]:
    """The main run's looks with the readers (100 pictures each, so ± 0.1) as lines of a table."""
    logs = [folder / "log.jsonl" for folder in (RUNS / "main", CHECKPOINT) if (folder / "log.jsonl").exists()]
    rows = [json.loads(line) for log in logs[:1] for line in log.read_text(encoding="utf-8").splitlines()]
    looks = [row for row in rows if "loss" not in row]
    if not looks:
        return []
    names = [name for name in looks[-1] if name != "samples"]
    lines = ["| samples | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    return lines + [
        f"| {row['samples']} | " + " | ".join(f"{row.get(name, float('nan')):.2f}" for name in names) + " |"
        for row in looks
    ]


def main() -> int:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS, action="append", help="make this part alone (may be given again)")
    parser.add_argument("--out", type=Path, help="where pictures and tables go (beside the --json file)")
    args = parser.parse_args()
    args.threads = 1
    device = prepare(args)
    wanted = set(args.only or PARTS)
    out = args.out or (args.json.parent if args.json else RUNS / "evidence")
    out.mkdir(parents=True, exist_ok=True)
    rows, ratios = [], {}
    if args.only and args.json and args.json.exists():
        before = json.loads(args.json.read_text(encoding="utf-8"))
        rows, ratios = [row for row in before["rows"] if row["part"] not in wanted], before["ratios"]

    def add(part: str, name: str, scenes: list[Scene], pictures: np.ndarray) -> dict[str, float]:
        row = means(judged(scenes, pictures))
        rows.append({"part": part, "pictures of": name} | row)
        print(rows[-1], flush=True)
        return row

    # renders of scenes that training never saw
    fresh = [scene(SCENES + i) for i in range(100 if args.quick else 1000)]
    if "world" in wanted:
        row = add("world", "fresh renders", fresh, np.stack([render(s) for s in fresh]))
        ratios |= {f"reader_{key}": row[key] for key in READ[:6]}
        Image.fromarray(world_sheet()).save(out / "world.png")
    if "vae" in wanted and seen("vae"):
        latents, some = Latents(device), fresh[: 60 if args.quick else 500]
        pictures = np.stack([render(s) for s in some])
        back = through(latents, pictures)
        row = add("vae", "renders through the VAE", some, back)
        error = np.mean(np.square(back.astype(np.float64) - pictures))
        rows[-1]["PSNR"] = 10 * np.log10(255**2 / error)
        ratios |= {f"reader_{key}_vae": row[key] for key in READ[:6]}
        ratios["psnr_vae"] = rows[-1]["PSNR"]
        pairs = [grid(chunk[i : i + 10], 10) for i in range(0, 30, 10) for chunk in (pictures, back)]
        Image.fromarray(np.concatenate(pairs)).save(out / "vae.png")
    if wanted & {"main", "levels", "sheet"} and seen("main"):
        latents, text = Latents(device), frozen_text(device)
        base, unet, samples = main_model(device)
        empty = contexts(text, [""], device)

        def draw(captions: list[str], seed: int, cfg: float = 1.0) -> np.ndarray:
            return latents.decoded(sample(base, unet, contexts(text, captions, device), empty, seed, cfg)).numpy()

        count = 50 if args.quick else 400
        singles, several = prompts(count, True), prompts(count, False)
        said = [s.caption for s in singles]
        ratios["samples_seen"] = samples
        if wanted & {"main", "levels"}:
            whole = add(
                "main" if "main" in wanted else "levels",
                f"main at {samples} samples, one thing, unguided",
                singles,
                draw(said, 5),
            )
            ratios["unguided_object_colour"] = whole["colour"]
        if "main" in wanted:
            add("main", "one thing, CFG 2", singles, draw(said, 5, 2.0))
            row = add("main", "two and three things, CFG 2", several, draw([s.caption for s in several], 6, 2.0))
            ratios["cfg2_complex_all"] = row["all"]
        if "levels" in wanted:
            for side in (8, 4, 2):
                hook = zeroed_below(unet, side)
                row = add(
                    "levels", f"one thing, unguided, levels of {side}×{side} and smaller zeroed", singles, draw(said, 5)
                )
                hook.remove()
                if side == 4:
                    ratios["inner_levels_cost"] = whole["object"] - row["object"]
            sides = {16, 8, 4, 2}
            for side in sorted(sides, reverse=True):
                for name, silent in (("no text", {side}), ("text only", sides - {side})):
                    hooks = without_text(unet, silent, empty)
                    add("levels", f"one thing, unguided, {name} on maps of {side}×{side}", singles, draw(said, 5))
                    for hook in hooks:
                        hook.remove()
        if "sheet" in wanted:
            drawn = [grid(draw(SHEET, seed, 2.0), 16) for seed in (1, 2, 3)]
            Image.fromarray(np.concatenate(drawn)).save(out / "samples.png")
    for key, path in (("clip_swapped", "clip"), ("galip_object_colour", "galip")):
        result = RUNS / path / "result.json"
        if result.exists():
            ratios[key] = float(json.loads(result.read_text(encoding="utf-8"))[key])
    columns = [*READ, "pictures"]
    lines = ["| pictures of | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        cells = [f"{row[c]:.3f}" if c in READ and c in row else str(row.get(c, "")) for c in columns]
        lines.append(f"| {row['pictures of']} | " + " | ".join(cells) + " |")
    held = {key: ratios[key] >= bar for key, bar in GATE.items() if key in ratios}
    lines += ["", "| gate | at least | measured | |", "|---|---|---|---|"]
    for key, bar in GATE.items():
        measured = f"{ratios[key]:.3f} | {'PASS' if held[key] else 'FAIL'}" if key in ratios else "not measured | "
        lines.append(f"| {key} | {bar} | {measured} |")
    if "samples_seen" in ratios:
        lines += ["", f"The main model saw {ratios['samples_seen']:.0f} of the {SAMPLES} samples of its plan."]
    lines += ["", *curve()]
    print("\n".join(lines))
    insert_tables(out / "gate.md", "\n".join(lines))
    write_report(args.json, ratios, rows, device)
    return 0 if all(held.values()) and len(held) == len(GATE) else 1


@torch.no_grad()
def through(latents: Latents, pictures: np.ndarray) -> np.ndarray:
    """Pictures [N, 128, 128, 3] after encoding and decoding."""
    rows = []
    for part in torch.from_numpy(pictures).split(25):
        z = latents.vae.quant_conv(latents.vae.encoder(pixels(part).to(latents.device))).chunk(2, 1)[0].float().cpu()
        rows.append(latents.decoded((z - latents.mean) / latents.std))
    return torch.cat(rows).numpy()


if __name__ == "__main__":
    sys.exit(main())
