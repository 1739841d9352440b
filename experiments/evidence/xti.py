"""XTI in Shapes: textual inversion with one and four vectors against XTI, with and without the density regulariser;
style mixing; concepts that no word names.

Each concept is learned from eight renderings on white through XTI Train, drawn through XTI Prompt and judged by the
readers:

    reconstruction   "a * on white": shape, hue and texture of the concept
    editability      other backgrounds, beside other things, in another colour: the edit is there and the concept too

Every method first finds its learning rate (and the density its weight) on two concepts and two seeds of its own, by
the mean of both measures; then it learns every concept with five other seeds. Intervals are bootstrapped over concepts
and, within each, over seeds.

Learned tokens and figures are kept in `experiments/runs/`, so a run that was stopped goes on where it was. `--only`,
`--concept` and `--seed` take a part of the runs: one run is a minute or two, and two processes can share the work.
"""

import json
import time
from dataclasses import dataclass, replace
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
STEPS = (25, 50, 100, 200)
EDITED = (50, 200)  # steps at which the edits are drawn too
SEEDS, SWEEP_SEEDS = (0, 1, 2, 3, 4), (10, 11)
SWEEP_CONCEPTS = CONCEPTS[:2]
RATES = (0.001, 0.005, 0.02)
WEIGHTS = (1e-5, 1e-4, 1e-3)  # of the density, at XTI's learning rate
BACKGROUND = ("black", "sand", "gray")
COMPANY = (("a {} left of a blue ball on white", "ball", "blue"), ("a red cube left of a {} on white", "cube", "red"))
COLOUR = ("green", "blue")
MIXES = ((4, 0), (1, 6))  # (concept whose inner layers are taken, concept of the other layers)
MIX_COUNTS = (0, 1, 2, 3, 4, 6, 8, 10, 11, 12, 14, 16)
DRAWS = 4000  # of the bootstrap


@dataclass(frozen=True)
class Setting:
    """One way to learn: a name, how many vectors, one for all layers or not, learning rate, weight of the density."""

    name: str
    vectors: int = 1
    shared: bool = False
    rate: float = 0.005
    density: float = 0.0


