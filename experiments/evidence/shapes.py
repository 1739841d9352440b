"""Whether the shipped Shapes are good enough to measure with: the readers, every model, and what each level of the main
model's U-Net is worth. Ends with exit code 1 when a line of the gate fails.

`ratios` of the report are what the gate is about. `--only PART ...` measures these parts and keeps the others as the
report has them (beside the page, or at `--json`); a part takes one to five minutes on a CPU core. Without `--quick` the
page docs/evidence/shapes.md and its three pictures are written too.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from guidance_lab.experiments.data import SCENES, scene
from guidance_lab.experiments.evidence.galip import pooled
from guidance_lab.experiments.evidence.pictures import DOCS, READ, grid
from guidance_lab.experiments.galip_networks import draw as draw_galip
from guidance_lab.experiments.galip_networks import noise
from guidance_lab.experiments.sampling import draw, encode, without_text, zeroed_below
from guidance_lab.experiments.train.captioner import accuracy, unseen
from guidance_lab.experiments.train.clip import CHANGES, normalized, right_answers
from guidance_lab.experiments.train.diffusion import prompts
from guidance_lab.experiments.train.noised_clip import noised
from guidance_lab.experiments.training import CHECKPOINT, RUNS
from guidance_lab.galip import load_generator
from guidance_lab.guidance.glide import cosine_alpha_bars
from guidance_lab.guidance.noised_clip import load as load_noised_clip
from guidance_lab.shapes import clip as shapes_clip
from guidance_lab.shapes import shipped
from guidance_lab.shapes.read import judge, read
from guidance_lab.shapes.render import render
from guidance_lab.shapes.world import BACKGROUNDS, COLOURS, OBJECTS, TEXTURES, Scene, Thing, hue_of
from tools.report import arguments, insert_tables, write_report

# Key of the report: at least.
GATE = {
    "reader_object": 0.99, "reader_colour": 0.99, "reader_background": 0.99, "reader_count": 0.99,
    "reader_texture": 0.97, "reader_relation": 0.97, "reader_object_vae": 0.99, "reader_colour_vae": 0.99,
    "reader_background_vae": 0.99, "reader_count_vae": 0.99, "reader_texture_vae": 0.97, "reader_relation_vae": 0.97,
    "unguided_object_colour": 0.85, "cfg2_complex_all": 0.65, "inner_levels_cost": 0.20, "clip_swapped": 0.90,
    "noised_clip_relations": 0.85, "galip_object_colour": 0.75,
}  # fmt: skip
JUDGED = (*READ, "size")
SEED = 5
SIDES = (16, 8, 4, 2)  # cells of the four levels' maps
SHEET = [
    "a large red ball on white", "a green star on sand", "a blue striped car on gray", "a yellow house on black",
    "a purple dotted cup on ice", "a cyan lizard on sand", "a orange mushroom on white", "a pink striped fish on ice",
    "a green tree on sand", "a small yellow dotted cube on gray", "two red mushrooms on ice",
    "three blue balls on sand", "a red house left of a green tree on ice", "a yellow star above a blue car on black",
    "a pink cup left of a cyan cup on white", "a orange fish above a purple ball on gray",
]  # fmt: skip


class Report:
    """Rows and ratios of the parts measured so far."""

    def __init__(self, quick: bool):
        self.quick = quick
        self.rows: list[dict] = []
        self.ratios: dict[str, float] = {}
        self.clip, self.vae = shipped.load_clip(), shipped.load_vae()
        self.empty = encode(self.clip, [""])
        self.singles, self.several = prompts(self.count(400), True), prompts(self.count(400), False)

    def count(self, usual: int) -> int:
        return usual // 8 if self.quick else usual

    def add(self, part: str, name: str, scenes: list[Scene], pictures: np.ndarray) -> dict[str, float]:
        """Means of what the readers say to each picture. A thing's colour counts only where its object is right, so
        `colour` is object and colour at once.
        """
        judged = [judge(wanted, read(picture)) for wanted, picture in zip(scenes, pictures, strict=True)]
        kept = [key for key in JUDGED if any(key in row for row in judged)]
        row = {key: float(np.mean([row[key] for row in judged if key in row])) for key in kept}
        self.rows.append({"part": part, "pictures of": name} | row | {"pictures": len(judged)})
        print(self.rows[-1], flush=True)
        return row

    def drawn(self, model, scenes: list[Scene], cfg: float = 1.0) -> np.ndarray:
        contexts = encode(self.clip, [s.caption for s in scenes])
        return draw(model, self.vae, contexts, self.empty, SEED, cfg)


@torch.no_grad()
def readers(report: Report) -> None:
    """Renders of scenes that no training saw, and the same after the VAE."""
    fresh = [scene(SCENES + i) for i in range(report.count(1000))]
    pictures = np.stack([render(s) for s in fresh])
    row = report.add("readers", "fresh renders", fresh, pictures)
    report.ratios |= {f"reader_{key}": row[key] for key in READ[:6]}
    pixels = torch.from_numpy(pictures).float() / 255
    back = torch.cat([report.vae.decode(report.vae.encode(part)) for part in pixels.split(50)])
    back = (back.clamp(0, 1) * 255).round().byte().numpy()
    row = report.add("readers", "renders after the VAE", fresh, back)
    report.ratios |= {f"reader_{key}_vae": row[key] for key in READ[:6]}
    report.ratios["psnr_vae"] = 10 * np.log10(255**2 / np.mean(np.square(back.astype(np.float64) - pictures)))


def main_model(report: Report) -> None:
    model = shipped.load_model("main")
    row = report.add("main", "main, one thing, unguided", report.singles, report.drawn(model, report.singles))
    report.ratios["unguided_object_colour"] = row["colour"]
    report.add("main", "main, one thing, CFG 2", report.singles, report.drawn(model, report.singles, 2.0))
    row = report.add(
        "main", "main, two and three things, CFG 2", report.several, report.drawn(model, report.several, 2.0)
    )
    report.ratios["cfg2_complex_all"] = row["all"]


def guides(report: Report) -> None:
    for name in ("early", "small"):
        drawn = report.drawn(shipped.load_model(name), report.singles)
        report.add("guides", f"{name} guide, one thing, unguided", report.singles, drawn)


def levels(report: Report) -> None:
    """What is left without the network's inner levels, without the text at one level, and with the text there alone."""
    model, singles = shipped.load_model("main"), report.singles
    unet = model.model.diffusion_model
    whole = report.add("levels", "all levels", singles, report.drawn(model, singles))
    for side in SIDES[1:]:
        hook = zeroed_below(unet, side)
        name = f"nothing from levels of {side}×{side} cells and fewer"
        row = report.add("levels", name, singles, report.drawn(model, singles))
        hook.remove()
        if side == 4:  # a quarter of the latent's side: where P+'s inner layers are
            report.ratios["inner_levels_cost"] = whole["object"] - row["object"]
    for side in SIDES:
        for name, silent in (("no text", {side}), ("text only", set(SIDES) - {side})):
            hooks = without_text(unet, silent, report.empty)
            report.add("levels", f"{name} on {side}×{side} cells", singles, report.drawn(model, singles))
            for hook in hooks:
                hook.remove()


