"""GALIP in Shapes: one pass against the diffusion model at 5 to 50 steps, what CLIP inside it is worth, and how smooth
its space is.

Pictures are kept in `experiments/runs/`, so a run that was stopped goes on where it was. The ablations are drawn from
their training runs (`train_galip --samples N --seed 9`, the same with `--without-clip-d` and with `--without-clip-g`)
and left out where one is missing.
"""

import numpy as np
import torch

from guidance_lab.experiments.evidence.pictures import (
    DOCS,
    contact_sheet,
    kept,
    measure,
    place_again,
    table,
    weights_key,
)
from guidance_lab.experiments.features import features
from guidance_lab.experiments.galip_networks import draw as draw_galip
from guidance_lab.experiments.galip_networks import networks, noise
from guidance_lab.experiments.sampling import draw, encode
from guidance_lab.experiments.training import RUNS, trained
from guidance_lab.experiments.training import seen as samples_seen
from guidance_lab.galip import Generator, load_generator, walk
from guidance_lab.shapes import shipped
from guidance_lab.shapes.models import LATENT
from guidance_lab.shapes.read import foreground
from guidance_lab.shapes.render import render
from guidance_lab.shapes.world import SIZE, Scene, parse, random_scene
from tools.report import arguments, insert_tables, write_report

SEED = 3000
STEPS = (5, 10, 20, 50)
CFG = 2.0
ABLATIONS = {
    "CLIP in both": "galip-9",
    "without CLIP in D": "galip-without-clip-d-9",
    "without CLIP in G": "galip-without-clip-g-9",
}
COLUMNS = ("simple object+colour", "simple all", "complex all", "texture", "frechet", "precision", "recall", "coverage")


def pooled(clip, captions: list[str]) -> torch.Tensor:
    """What CLIPTextEncode hands to the GALIP Sampler: [N, width]."""
    rows = {
        text: clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][1]["pooled_output"]
        for text in dict.fromkeys(captions)
    }
    return torch.cat([rows[text] for text in captions])


def ablations() -> dict[str, Generator]:
    """Generators of the runs with and without CLIP in one part; empty unless all were trained on as many samples."""
    samples = {samples_seen(name) for name in ABLATIONS.values()}
    if len(samples) > 1 or 0 in samples:
        return {}
    found = {}
    for label, name in ABLATIONS.items():
        generator = networks("in G" not in label)[0]
        generator.load_state_dict({k.removeprefix("module."): v for k, v in trained(name, "average").items()})
        found[f"{label}, {samples.copy().pop()} samples"] = generator
    return found


def seen(picture: np.ndarray) -> np.ndarray:
    """Continuous outputs of the reader: place and extent of all that is not background, and its mean colour; six
    numbers of order 1.
    """
    mask, _ = foreground(picture)
    if not mask.any():
        return np.array([0.5, 0.5, 0.0, *(picture.reshape(-1, 3).mean(0) / 255)])
    ys, xs = np.nonzero(mask)
    return np.array([xs.mean() / SIZE, ys.mean() / SIZE, np.sqrt(mask.mean()), *(picture[mask].mean(0) / 255)])


def largest_step(frames: np.ndarray) -> tuple[float, float]:
    """Largest over mean step of what the reader sees (1 = perfectly even), and the mean step."""
    path = np.stack([seen(frame) for frame in frames])
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    return float(steps.max() / max(steps.mean(), 1e-9)), float(steps.mean())


