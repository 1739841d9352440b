"""XTI in Shapes: textual inversion with one and four vectors against XTI, regularisers, style mixing; concepts that no
word names.

Each concept is learned from eight renderings on white through XTI Train, drawn through XTI Prompt and judged by the
readers:

    reconstruction   "a * on white": shape, hue and texture of the concept
    editability      other backgrounds, beside other things, in another colour: the edit is there and the concept too

Learned tokens and figures are kept in `experiments/runs/`, so a run that was stopped goes on where it was. `--only NAME
...` takes a part of the runs: two processes can share the work so.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from guidance_lab.experiments.concepts import CONCEPTS, Concept
from guidance_lab.experiments.evidence.pictures import DOCS, contact_sheet, weights_key
from guidance_lab.experiments.sampling import draw, encode
from guidance_lab.experiments.training import RUNS
from guidance_lab.shapes import shipped
from guidance_lab.shapes.read import nearest_colour, read
from guidance_lab.xti import XTI, load, save
from guidance_lab.xti.layers import named_table
from guidance_lab.xti.mixing import cumulative
from tools.report import arguments, insert_tables, write_report

PICTURES, CFG, SEED = 8, 2.0, 5000
STEPS = (25, 50, 100, 200, 500)
LONG = 2000  # textual inversion alone, which is known to need more
BACKGROUND = ("black", "sand", "gray")
COMPANY = (("a {} left of a blue ball on white", "ball", "blue"), ("a red cube left of a {} on white", "cube", "red"))
COLOUR = ("green", "blue")
MIX_COUNTS = (0, 1, 2, 3, 4, 6, 8, 10, 11, 12, 14, 16)


@dataclass(frozen=True)
class Setting:
    """One way to learn: a name, how many vectors, one for all layers or not, the last step, and the regulariser's
    settings.
    """

    name: str
    vectors: int = 1
    shared: bool = False
    last: int = STEPS[-1]
    regulariser: tuple = ("none", 0.0)


WAYS = (Setting("TI", shared=True, last=LONG), Setting("TI, 4 vectors", 4, shared=True), Setting("XTI"))
REGULARISED = tuple(
    Setting(f"XTI, {name} {weight:g}", regulariser=(name, weight))
    for name, weight in (
        ("norm", 0.1),
        ("norm", 1.0),
        ("norm decay", 0.1),
        ("density", 1e-5),
        ("density", 1e-4),
        ("density", 1e-3),
    )
)


class World:
    """The shipped models and the pack's own nodes."""

    def __init__(self):
        from guidance_lab.nodes.layers.learned_tokens import clip_widths, word_rows
        from guidance_lab.nodes.layers.training_run import TrainingRun
        from guidance_lab.nodes.layers.xti_prompt import XTIPrompt
        from guidance_lab.xti.training import Recipe

        self.model, self.clip, self.vae = shipped.load_model("main"), shipped.load_clip(), shipped.load_vae()
        self.prompt, self.run, self.recipe = XTIPrompt.PREPARE_CLASS_CLONE(None), TrainingRun, Recipe
        self.rows = lambda word, vectors: word_rows(self.clip, word, vectors)
        self.widths = clip_widths(self.clip)
        self.empty = encode(self.clip, [""])

    def learning(self, concept: Concept, setting: Setting, seed: int, batch: int):
        """The node's own run, not yet begun."""
        pixels = torch.from_numpy(concept.pictures(PICTURES, seed)).float() / 255
        with torch.no_grad():
            latents = self.vae.encode(pixels)
        table = named_table("sd1")
        start = XTI(table, dict.fromkeys(table.names, self.rows(concept.word, setting.vectors)), "word", self.widths)
        kind, weight = setting.regulariser
        recipe = self.recipe(
            batch=batch, at_once=batch, shared=setting.shared, regulariser=kind, weight=weight, seed=seed
        )
        return self.run(self.model, self.clip, None, ["a {} on white"], latents, start, recipe, None)

    def draw(self, token: XTI, text: str, count: int, seed: int = SEED) -> np.ndarray:
        """`count` pictures of a text with {} for the token: uint8 [count, 128, 128, 3]."""
        model, conditioning = self.prompt.execute(
            self.model, self.clip, text.replace("{}", "xti:A"), {"A": token}
        ).result
        contexts = self.empty.expand(count, -1, -1)
        return draw(model, self.vae, contexts, self.empty, seed, CFG, conditioning=lambda rows: conditioning)