METHODS = (
    Setting("TI", shared=True),
    Setting("TI, 4 vectors", 4, shared=True),
    Setting("XTI"),
    Setting("XTI, density", density=1e-4),
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
        recipe = self.recipe(
            learning_rate=setting.rate,
            batch=batch,
            at_once=batch,
            shared=setting.shared,
            regulariser="density" if setting.density else "none",
            weight=setting.density,
            seed=seed,
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


def stem(concept: Concept, setting: Setting, seed: int) -> str:
    """Name of the files of one run."""
    weight = f" {setting.density:g}" if setting.density else ""
    return f"{concept.name} {setting.name} {setting.rate:g}{weight} {seed}".replace(" ", "_").replace(",", "")


def learn(world: World, concept: Concept, setting: Setting, seed: int, folder: Path, quick: bool) -> dict:
    """Trains one token, with its measures on the way; kept in `folder`."""
    path = folder / f"{stem(concept, setting, seed)}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    steps, edited, count = ((2, 4), (4,), 2) if quick else (STEPS, EDITED, 12)
    began = time.time()
    run = world.learning(concept, setting, seed, batch=4)
    row = {"concept": concept.name, "setting": setting.name, "rate": setting.rate, "density": setting.density}
    row["seed"] = seed
    for step in steps:
        with torch.inference_mode(False), torch.enable_grad():
            run.train(step - run.trainer.done, 0)
        token = run.learned()
        row[f"step {step}"] = reconstruction(world, concept, token, count)
        if step in edited:
            row[f"edits {step}"] = editability(world, concept, token, count // 2)
            row[f"norm {step}"] = norms(token)
    save(token, folder / f"{path.stem}.safetensors")
    row["steps per second"] = run.trainer.done / run.seconds
    path.write_text(json.dumps(row), encoding="utf-8")
    print(f"{path.stem}: {time.time() - began:.0f} s", flush=True)
    return row


def worth(rows: list[dict], last: int) -> float:
    """What the sweep chooses by: the mean of reconstruction and editability at the last step."""
    return (mean_of(rows, f"step {last}", "all") + mean_of(rows, f"edits {last}", "editability")) / 2


def sweep(world: World, folder: Path, quick: bool) -> tuple[list[dict], list[Setting]]:
    """(a row for each setting tried, each method at what was best for it)."""
    concepts, seeds = (SWEEP_CONCEPTS[:1], SWEEP_SEEDS[:1]) if quick else (SWEEP_CONCEPTS, SWEEP_SEEDS)
    last, table, chosen = 4 if quick else STEPS[-1], [], []
    for method in METHODS:
        tried = [replace(method, rate=rate) for rate in (RATES[:1] if quick else RATES)]
        if method.density:
            tried = [replace(chosen[-1], name=method.name, density=weight) for weight in WEIGHTS[: 1 if quick else 3]]
        scored = []
        for setting in tried:
            rows = [learn(world, concept, setting, seed, folder, quick) for concept in concepts for seed in seeds]
            found = {
                "reconstruction": mean_of(rows, f"step {last}", "all"),
                "editability": mean_of(rows, f"edits {last}", "editability"),
            }
            table.append({"method": method.name, "rate": setting.rate, "density": setting.density} | found)
            scored.append((worth(rows, last), -len(scored), setting))
        chosen.append(max(scored)[2])
    return table, chosen


def style_mixing(world: World, xti: Setting, folder: Path, quick: bool) -> tuple[list[dict], list[np.ndarray]]:
    """For both pairs of MIXES the k innermost layers of one learned token and all others of another, k = 0 ... 16.

    `object B`, `hue B`, `texture B`: the share with those of the concept whose inner layers are taken; `A`: of the
    other.
    """
    rows, pictures = [], []
    for inner, outer in MIXES[:1] if quick else MIXES:
        b, a = CONCEPTS[inner], CONCEPTS[outer]
        tokens = [load(folder / f"{stem(concept, xti, SEEDS[0])}.safetensors") for concept in (b, a)]
        for count in (0, 2, 16) if quick else MIX_COUNTS:
            drawn = world.draw(cumulative(*tokens, count), "a {} on white", 2 if quick else 24)
            row: dict = {"inner layers of": b.name, "in": a.name, "k": count}
            for label, concept in (("B", b), ("A", a)):
                found = [concept.found_in(picture) for picture in drawn]
                for key, name in (("shape", "object"), ("hue", "hue"), ("texture", "texture")):
                    row[f"{name} {label}"] = float(np.mean([each[key] for each in found]))
            rows.append(row)
            pictures.append(drawn)
    return rows, pictures


def mean_of(rows: list[dict], part: str, key: str) -> float:
    return float(np.mean([row[part][key] for row in rows]))


def interval(rows: list[dict], part: str, key: str) -> tuple[float, float]:
    """95 % of the bootstrapped means: concepts drawn anew, and in each concept its seeds."""
    rng = np.random.default_rng(0)
    by = [
        np.array([row[part][key] for row in rows if row["concept"] == name])
        for name in dict.fromkeys(row["concept"] for row in rows)
    ]
    means = [
        np.mean([rng.choice(by[i], len(by[i])).mean() for i in rng.integers(len(by), size=len(by))])
        for _ in range(DRAWS)
    ]
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def table(head: list[str], rows: list[list]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(
        lines + ["| " + " | ".join(f"{x:.2f}" if isinstance(x, float) else str(x) for x in row) + " |" for row in rows]
    )


def with_interval(rows: list[dict], part: str, key: str) -> str:
    low, high = interval(rows, part, key)
    return f"{mean_of(rows, part, key):.2f} ({low:.2f} to {high:.2f})"


def tables(rows: list[dict], tried: list[dict], mixing: list[dict]) -> tuple[str, dict[str, float]]:
    """Markdown, and the numbers that the claims are about."""
    by = {name: [row for row in rows if row["setting"] == name] for name in dict.fromkeys(r["setting"] for r in rows)}
    steps = [int(key.split()[1]) for key in rows[0] if key.startswith("step ")]
    edited = [int(key.split()[1]) for key in rows[0] if key.startswith("edits ")]
    parts = ["Learning rates and weights tried, on two concepts and two seeds that are not used below:\n"]
    parts.append(
        table(list(tried[0]), [[f"{x:g}" if k in ("rate", "density") else x for k, x in row.items()] for row in tried])
    )
    parts.append("\nReconstruction (all of shape, hue, texture) over the steps, mean and 95 % interval:\n")
    parts.append(table(["method", *map(str, steps), "steps/s"], [
        [name, *(with_interval(found, f"step {step}", "all") for step in steps),
         float(np.mean([row["steps per second"] for row in found]))] for name, found in by.items()
    ]))  # fmt: skip
    parts.append("\nEditability over the steps, mean and 95 % interval:\n")
    parts.append(table(["method", *map(str, edited)], [
        [name, *(with_interval(found, f"edits {step}", "editability") for step in edited)] for name, found in by.items()
    ]))  # fmt: skip
    last = steps[-1]
    parts.append(f"\nAt step {last}:\n")
    parts.append(table(["method", "shape", "hue", "texture", "background", "company", "colour", "norm"], [
        [name, *(mean_of(found, f"step {last}", key) for key in ("shape", "hue", "texture")),
         *(mean_of(found, f"edits {last}", key) for key in ("background", "company", "colour")),
         float(np.mean([row[f"norm {last}"] for row in found]))] for name, found in by.items()
    ]))  # fmt: skip
    parts.append(f"\nBy concept at step {last} (reconstruction / editability):\n")
    parts.append(table(["concept", *by], [
        [concept, *(pair([row for row in found if row["concept"] == concept], last) for found in by.values())]
        for concept in dict.fromkeys(row["concept"] for row in rows)
    ]))  # fmt: skip
    parts.append("\nStyle mixing of learned tokens: the k innermost layers of B, all others of A:\n")
    parts.append(table(list(mixing[0]), [list(row.values()) for row in mixing]))
    ratios = {}
    for name, found in by.items():
        ratios[f"reconstruction at step {steps[0]}: {name}"] = mean_of(found, f"step {steps[0]}", "all")
        ratios[f"reconstruction at step {last}: {name}"] = mean_of(found, f"step {last}", "all")
        ratios[f"editability at step {last}: {name}"] = mean_of(found, f"edits {last}", "editability")
    return "\n".join(parts), ratios


def pair(rows: list[dict], step: int) -> str:
    return f"{mean_of(rows, f'step {step}', 'all'):.2f} / {mean_of(rows, f'edits {step}', 'editability'):.2f}"


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    names = [method.name for method in METHODS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="METHOD", help=f"no report, of {', '.join(names)}")
    parser.add_argument("--concept", nargs="+", choices=[c.name for c in CONCEPTS], help="no report, these concepts")
    parser.add_argument("--seed", nargs="+", type=int, choices=SEEDS, help="no report, these seeds")
    args = parser.parse_args()
    folder = RUNS / "evidence" / f"xti-{weights_key()}{'-quick' if args.quick else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    world = World()
    tried, methods = sweep(world, folder, args.quick)
    concepts = [CONCEPTS[i] for i in MIXES[0]] if args.quick else CONCEPTS
    seeds = SEEDS[:1] if args.quick else SEEDS
    rows = [
        learn(world, concept, method, seed, folder, args.quick)
        for method in methods if not args.only or method.name in args.only
        for concept in concepts if not args.concept or concept.name in args.concept
        for seed in seeds if args.seed is None or seed in args.seed
    ]  # fmt: skip
    if args.only or args.concept or args.seed is not None:
        for row in rows:
            print(json.dumps(row, indent=1))
        return
    mixing, pictures = style_mixing(world, methods[2], folder, args.quick)
    text, ratios = tables(rows, tried, mixing)
    print(text)
    write_report(args.json, ratios, [*tried, *rows, *mixing])
    if not args.quick:
        write_report(DOCS / "xti.json", ratios, [*tried, *rows, *mixing])
        insert_tables(DOCS / "xti.md", text)
        contact_sheet(DOCS / "xti.png", sheet(world, methods, folder) + pictures[::2])


def sheet(world: World, methods: list[Setting], folder: Path) -> list[np.ndarray]:
    """For three concepts: renderings, then TI and XTI of the first seed in each kind of edit, three pictures a
    prompt.
    """
    prompts = ("a {} on white", "a {} on black", COMPANY[0][0], f"a {COLOUR[0]} {{}} on white")
    rows = []
    for concept in (CONCEPTS[0], CONCEPTS[2], CONCEPTS[-1]):
        rows.append(concept.pictures(12, 0))
        for way in (methods[0], methods[2]):
            token = load(folder / f"{stem(concept, way, SEEDS[0])}.safetensors")
            rows.append(np.concatenate([world.draw(token, text, 3) for text in prompts]))
    return rows


if __name__ == "__main__":
    main()