def walks(generator: Generator, model, vae, clip, pairs: int, frames: int) -> tuple[list[dict], list[np.ndarray]]:
    """Interpolations between one-thing prompts and between noises: the rows of the table, and the first walk of each
    kind.
    """
    rng = np.random.default_rng(55)
    empty = encode(clip, [""])
    found: dict[str, list[np.ndarray]] = {"GALIP, noise": [], "GALIP, text": [], f"diffusion CFG {CFG}, noise": []}
    for pair in range(pairs):
        captions = [random_scene(rng, 1).caption for _ in range(2)]
        texts, codes = pooled(clip, captions), noise(2, 100 + pair)
        found["GALIP, noise"].append(
            draw_galip(generator, texts[:1].expand(frames, -1), walk(codes, frames - 1, "slerp"))
        )
        found["GALIP, text"].append(
            draw_galip(generator, walk(texts, frames - 1, "lerp"), codes[:1].expand(frames, -1))
        )
        ends = torch.randn(2, 4 * LATENT**2, generator=torch.Generator().manual_seed(100 + pair))
        start = walk(ends, frames - 1, "slerp").view(-1, 4, LATENT, LATENT)
        context = encode(clip, captions[:1]).expand(frames, -1, -1)
        found[f"diffusion CFG {CFG}, noise"].append(draw(model, vae, context, empty, 0, CFG, 20, noise=start))
    rows = []
    for name, all_frames in found.items():
        ratios, means = zip(*(largest_step(f) for f in all_frames), strict=True)
        rows.append({"walk": name, "pairs": pairs, "frames": frames, "largest / mean step": float(np.mean(ratios)),
                     "worst": float(np.max(ratios)), "mean step": float(np.mean(means))})  # fmt: skip
    return rows, [f[0] for f in found.values()]


def main() -> None:
    args = arguments(__doc__.splitlines()[0]).parse_args()
    count = 40 if args.quick else 1000
    rng = np.random.default_rng(77)
    scenes: list[Scene] = [parse(random_scene(rng).caption) for _ in range(count)]
    captions = [scene.caption for scene in scenes]
    clip, vae, model = shipped.load_clip(), shipped.load_vae(), shipped.load_model("main")
    weights, sizes = shipped.galip_weights()
    generator = load_generator(weights, sizes=sizes)
    contexts, empty, sentences, codes = (
        encode(clip, captions),
        encode(clip, [""]),
        pooled(clip, captions),
        noise(count, SEED),
    )
    draw(model, vae, contexts[:2], empty, SEED, CFG, 1)  # loading is nobody's time
    settings = {"GALIP": lambda: draw_galip(generator, sentences, codes)}
    for cfg in (1.0, CFG):
        for steps in STEPS[: 2 if args.quick else None]:
            settings[f"diffusion CFG {cfg}, {steps} steps"] = lambda c=cfg, n=steps: draw(
                model, vae, contexts, empty, SEED, c, n
            )
    for name, network in ablations().items():
        settings[name] = lambda g=network: draw_galip(g, sentences, codes)
    folder = RUNS / "evidence" / f"galip-{weights_key('clip', 'galip', 'main', 'text', 'vae')}-{count}"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {
        name: kept(folder / f"{name.replace(' ', '_').replace(',', '')}.npz", make) for name, make in settings.items()
    }
    real, other = (
        np.stack([render(place_again(s, np.random.default_rng([78, k, i]))) for i, s in enumerate(scenes)])
        for k in range(2)
    )
    fresh = features(real)
    rows = [{"setting": "(other renders)"} | measure(other, scenes, fresh)]
    for name, stored in drawn.items():
        rows.append(
            {"setting": name, "ms": 1000 * float(stored["seconds"]) / count}
            | measure(stored["pictures"], scenes, fresh)
        )
    paths, shown = walks(generator, model, vae, clip, *((2, 9) if args.quick else (40, 33)))
    by_name = {row["setting"]: row for row in rows}
    ratios = {
        f"time {name} / GALIP": row["ms"] / by_name["GALIP"]["ms"] for name, row in by_name.items() if "ms" in row
    }
    text = (
        table(rows, "setting", ("ms", *COLUMNS))
        + "\n\n"
        + table(paths, "walk", ("largest / mean step", "worst", "mean step"))
    )
    print(text)
    write_report(args.json, ratios, rows + paths)
    if not args.quick:
        write_report(DOCS / "galip.json", ratios, rows + paths)
        insert_tables(DOCS / "galip.md", text)
        samples = [
            drawn[name]["pictures"]
            for name in ("GALIP", f"diffusion CFG {CFG}, 5 steps", f"diffusion CFG {CFG}, 50 steps")
        ]
        even = np.linspace(0, len(shown[0]) - 1, 12).round().astype(int)
        contact_sheet(DOCS / "galip.png", [*samples, *(frames[even] for frames in shown)])


if __name__ == "__main__":
    main()