def reconstruction(world: World, concept: Concept, token: XTI, count: int) -> dict[str, float]:
    """Shares of "a * on white" with the concept's shape, hue, texture, and all three."""
    found = [concept.found_in(picture) for picture in world.draw(token, "a {} on white", count)]
    return {key: float(np.mean([each[key] for each in found])) for key in found[0]}


def editability(world: World, concept: Concept, token: XTI, count: int) -> dict[str, float]:
    """For each kind of edit the share of pictures that show it together with the concept, and the mean of the three."""
    kinds: dict[str, list[float]] = {"background": [], "company": [], "colour": []}
    for name in BACKGROUND:
        for picture in world.draw(token, f"a {{}} on {name}", count):
            kinds["background"].append(concept.found_in(picture)["all"] * (read(picture).background == name))
    for text, name, colour in COMPANY:
        for picture in world.draw(token, text, count):
            beside = any(thing.name == name and nearest_colour(thing.hue) == colour for thing in read(picture).things)
            kinds["company"].append(concept.found_in(picture)["all"] * beside)
    for colour in COLOUR:
        for picture in world.draw(token, f"a {colour} {{}} on white", count):
            kept = concept.found_in(picture)
            kinds["colour"].append(kept["shape"] * kept["texture"] * (concept.colour_in(picture) == colour))
    result = {key: float(np.mean(values)) for key, values in kinds.items()}
    return result | {"editability": float(np.mean(list(result.values())))}


def norms(token: XTI) -> float:
    return float(torch.cat(list(token.layers.values())).norm(dim=1).mean())