def clips(report: Report) -> None:
    """How often a caption scores higher than itself with one thing wrong, by kind of change, for both CLIPs."""

    def add(name: str, right: dict[str, float]) -> dict[str, float]:
        report.rows.append({"part": "clips", "CLIP": name} | right)
        print(report.rows[-1], flush=True)
        return right

    clip, count = shipped.load_clip_module(), report.count(1000)
    with torch.no_grad():
        right = right_answers(
            lambda x: clip.encode_image(normalized(x)), lambda said: clip.encode_text(shapes_clip.tokens(said)), count
        )
    report.ratios["clip_swapped"] = add("clean", right)["swap"]
    if not shipped.has_noised_clip("shapes"):
        return
    knows, bars = load_noised_clip(*shipped.noised_clip_files("shapes")), cosine_alpha_bars()

    def text(said: list[str]) -> torch.Tensor:
        ids = shapes_clip.tokens(said)
        return knows.text(ids, shapes_clip.lengths(ids))

    relations = []
    for t in (0, 100, 200, 300, 600):
        with torch.no_grad():
            right = right_answers(
                lambda x, t=t: knows.image(noised(x * 2 - 1, bars[t].item()), torch.full((len(x),), t)), text, count
            )
        relations += [add(f"noise-aware, t = {t}", right)["relation"]] if t <= 300 else []
    report.ratios["noised_clip_relations"] = min(relations)


