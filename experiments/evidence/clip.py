"""CLIP guidance in Shapes: does it add missing things and remove extra ones, or only polish? Every setting against CFG
at its own cost.

Every setting draws the same prompts from the same noise through the real node and ComfyUI's own sampler. Pictures are
kept in `experiments/runs/`, so a run that was stopped goes on where it was; `--only NAME …` takes a part of the
settings, `--draw` draws without a report.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import comfy.model_management
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
from guidance_lab.experiments.sampling import BATCH, draw, encode
from guidance_lab.experiments.train.clip import CHANGES, normalized, right_answers
from guidance_lab.experiments.train.export import clip_weights
from guidance_lab.experiments.training import RUNS
from guidance_lab.shapes import shipped
from guidance_lab.shapes.clip import lengths, tokens
from guidance_lab.shapes.read import read
from guidance_lab.shapes.render import render
from guidance_lab.shapes.world import parse, random_scene
from guidance_lab.weight_files.clip import MEAN, STD
from tools.report import arguments, insert_tables, write_report

SEED = 5000
STEPS = 20
BESIDE = (
    3.0  # weight of the CLIP beside the likelihood: so both gradients are about equally long while the picture is wrong
)
COLUMNS = (
    "simple object+colour", "simple all", "two all", "three all", "relation", "missing", "extra", "frechet", "coverage",
    "clip score", "cpu seconds",
)  # fmt: skip
SCORERS = {  # and the shipped weights that they need
    "clean": ("clip",),
    "weak": (),
    "noised": ("noised_clip",),
    "likelihood": ("captioner",),
    "other caption": ("captioner",),
    "likelihood of crops": ("captioner",),
    "clean and likelihood": ("clip", "captioner"),
}
NODE = {"strength": 0.5, "start_percent": 0.2, "end_percent": 1.0, "every": 1, "crops": 0, "whole_view": True}


@dataclass(frozen=True)
class Setting:
    """cfg, steps and names of sampler and scheduler; `clip`: inputs of CLIP Guidance (None: without it); scorer,
    autoguidance and caption weights beside.
    """

    cfg: float = 2.0
    steps: int = STEPS
    clip: dict | None = None
    scorer: str = "clean"
    decoder: str = "vae"
    autoguidance: float = 1.0
    caption: float = 0.0
    sampler: tuple[str | Callable, str] = ("dpmpp_2m", "karras")

    @property
    def weights(self) -> tuple[str, ...]:
        """The shipped weights that draw and guide."""
        used = ["main", "text", "vae"] + ["early"] * (self.autoguidance != 1.0) + ["captioner"] * bool(self.caption)
        return (*used, *(SCORERS[self.scorer] if self.clip else ()))


def guided(**changed) -> dict:
    return NODE | changed


SETTINGS = {
    "none": Setting(cfg=1.0),
    "cfg 2": Setting(),
    "cfg 3": Setting(cfg=3.0),
    "cfg 2, 50 steps": Setting(steps=50),
    "clip 0.5 without cfg": Setting(cfg=1.0, clip=guided()),
    **{f"cfg 2 + clip {s}": Setting(clip=guided(strength=s)) for s in (0.1, 0.25, 0.5, 1.0)},
    "cfg 2 + clip -0.5 (wrong sign)": Setting(clip=guided(strength=-0.5)),
    **{f"cfg 2 + clip 0.5, skip {n} of 50": Setting(clip=guided(start_percent=n / 50)) for n in (0, 5, 20)},
    "cfg 2 + clip 0.5, x0 without blend": Setting(clip=guided(blend="x0")),
    "cfg 2 + clip 0.5, through the model": Setting(clip=guided(gradient="through model")),
    "cfg 2 + clip 0.5, 4 crops beside": Setting(clip=guided(crops=4)),
    "cfg 2 + clip 0.5, every 2nd step": Setting(clip=guided(every=2)),
    **{f"cfg 2 + weak clip {s}": Setting(clip=guided(strength=s), scorer="weak") for s in (0.25, 0.5)},
    "cfg 2 + clip 0.5, latent_rgb": Setting(clip=guided(), decoder="latent_rgb"),
    "cfg 2 + noised clip 0.5": Setting(clip=guided(), scorer="noised"),
    "autoguidance 2": Setting(cfg=1.0, autoguidance=2.0),
    "autoguidance 2 + clip 0.5": Setting(cfg=1.0, autoguidance=2.0, clip=guided()),
    "cfg 2 + caption residual 0.5": Setting(caption=0.5),
    "cfg 2 + caption residual 1": Setting(caption=1.0),
}


@dataclass
class Studio:
    """The models, and the nodes that make a guided MODEL for one batch of captions."""

    models: dict = field(default_factory=lambda: {name: shipped.load_model(name) for name in ("main", "early")})

    def __post_init__(self):
        from guidance_lab.nodes.autoguidance.model_pair import AutoguidanceModelPair
        from guidance_lab.nodes.clip_guidance.guider import CLIPGuidance
        from guidance_lab.nodes.clip_guidance.objective import Objective
        from guidance_lab.nodes.clip_guidance.objectives.caption_likelihood import CaptionLikelihood
        from guidance_lab.nodes.clip_guidance.objectives.noised import RenoisedScore
        from guidance_lab.nodes.clip_guidance.scorers import CLIPSimilarity
        from guidance_lab.nodes.shapes import demo_models as shapes

        self.pair = AutoguidanceModelPair.PREPARE_CLASS_CLONE(None)
        self.node = CLIPGuidance.PREPARE_CLASS_CLONE(None)
        self.objective, self.similarity, self.renoised = Objective, CLIPSimilarity, RenoisedScore

        class OwnCaptions(CaptionLikelihood):
            """Picture i and caption i, where the node has all texts for every picture."""

            def score(self, view, step):
                return self.likelihood(view, self.texts, self.per)

        self.likelihood = OwnCaptions
        self.clip, self.vae = shipped.load_clip(), shipped.load_vae()
        self.scorer, self.captioner = shapes.ShapesScorer(), shapes.ShapesCaptioner()

    @cached_property
    def noised(self):
        from guidance_lab.guidance.noised_clip import load

        return load(*shipped.noised_clip_files("shapes"))

    @cached_property
    def weak(self):
        """A scorer with the CLIP that was trained for a short time."""
        from guidance_lab.nodes.host.networks import as_patcher
        from guidance_lab.nodes.shapes.demo_models import ShapesScorer

        scorer = ShapesScorer()
        scorer.models = (as_patcher(weak_clip()),)
        return scorer

    def aims(self, captions: list[str], scorer: str):
        """An objective that pulls picture i towards caption i."""
        from guidance_lab.guidance.similarity import cosine

        if scorer == "noised":
            ids = tokens(captions)
            with torch.no_grad():
                target = self.noised.text(ids, lengths(ids))
            return self.objective(((1.0, self.renoised(self.noised, target, timestep=250, count=2)),))
        parts = []
        if scorer == "other caption":
            captions = captions[1:] + captions[:1]
        if scorer not in ("clean", "weak"):
            parts.append((1.0, self.likelihood(self.captioner, captions, [], "token")))
            parts[-1][1].whole = scorer != "likelihood of crops"
        if scorer in ("clean", "clean and likelihood", "weak"):
            clip = self.weak if scorer == "weak" else self.scorer
            weight = BESIDE if scorer == "clean and likelihood" else 1.0
            parts.append((weight, self.similarity(clip, clip.embed_lines(captions), cosine, "Shapes CLIP")))
        return self.objective(tuple(parts))

    def model(self, setting: Setting, captions: list[str]):
        model = self.models["main"]
        if setting.autoguidance != 1.0:
            model = self.pair.execute(model, self.models["early"], setting.autoguidance, 0.0, 1.0).result[0]
        decoder = {"decoder": setting.decoder} | ({"vae": self.vae} if setting.decoder == "vae" else {})
        if setting.clip is not None:
            aims = self.aims(captions, setting.scorer)
            model = self.node.execute(model, objective=aims, decoder=decoder, **setting.clip).result[0]
        if setting.caption:
            from guidance_lab.nodes.captions.caption_residual import CaptionResidualGuidance

            model = (
                CaptionResidualGuidance.PREPARE_CLASS_CLONE(None)
                .execute(
                    model,
                    self.clip,
                    self.captioner,
                    decoder,
                    scale=setting.caption,
                    every=2,
                    start_percent=0.2,
                    end_percent=1.0,
                )
                .result[0]
            )
        return model

    def draw(self, setting: Setting, captions: list[str], seed: int = SEED) -> np.ndarray:
        """One picture per caption; batch i starts from the noise of seed + i."""
        contexts, empty = encode(self.clip, captions), encode(self.clip, [""])
        pictures, models = [], []
        for i, start in enumerate(range(0, len(captions), BATCH)):
            models.append(self.model(setting, captions[start : start + BATCH]))
            rows = contexts[start : start + BATCH]
            options = (seed + i, setting.cfg, setting.steps, *setting.sampler)
            pictures.append(draw(models[-1], self.vae, rows, empty, *options))
        # While they still live: ComfyUI cannot unload a model whose patcher is gone, and looks for it at every later
        # load.
        comfy.model_management.unload_all_models()
        return np.concatenate(pictures)


def trains_weak() -> bool:
    """Whether `python dev.py train clip --weak` was run; its settings are left out if not."""
    return (RUNS / "clip_weak" / "last.pt").exists()


def weak_clip() -> torch.nn.Module:
    """Raises FileNotFoundError with what to train when it was not trained."""
    with torch.inference_mode(False):
        module = shipped.load_clip_module()
        module.load_state_dict(module.state_dict() | clip_weights("clip_weak"))
    return module.requires_grad_(False)


@torch.no_grad()
def right_on_changes(module: torch.nn.Module, count: int) -> dict[str, float]:
    """How often this CLIP prefers a caption to the same with one thing changed, by kind of change."""
    return right_answers(
        lambda x: module.encode_image(normalized(x)), lambda said: module.encode_text(tokens(said)), count
    )


@torch.no_grad()
def clip_score(pictures: np.ndarray, captions: list[str]) -> float:
    """Mean cosine of the finished pictures with their captions, by the clean Shapes CLIP."""
    module = shipped.load_clip_module()
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    images = module.encode_image(
        (x - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1), normalize=True
    )
    return (images * module.encode_text(tokens(captions), normalize=True)).sum(-1).mean().item()


def missing_and_extra(pictures: np.ndarray, scenes: list) -> dict[str, float]:
    """Things too few and too many per picture, of prompts with two or three things."""
    counts = [(len(s.things), len(read(p).things)) for s, p in zip(scenes, pictures, strict=True) if len(s.things) > 1]
    wanted, found = np.array(counts).T
    return {
        "missing": float(np.maximum(wanted - found, 0).mean()),
        "extra": float(np.maximum(found - wanted, 0).mean()),
    }


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these settings", choices=list(SETTINGS))
    parser.add_argument("--draw", action="store_true", help="draw and keep the pictures, no report")
    args = parser.parse_args()
    count = 50 if args.quick else 600
    rng = np.random.default_rng(79)
    scenes = [parse(random_scene(rng).caption) for _ in range(count)]
    studio = Studio()
    captions = [scene.caption for scene in scenes]
    drawn, seconds = {}, {}

    def again(setting: Setting, path) -> float:
        """CPU seconds of one picture: one batch, drawn when all networks are there and nothing else is."""
        if not path.exists():
            studio.draw(setting, captions[:2])
        return float(kept(path, lambda: studio.draw(setting, captions[:BATCH]))["seconds"]) / BATCH

    names = args.only or [name for name, s in SETTINGS.items() if s.scorer != "weak" or trains_weak()]
    for name in names:
        folder = RUNS / "evidence" / f"clip-{weights_key(*SETTINGS[name].weights)}-{count}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name.replace(' ', '_')}.npz"
        drawn[name] = kept(path, lambda n=name: studio.draw(SETTINGS[n], captions))["pictures"]
        if not args.draw:
            seconds[name] = again(SETTINGS[name], folder / f"timed_{path.name}")
    if args.draw:
        return
    fresh, other = (
        np.stack([render(place_again(s, np.random.default_rng([80 + k, i]))) for i, s in enumerate(scenes)])
        for k in range(2)
    )
    real, rows = features(fresh), []
    for name, pictures in {"(other renders)": other, **drawn}.items():
        row = {"setting": name, "pictures": len(pictures)} | ({"cpu seconds": seconds[name]} if name in seconds else {})
        row |= measure(pictures, scenes, real) | missing_and_extra(pictures, scenes)
        rows.append(row | {"clip score": clip_score(pictures, captions)})
    base = next((row for row in rows if row["setting"] == "cfg 2"), rows[-1])
    ratios = {
        f"{key} {row['setting']} / {base['setting']}": row[key] / base[key]
        for row in rows[1:]
        for key in ("frechet", "cpu seconds")
    }
    write_report(args.json, ratios, rows)
    text = table(rows, "setting", COLUMNS)
    if not args.only:
        clips = [{"CLIP": "shipped"} | right_on_changes(shipped.load_clip_module(), count)]
        clips += [{"CLIP": "weak"} | right_on_changes(weak_clip(), count)] if trains_weak() else []
        text += "\n\n" + table(clips, "CLIP", CHANGES)
    print(text)
    if not args.quick and not args.only:  # a part must not take the place of the whole
        DOCS.mkdir(parents=True, exist_ok=True)
        write_report(DOCS / "clip.json", ratios, rows)
        insert_tables(DOCS / "clip.md", text)
        shown = ("cfg 2", "cfg 2 + clip 0.25", "cfg 2 + clip 0.5", "cfg 2 + clip -0.5 (wrong sign)")
        contact_sheet(DOCS / "clip.png", [drawn[name] for name in shown if name in drawn])


if __name__ == "__main__":
    main()
