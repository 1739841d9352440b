"""Autoguidance in Shapes: alignment, distance and diversity for none, CFG, CFG + interval, autoguidance, both, every Weaker Version.

Every setting draws the same prompts from the same noise through the real nodes; pictures are kept in `demo/runs/`, so a run that was
stopped goes on where it was. `--only NAME …` takes a part of the settings; `--draw` draws without a report: two processes can share
the work so.
"""

import hashlib
import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from demo import shipped
from demo.features import diversity, features, frechet
from demo.read import judge, read
from demo.render import render
from demo.sampling import draw, encode
from demo.training import RUNS
from demo.world import Scene, parse, random_scene
from tools.report import arguments, insert_tables, write_report

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "evidence"
SEEDS = (1000, 2000)
READ = ("object", "colour", "texture", "background", "count", "relation", "all")
WEAKER = {
    "block_skip": {"blocks": "default"},
    "stochastic_block_skip": {"drop_fraction": 0.1, "seed": 0},
    "identity_attention": {"blocks": "default"},
    "blurred_queries": {"blocks": "default", "blur_sigma": 9999.0},
    "token_shuffle": {"blocks": "default", "seed": 0},
    "higher_sigma": {"sigma_shift": 0.1},
    "weight_blend": {"amount": 0.5},
}
# The default is the middle block, which sees a 64×64 picture as one token: attention over it has nothing to perturb.
TOKENS_16 = "input:4-5, output:6-8"
ON_16_TOKENS = ("block_skip", "identity_attention", "blurred_queries", "token_shuffle")