def learn(world: World, concept: Concept, setting: Setting, seed: int, folder: Path, quick: bool) -> dict:
    """Trains one token, with its reconstruction on the way and its editability at STEPS[-1] and at the end; kept in
    `folder`.
    """
    name = f"{concept.name} {setting.name} {seed}".replace(" ", "_").replace(",", "")
    path = folder / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    steps, last, count = ((2, 4), 4, 2) if quick else (STEPS, setting.last, 24)
    began = time.time()
    run, row = (
        world.learning(concept, setting, seed, batch=4),
        {"concept": concept.name, "setting": setting.name, "seed": seed},
    )
    for step in sorted({*steps, last}):
        with torch.inference_mode(False), torch.enable_grad():
            run.train(step - run.trainer.done, 0)
        token = run.learned()
        row[f"step {step}"] = reconstruction(world, concept, token, count)
        if step in (steps[-1], last):
            row[f"edits {step}"] = editability(world, concept, token, count // 2)
            row[f"norm {step}"] = norms(token)
    save(token, folder / f"{name}.safetensors")
    row["steps per second"] = run.trainer.done / run.seconds
    path.write_text(json.dumps(row), encoding="utf-8")
    print(f"{name}: {time.time() - began:.0f} s", flush=True)
    return row


def style_mixing(world: World, folder: Path, quick: bool) -> tuple[list[dict], list[np.ndarray]]:
    """The crescent's shape with the house's look: the k innermost layers from the crescent, k = 0 ... 16."""
    shape, look = CONCEPTS[2], CONCEPTS[0]
    tokens = [load(folder / f"{concept.name} XTI 0.safetensors".replace(" ", "_")) for concept in (shape, look)]
    rows, pictures = [], []
    for count in (0, 2, 16) if quick else MIX_COUNTS:
        drawn = world.draw(cumulative(*tokens, count), "a {} on white", 2 if quick else 24)
        shapes, looks = ([concept.found_in(picture) for picture in drawn] for concept in (shape, look))
        row = {"shape": np.mean([each["shape"] for each in shapes])} | {
            k: np.mean([each[k] for each in looks]) for k in ("hue", "texture")
        }
        rows.append({"inner layers": count, **{key: float(value) for key, value in row.items()}})
        pictures.append(drawn)
    return rows, pictures


def table(head: list[str], rows: list[list]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(
        lines + ["| " + " | ".join(f"{x:.2f}" if isinstance(x, float) else str(x) for x in row) + " |" for row in rows]
    )


def mean_of(rows: list[dict], part: str, key: str) -> float:
    return float(np.mean([row[part][key] for row in rows if part in row]))


def tables(rows: list[dict], mixing: list[dict], quick: bool) -> tuple[str, dict[str, float]]:
    """Markdown, and the numbers that the claims are about."""
    steps = (2, 4) if quick else STEPS
    last = steps[-1]
    names = list(dict.fromkeys(row["setting"] for row in rows))
    by = {name: [row for row in rows if row["setting"] == name] for name in names}
    shown = sorted({int(key.split()[1]) for row in rows for key in row if key.startswith("step ")})
    parts = ["Reconstruction (all of shape, hue, texture) over the steps, mean over concepts and seeds:\n"]
    parts.append(table(["setting", *map(str, shown), "steps/s"], [
        [n, *(mean_of(by[n], f"step {s}", "all") if f"step {s}" in by[n][0] else "" for s in shown),
         float(np.mean([r["steps per second"] for r in by[n]]))] for n in names
    ]))  # fmt: skip
    head = [
        "setting",
        "step",
        "shape",
        "hue",
        "texture",
        "reconstruction",
        "background",
        "company",
        "colour",
        "editability",
        "norm",
    ]
    ends = [(n, s) for n in names for s in shown if f"edits {s}" in by[n][0]]
    parts.append("\nReconstruction against editability:\n")
    parts.append(table(head, [
        [n, s, *(mean_of(by[n], f"step {s}", k) for k in ("shape", "hue", "texture", "all")),
         *(mean_of(by[n], f"edits {s}", k) for k in ("background", "company", "colour", "editability")),
         float(np.mean([r[f"norm {s}"] for r in by[n]]))] for n, s in ends
    ]))  # fmt: skip
    parts.append("\nBy concept at the same step (reconstruction / editability):\n")
    concepts = list(dict.fromkeys(row["concept"] for row in rows))
    parts.append(table(["setting", *concepts], [
        [n, *(_pair([r for r in by[n] if r["concept"] == c], last) for c in concepts)] for n in names
    ]))  # fmt: skip
    parts.append("\nStyle mixing: the k innermost layers of the crescent, all others of the teal striped house:\n")
    parts.append(table(list(mixing[0]), [list(row.values()) for row in mixing]))
    measures = (("reconstruction", "step", "all"), ("editability", "edits", "editability"))
    ratios = {
        f"{what} at step {last}: {n}": mean_of(by[n], f"{part} {last}", key)
        for n in names
        for what, part, key in measures
    }
    return "\n".join(parts), ratios


def _pair(rows: list[dict], step: int) -> str:
    if not rows:
        return ""
    return f"{mean_of(rows, f'step {step}', 'all'):.2f} / {mean_of(rows, f'edits {step}', 'editability'):.2f}"


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these settings, and no report")
    args = parser.parse_args()
    folder = RUNS / "evidence" / f"xti-{weights_key()}{'-quick' if args.quick else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    plan = [(c, s, seed) for c in CONCEPTS for s in WAYS for seed in (0, 1)]
    plan += [(c, s, 0) for c in (CONCEPTS[0], CONCEPTS[2]) for s in REGULARISED]
    if args.quick:
        plan = [
            (CONCEPTS[0], WAYS[0], 0),
            (CONCEPTS[0], WAYS[2], 0),
            (CONCEPTS[2], WAYS[2], 0),
            (CONCEPTS[0], REGULARISED[0], 0),
        ]
    known = {s.name for _, s, _ in plan}
    if set(args.only or []) - known:
        parser.error(f"no setting {', '.join(sorted(set(args.only) - known))}; there is {', '.join(sorted(known))}")
    world = World()
    rows = [learn(world, c, s, seed, folder, args.quick) for c, s, seed in plan if not args.only or s.name in args.only]
    if args.only:
        return
    mixing, pictures = style_mixing(world, folder, args.quick)
    text, ratios = tables(rows, mixing, args.quick)
    print(text)
    write_report(args.json, ratios, [*rows, *mixing])
    if not args.quick:
        write_report(DOCS / "xti.json", ratios, [*rows, *mixing])
        insert_tables(DOCS / "xti.md", text)
        contact_sheet(DOCS / "xti.png", sheet(world, folder) + pictures[::2])


def sheet(world: World, folder: Path) -> list[np.ndarray]:
    """Per concept: its renderings, then TI and XTI of seed 0 in each kind of edit, three pictures a prompt."""
    prompts = ("a {} on white", "a {} on black", COMPANY[0][0], f"a {COLOUR[0]} {{}} on white")
    rows = []
    for concept in CONCEPTS:
        rows.append(concept.pictures(12, 0))
        for way in ("TI", "XTI"):
            token = load(folder / f"{concept.name} {way} 0.safetensors".replace(" ", "_"))
            rows.append(np.concatenate([world.draw(token, text, 3) for text in prompts]))
    return rows


if __name__ == "__main__":
    main()
