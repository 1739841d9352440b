"""Autoguidance in Shapes: alignment, distance and diversity for none, CFG, CFG + interval, autoguidance, both, every
Weaker Version.

Every setting draws the same prompts from the same noise through the real nodes; pictures are kept in
`experiments/runs/`, so a run that was stopped goes on where it was. `--only NAME …` takes a part of the settings;
`--draw` draws without a report: two processes can share the work so.
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
from guidance_lab.experiments.sampling import draw, encode
from guidance_lab.experiments.training import RUNS
from guidance_lab.shapes import shipped
from guidance_lab.shapes.render import render
from guidance_lab.shapes.world import parse, random_scene
from tools.report import arguments, insert_tables, write_report

SEEDS = (1000, 2000)
WEAKER = {
    "block_skip": {"blocks": "default"},
    "stochastic_block_skip": {"drop_fraction": 0.1, "seed": 0},
    "identity_attention": {"blocks": "default"},
    "blurred_queries": {"blocks": "default", "blur_sigma": 9999.0},
    "token_shuffle": {"blocks": "default", "seed": 0},
    "higher_sigma": {"sigma_shift": 0.1},
    "weight_blend": {"amount": 0.5},
}
# The default is the middle block, which sees a picture as 2×2 tokens; here it is the level of 4×4.
TOKENS_16 = "input:7-8, output:3-5"
ON_16_TOKENS = ("block_skip", "identity_attention", "blurred_queries", "token_shuffle")


class Settings:
    """Name → (MODEL, cfg), each built when it is drawn."""

    def __init__(self):
        from comfy_extras.nodes_custom_sampler import CFGOverride

        from guidance_lab.nodes.autoguidance.model_pair import AutoguidanceModelPair
        from guidance_lab.nodes.autoguidance.weaker_version import WeakerVersion

        self.models = {name: shipped.load_model(name) for name in shipped.MODELS}
        self.pair = AutoguidanceModelPair.PREPARE_CLASS_CLONE(None)
        self.weaker, self.override = WeakerVersion, CFGOverride
        main = self.models["main"]
        self.table = {"none": lambda: (main, 1.0)}
        for cfg in (1.5, 2.0, 3.0, 5.0):
            self.table[f"cfg {cfg}"] = lambda cfg=cfg: (main, cfg)
        for cfg in (3.0, 5.0):
            self.table[f"cfg {cfg} interval"] = lambda cfg=cfg: (
                self.override.execute(main, cfg, 0.15, 0.75).result[0],
                1.0,
            )
        for guide in ("early", "small"):
            for weight in (1.5, 2.0, 3.0):
                self.table[f"ag {guide} {weight}"] = lambda g=guide, w=weight: (self.paired(self.models[g], w), 1.0)
        for cfg, weight in ((1.5, 1.5), (2.0, 1.5), (2.0, 2.0), (3.0, 1.5)):
            self.table[f"cfg {cfg} + ag early {weight}"] = lambda c=cfg, w=weight: (
                self.paired(self.models["early"], w),
                c,
            )
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

    def pictures(name: str) -> np.ndarray:
        model, cfg = settings.table[name]()
        return np.concatenate([draw(model, vae, contexts, empty, seed, cfg) for seed in SEEDS])

    names = args.only or settings.table
    drawn = {
        name: kept(folder / f"{name.replace(' ', '_')}.npz", lambda n=name: pictures(n))["pictures"] for name in names
    }
    if args.draw:
        return
    scenes = prompts * len(SEEDS)
    fresh = [
        np.stack([render(place_again(s, np.random.default_rng([78, k, i]))) for i, s in enumerate(scenes)])
        for k in range(2)
    ]
    real = features(fresh[0])
    with torch.no_grad():
        pixels = torch.from_numpy(fresh[1]).float() / 255
        through_vae = vae.decode(torch.cat([vae.encode(chunk) for chunk in pixels.split(100)]))
    drawn = {
        "(other renders)": fresh[1],
        "(renders through the VAE)": (through_vae.clamp(0, 1) * 255).round().byte().numpy(),
        **drawn,
    }
    rows = [{"setting": name, "pictures": len(p)} | measure(p, scenes, real) for name, p in drawn.items()]
    by_name = {row["setting"]: row for row in rows}
    ratios = {
        f"frechet {name} / none": row["frechet"] / by_name["none"]["frechet"]
        for name, row in by_name.items()
        if "none" in by_name
    }
    write_report(args.json, ratios, rows)
    columns = (
        "simple object+colour",
        "simple all",
        "complex all",
        "texture",
        "relation",
        "frechet",
        "precision",
        "recall",
        "coverage",
    )
    text = table(rows, "setting", columns)
    print(text)
    if not args.quick and not args.only:  # a part must not take the place of the whole
        DOCS.mkdir(parents=True, exist_ok=True)
        write_report(DOCS / "autoguidance.json", ratios, rows)
        insert_tables(DOCS / "autoguidance.md", text)
        shown = ("none", "cfg 3.0", "ag early 2.0", "cfg 2.0 + ag early 1.5")
        contact_sheet(DOCS / "autoguidance.png", [drawn[name] for name in shown if name in drawn])


if __name__ == "__main__":
    main()