def load_nodes():
    """The pack as ComfyUI imports it; returns its autoguidance nodes."""
    spec = importlib.util.spec_from_file_location("guidance_lab", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    pack = sys.modules["guidance_lab"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    from guidance_lab.nodes.autoguidance import AutoguidanceModelPair
    from guidance_lab.nodes.weaker_version import WeakerVersion

    return AutoguidanceModelPair, WeakerVersion


class Settings:
    """Name → (MODEL, cfg), each built when it is drawn."""

    def __init__(self):
        from comfy_extras.nodes_custom_sampler import CFGOverride

        self.models = {name: shipped.load_model(name) for name in shipped.MODELS}
        self.pair, self.weaker = load_nodes()
        self.override = CFGOverride
        main = self.models["main"]
        self.table = {"none": lambda: (main, 1.0)}
        for cfg in (1.5, 2.0, 3.0, 5.0):
            self.table[f"cfg {cfg}"] = lambda cfg=cfg: (main, cfg)
        for cfg in (3.0, 5.0):
            self.table[f"cfg {cfg} interval"] = lambda cfg=cfg: (self.override.execute(main, cfg, 0.15, 0.75).result[0], 1.0)
        for guide in ("early", "small"):
            for weight in (1.5, 2.0, 3.0):
                self.table[f"ag {guide} {weight}"] = lambda g=guide, w=weight: (self.paired(self.models[g], w), 1.0)
        for cfg, weight in ((1.5, 1.5), (2.0, 1.5), (2.0, 2.0), (3.0, 1.5)):
            self.table[f"cfg {cfg} + ag early {weight}"] = lambda c=cfg, w=weight: (self.paired(self.models["early"], w), c)
        for method in WEAKER:
            for weight in (1.5, 2.0):
                self.table[f"weaker {method} {weight}"] = lambda m=method, w=weight: (self.paired(self.weak(m), w), 1.0)
                if method in ON_16_TOKENS:
                    name = f"weaker {method} at 4×4 {weight}"
                    self.table[name] = lambda m=method, w=weight: (self.paired(self.weak(m, TOKENS_16), w), 1.0)
        self.table["guide early alone"] = lambda: (self.models["early"], 1.0)
        self.table["guide small alone"] = lambda: (self.models["small"], 1.0)

    def paired(self, guide, weight: float):
        return self.pair.execute(self.models["main"], guide, weight, 0.0, 1.0).result[0]

    def weak(self, method: str, blocks: str | None = None):
        options = {"method": method, **WEAKER[method]} | ({"blocks": blocks} if blocks else {})
        if method == "weight_blend":
            options["base_model"] = self.models["early"]
        return self.weaker.execute(self.models["main"], options).result[0]


def weights_key() -> str:
    """Changes when a weight that draws changes, so that kept pictures are never those of another model."""
    digest = hashlib.sha256()
    for name in ("early", "main", "small", "text", "vae"):
        digest.update((shipped.WEIGHTS / f"{name}.safetensors").read_bytes())
    return digest.hexdigest()[:10]


def measure(pictures: np.ndarray, scenes: list[Scene], real: np.ndarray) -> dict[str, float]:
    """Alignment by the readers (simple = one thing, complex = two or three), Fréchet distance and diversity against features `real`."""
    rows = [(len(scene.things), judge(scene, read(picture))) for scene, picture in zip(scenes, pictures, strict=True)]
    result = {key: float(np.mean([row[key] for _, row in rows if key in row])) for key in READ}
    result["simple all"] = float(np.mean([row["all"] for n, row in rows if n == 1]))
    result["simple object+colour"] = float(np.mean([row["object"] * row["colour"] for n, row in rows if n == 1]))
    result["complex all"] = float(np.mean([row["all"] for n, row in rows if n > 1]))
    drawn = features(pictures)
    return result | {"frechet": frechet(real, drawn)} | diversity(real, drawn)


def place_again(scene: Scene, rng: np.random.Generator) -> Scene:
    """A fresh scene with the same caption: new places, sizes and directions."""
    layout = random_scene(rng, len(scene.things))
    while layout.relation != scene.relation:
        layout = random_scene(rng, len(scene.things))
    things = tuple(
        type(new)(old.name, old.colour, old.texture, new.x, new.y, new.size, new.flip)
        for old, new in zip(scene.things, layout.things, strict=True)
    )
    return Scene(things, scene.background, scene.relation)


def contact_sheet(path: Path, rows: list[np.ndarray], columns: int = 12) -> None:
    """One row of pictures per setting, doubled in size."""
    sheet = np.concatenate([np.concatenate(list(row[:columns]), 1) for row in rows], 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2), Image.Resampling.NEAREST).save(path)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these settings")
    parser.add_argument("--draw", action="store_true", help="draw and keep the pictures, no report")
    parser.add_argument("--prompts", type=int, help="prompts per seed (1000, or 40 with --quick)")
    args = parser.parse_args()
    count = args.prompts or (40 if args.quick else 1000)
    rng = np.random.default_rng(77)
    prompts = [parse(random_scene(rng).caption) for _ in range(count)]
    folder = RUNS / "evidence" / f"autoguidance-{weights_key()}-{count}"
    folder.mkdir(parents=True, exist_ok=True)
    settings = Settings()
    unknown = set(args.only or []) - set(settings.table)
    if unknown:
        parser.error(f"no setting {', '.join(sorted(unknown))}; there is {', '.join(settings.table)}")
    clip, vae = shipped.load_clip(), shipped.load_vae()
    contexts, empty = encode(clip, [scene.caption for scene in prompts]), encode(clip, [""])
    drawn: dict[str, np.ndarray] = {}
    for name in args.only or settings.table:
        path = folder / f"{name.replace(' ', '_')}.npz"
        if not path.exists():
            model, cfg = settings.table[name]()
            began = time.time()
            pictures = np.concatenate([draw(model, vae, contexts, empty, seed, cfg) for seed in SEEDS])
            np.savez_compressed(path.with_suffix(".tmp.npz"), pictures=pictures, seconds=time.time() - began)
            path.with_suffix(".tmp.npz").replace(path)
            print(f"{name}: {len(pictures)} pictures in {time.time() - began:.0f} s", flush=True)
        drawn[name] = np.load(path)["pictures"]
    if args.draw:
        return
    scenes = prompts * len(SEEDS)
    fresh = [np.stack([render(place_again(s, np.random.default_rng([78, k, i]))) for i, s in enumerate(scenes)]) for k in range(2)]
    real = features(fresh[0])
    with torch.no_grad():
        pixels = torch.from_numpy(fresh[1]).float() / 255
        through_vae = vae.decode(torch.cat([vae.encode(chunk) for chunk in pixels.split(100)]))
    drawn = {"(other renders)": fresh[1], "(renders through the VAE)": (through_vae.clamp(0, 1) * 255).round().byte().numpy(), **drawn}
    rows = [{"setting": name, "pictures": len(p)} | measure(p, scenes, real) for name, p in drawn.items()]
    by_name = {row["setting"]: row for row in rows}
    base = by_name["none"]
    ratios = {f"frechet {name} / none": row["frechet"] / base["frechet"] for name, row in by_name.items()}
    write_report(args.json, ratios, rows)
    columns = ("simple object+colour", "simple all", "complex all", "texture", "relation", "frechet", "precision", "recall", "coverage")
    lines = ["| setting | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {row['setting']} | " + " | ".join(f"{row[c]:.3f}" for c in columns) + " |" for row in rows]
    print("\n".join(lines))
    if not args.quick:
        DOCS.mkdir(parents=True, exist_ok=True)
        write_report(DOCS / "autoguidance.json", ratios, rows)
        insert_tables(DOCS / "autoguidance.md", "\n".join(lines))
        shown = ("none", "cfg 3.0", "ag early 2.0", "cfg 2.0 + ag early 1.5")
        contact_sheet(DOCS / "autoguidance.png", [drawn[name] for name in shown if name in drawn])


if __name__ == "__main__":
    main()