def captioner(report: Report) -> None:
    right = accuracy(shipped.load_captioner(), *unseen(report.count(512)))
    report.rows.append({"part": "captioner", "pictures of": "captions of fresh renders"} | right)
    report.ratios["captioner_exact"] = right["all"]
    print(report.rows[-1], flush=True)


@torch.no_grad()
def galip(report: Report) -> None:
    weights, sizes = shipped.galip_weights()
    generator = load_generator(weights, sizes=sizes)
    said = pooled(report.clip, [s.caption for s in report.singles])
    drawn = draw_galip(generator, said, noise(len(said), SEED))
    report.ratios["galip_object_colour"] = report.add("galip", "GALIP, one thing", report.singles, drawn)["colour"]


PARTS: dict[str, Callable[[Report], None]] = {
    "readers": readers, "main": main_model, "guides": guides, "levels": levels, "clips": clips, "captioner": captioner,
    "galip": galip,
}  # fmt: skip


def curve() -> list[str]:
    """The main training's looks with the readers (100 pictures each, so ± 0.1) as lines of a table."""
    log = next((f / "log.jsonl" for f in (RUNS / "main", CHECKPOINT) if (f / "log.jsonl").exists()), None)
    looks = [row for row in map(json.loads, log.read_text("utf-8").splitlines()) if "loss" not in row] if log else []
    if not looks:
        return []
    names = [name for name in looks[-1] if name != "samples"]
    lines = ["", "| samples | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    return lines + [
        f"| {row['samples']} | " + " | ".join(f"{row[n]:.2f}" if n in row else "" for n in names) + " |"
        for row in looks
    ]


def tables(report: Report) -> str:
    def lines(first: str, columns: tuple[str, ...], rows: list[dict]) -> list[str]:
        head = [f"| {first} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        return head + [
            f"| {row[first]} | " + " | ".join(f"{row[c]:.3f}" if c in row else "" for c in columns) + " |"
            for row in rows
        ]

    readings = [row for part in PARTS for row in report.rows if row["part"] == part and "pictures of" in row]
    text = lines("pictures of", JUDGED, readings)
    by_clip = [row for row in report.rows if row["part"] == "clips"]
    text += ["", *lines("CLIP", CHANGES, by_clip)] if by_clip else []
    text += ["", "| gate | at least | measured | |", "|---|---|---|---|"]
    for key, bar in GATE.items():
        value = report.ratios.get(key)
        held = "" if value is None else "PASS" if value >= bar else "FAIL"
        text.append(f"| {key} | {bar} | {'not measured' if value is None else f'{value:.3f}'} | {held} |")
    return "\n".join(text + curve())


def write_pictures(report: Report, folder: Path) -> None:
    """`shapes.png`: what the main model draws; `shapes_world.png`: renders."""
    model = shipped.load_model("main")
    contexts = encode(report.clip, SHEET)
    rows = [draw(model, report.vae, contexts, report.empty, seed, 2.0) for seed in (1, 2, 3)]
    Image.fromarray(grid(np.concatenate(rows), len(SHEET))).save(folder / "shapes.png", optimize=True)
    colours, backgrounds = list(COLOURS) * 2, BACKGROUNDS * 2
    first = [
        Scene((Thing(name, hue_of(colours[i]), TEXTURES[i % 3], size=80),), backgrounds[i])
        for i, name in enumerate(OBJECTS)
    ]
    shown = np.stack([render(s) for s in [*first, *(scene(SCENES + i) for i in range(20))]])
    Image.fromarray(grid(shown, 10)).save(folder / "shapes_world.png", optimize=True)


def main() -> int:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts")
    args = parser.parse_args()
    torch.set_num_threads(1)
    report = Report(args.quick)
    path = args.json or (None if args.quick else DOCS / "shapes.json")
    if args.only and path and path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        report.rows = [row for row in before["rows"] if row["part"] not in args.only]
        report.ratios = before["ratios"]
    for name in args.only or PARTS:
        PARTS[name](report)
        write_report(path, report.ratios, report.rows)
    text = tables(report)
    print(text)
    if not args.quick:
        insert_tables(DOCS / "shapes.md", text)
        write_pictures(report, DOCS)
    return 0 if all(report.ratios.get(key, 0.0) >= bar for key, bar in GATE.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
