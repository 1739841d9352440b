"""GLIDE in Shapes: CFG against CLIP guidance, by a CLIP that knows noise and by one that does not; inpainting; edits
in a row; and the upsampler.

Every setting draws the same prompts from the same noise with the Shapes GLIDE, through the pack's own nodes and
ComfyUI's sampler, ancestral with the learned variance. Pictures are kept in `experiments/runs/`, so a run that was
stopped goes on where it was.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.model_management
import comfy.sample
import numpy as np
import torch
from scipy.ndimage import binary_dilation

from guidance_lab.experiments.evidence.pictures import (
    DOCS,
    contact_sheet,
    kept,
    measure,
    table,
    weights_key,
)
from guidance_lab.experiments.features import features
from guidance_lab.experiments.glide.data import around
from guidance_lab.experiments.glide.first_world.read import judge, read
from guidance_lab.experiments.glide.first_world.render import render
from guidance_lab.experiments.glide.first_world.world import SIZE, Scene, parse, random_scene
from guidance_lab.experiments.glide.sampling import edits, to_bytes
from guidance_lab.experiments.training import RUNS
from guidance_lab.glide.model import resized
from guidance_lab.shapes import shipped
from guidance_lab.shapes.clip import lengths, tokens
from tools.report import arguments, insert_tables, write_report

SEED = 6000
BATCH = 25
STEPS = "25"
CFG = 3.0
COLUMNS = ("simple object+colour", "simple all", "complex all", "texture", "background", "frechet", "coverage")
ENLARGED_COLUMNS = (
    "all before",
    "all after",
    *(f"error {at}{by}" for at in ("at edges", "elsewhere") for by in ("", ", bilinear")),
)
EDIT_COLUMNS = ("pictures", "known off by", "object", "colour", "texture", "all", "seam", "seam of a render")


@dataclass(frozen=True)
class Setting:
    """cfg; `clip`: strength of CLIP Guidance (size rms, whole sampling), by the noise-aware CLIP or the clean one."""

    cfg: float = 1.0
    clip: float = 0.0
    aware: bool = True


SETTINGS = {
    **{f"CFG {cfg:g}": Setting(cfg) for cfg in (1, 1.5, 2, 3, 5, 8)},
    **{f"noise-aware CLIP {clip:g}": Setting(clip=clip) for clip in (0.1, 0.25, 0.5, 1)},
    **{f"clean CLIP on the noisy sample {clip:g}": Setting(clip=clip, aware=False) for clip in (0.1, 0.25, 0.5, 1)},
    "CFG 3 + noise-aware CLIP 0.25": Setting(3, 0.25),
}


class Glide:
    """One Shapes GLIDE through the pack's nodes."""

    def __init__(self, name: str):
        from guidance_lab.nodes.glide import loader, run_state, sampling, scheduler

        label = next(label for label, shipped_name in run_state.SHIPPED.items() if shipped_name == name)
        self.model, self.clip, _ = loader.load(label, torch.float32)
        self.sampler, self.levels = sampling.glide_sampler, scheduler.noise_levels

    def encode(self, captions: list[str]) -> list:
        """One CONDITIONING with a row for each caption."""
        rows = {text: self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))[0] for text in set(captions)}
        context = torch.cat([rows[text][0] for text in captions])
        pooled = torch.cat([rows[text][1]["pooled_output"] for text in captions])
        return [[context, {**rows[captions[0]][1], "pooled_output": pooled}]]

    def sample(
        self,
        model,
        positive,
        negative,
        latent: torch.Tensor,
        seed: int,
        cfg: float,
        steps: str = STEPS,
        method: str = "ancestral",
    ):
        """Pictures [B, 3, H, W] in -1..1."""
        noise = comfy.sample.prepare_noise(latent, seed)
        return comfy.sample.sample_custom(
            model, noise, cfg, self.sampler(method), self.levels(model, steps, 1.0), positive, negative, latent,
            disable_pbar=True, seed=seed,
        )  # fmt: skip


class Aims:
    """Makes a GLIDE MODEL that pulls picture i towards caption i, by the noisy sample itself."""

    def __init__(self):
        from guidance_lab.experiments.glide.first_world.clip import FirstScorer
        from guidance_lab.guidance.noised_clip import load
        from guidance_lab.nodes.clip_guidance.guider import CLIPGuidance
        from guidance_lab.nodes.clip_guidance.objective import Objective
        from guidance_lab.nodes.clip_guidance.objectives.noised import NoisyScore
        from guidance_lab.nodes.clip_guidance.scorers import CLIPSimilarity

        class BlindScore(CLIPSimilarity):
            """The clean CLIP, shown the noisy sample as if it were a picture."""

            noisy = True

            def score(self, view, step):
                return super().score((view + 1) / 2, step)

        self.node, self.objective = CLIPGuidance.PREPARE_CLASS_CLONE(None), Objective
        self.aware, self.blind = NoisyScore, BlindScore
        self.noised, self.clean = load(*shipped.noised_clip_files("glide")), FirstScorer()

    def model(self, model, setting: Setting, captions: list[str]):
        from guidance_lab.guidance.similarity import cosine

        if not setting.clip:
            return model
        if setting.aware:
            ids = tokens(captions)
            with torch.no_grad():
                scorer = self.aware(self.noised, self.noised.text(ids, lengths(ids)))
        else:
            scorer = self.blind(self.clean, self.clean.embed_lines(captions), cosine, "Shapes CLIP")
        return self.node.execute(
            model, objective=self.objective(((1.0, scorer),)), decoder={"decoder": "latent_rgb"},
            strength=setting.clip, start_percent=0.0, end_percent=1.0, crops=0, whole_view=True,
        ).result[0]  # fmt: skip


def batches(count: int) -> Iterator[tuple[int, slice]]:
    """(number, rows) of each batch; batch i starts from the noise of seed + i."""
    return ((i, slice(start, start + BATCH)) for i, start in enumerate(range(0, count, BATCH)))


def place_again(scene: Scene, rng: np.random.Generator) -> Scene:
    """A fresh scene with the same caption: new places, sizes and directions."""
    layout = random_scene(rng, len(scene.things))
    while layout.relation != scene.relation:
        layout = random_scene(rng, len(scene.things))
    things = tuple(
        replace(new, name=old.name, colour=old.colour, texture=old.texture)
        for old, new in zip(scene.things, layout.things, strict=True)
    )
    return Scene(things, scene.background, scene.relation)


def right(scene: Scene, picture: np.ndarray) -> dict[str, float]:
    """What the readers of the first edition say to a picture."""
    return judge(scene, read(picture))


def all_right(scenes: list[Scene], pictures: np.ndarray) -> float:
    """The share of pictures uint8 [N, 64, 64, 3] in which the readers find everything right."""
    return float(np.mean([judge(scene, read(picture))["all"] for scene, picture in zip(scenes, pictures, strict=True)]))


def draw(glide: Glide, setting: Setting, aims: Aims, captions: list[str]) -> np.ndarray:
    """One picture per caption."""
    pictures, models = [], []
    for i, batch in batches(len(captions)):
        rows = captions[batch]
        models.append(aims.model(glide.model, setting, rows))
        positive, negative = glide.encode(rows), glide.encode([""] * len(rows))
        latent = torch.zeros(len(rows), 3, SIZE, SIZE)
        pictures.append(to_bytes(glide.sample(models[-1], positive, negative, latent, SEED + i, setting.cfg)))
    # While they still live: ComfyUI cannot unload a model whose patcher is gone, and looks for it at every later load.
    comfy.model_management.unload_all_models()
    return np.concatenate(pictures)


def named_alone(scene: Scene, known: np.ndarray) -> str:
    """A prompt for the thing alone whose centre is not known, as the paper's edits in a row name what is new."""
    (thing,) = (thing for thing in scene.things if not known[int(thing.y), int(thing.x)])
    return replace(scene, things=(thing,), relation=None).caption


def fill(glide: Glide, asked: list[str], before: np.ndarray, known: np.ndarray, cfg: float, seed: int) -> np.ndarray:
    """Pictures uint8 [N, 64, 64, 3] with what is not `known` (bool [N, 64, 64]) drawn anew as the prompts say."""
    from guidance_lab.nodes.glide.inpaint import GLIDEInpaint

    pictures = []
    for i, rows in batches(len(asked)):
        captions = asked[rows]
        image = torch.from_numpy(before[rows]).float() / 255
        mask = torch.from_numpy(~known[rows]).float()
        positive, negative, latent, _ = GLIDEInpaint.execute(
            glide.encode(captions), glide.encode([""] * len(captions)), image, mask, SIZE, SIZE
        ).result
        pictures.append(to_bytes(glide.sample(glide.model, positive, negative, latent["samples"], seed + i, cfg)))
    return np.concatenate(pictures)


def seam(picture: np.ndarray, known: np.ndarray) -> float:
    """Mean absolute difference (of 255) of neighbours on both sides of the border of a mask."""
    x = picture.astype(np.float32)
    steps = [np.abs(np.diff(x, axis=axis)).mean(-1)[np.diff(known, axis=axis)] for axis in (0, 1)]
    return float(np.concatenate(steps).mean())


def judged(wanted: list[Scene], before: np.ndarray, after: np.ndarray, known: np.ndarray) -> dict[str, float]:
    """What the readers say to the whole pictures, how far the known part is off, and the seam beside a true one."""
    rows = [judge(scene, read(picture)) for scene, picture in zip(wanted, after, strict=True)]
    return {key: float(np.mean([row[key] for row in rows])) for key in ("object", "colour", "texture", "all")} | {
        "known off by": float(np.abs(after.astype(int) - before)[known].max()),
        "seam": float(np.mean([seam(picture, mask) for picture, mask in zip(after, known, strict=True)])),
        "seam of a render": float(
            np.mean([seam(render(scene), mask) for scene, mask in zip(wanted, known, strict=True)])
        ),
    }


def inpainting(glide: Glide, folder: Path, count: int) -> tuple[list[dict], list[np.ndarray]]:
    """One thing of a render becomes another: the rows of the table; what is known, and what is filled at CFG 3."""
    wanted, images, masks = edits(count)
    before, known = to_bytes(images), masks[:, 0].bool().numpy()
    rows, shown = [], [np.where(known[..., None], before, 128).astype(np.uint8)]
    whole = [scene.caption for scene in wanted]
    alone = [named_alone(scene, mask) for scene, mask in zip(wanted, known, strict=True)]
    for name, asked, cfg in (
        ("one thing named alone", alone, 1.0),
        ("one thing named alone", alone, 3.0),
        ("one thing, whole caption", whole, 3.0),
    ):
        after = kept(
            folder / f"{name.replace(' ', '_')}_{cfg:g}.npz",
            lambda a=asked, c=cfg: fill(glide, a, before, known, c, SEED),
        )["pictures"]
        for things, these in (
            ("", range(count)),
            (", others beside it", [i for i in range(count) if alone[i] != whole[i]]),
        ):
            row = judged([wanted[i] for i in these], before[these], after[these], known[these])
            rows.append({"edit": f"{name}, CFG {cfg:g}{things}", "pictures": len(these)} | row)
        shown.append(after)
    return rows, [shown[0], shown[2]]


def edits_in_a_row(glide: Glide, folder: Path, count: int) -> tuple[list[dict], list[np.ndarray]]:
    """Renders of three things, of which one after another is replaced; each edit goes on from the picture before it."""
    rng = np.random.default_rng(63)
    scenes = [random_scene(rng, 3) for _ in range(count)]
    pictures = np.stack([render(scene) for scene in scenes])
    rows, shown = [], [pictures]
    for place in range(3):
        new = [random_scene(rng, 3).things[place] for _ in scenes]
        known = np.ones((count, SIZE, SIZE), bool)
        for i, (scene, thing) in enumerate(zip(scenes, new, strict=True)):
            old = scene.things[place]
            changed = replace(old, name=thing.name, colour=thing.colour, texture=thing.texture)
            scenes[i] = replace(scene, things=(*scene.things[:place], changed, *scene.things[place + 1 :]))
            known[i][around(old, 2)] = False
        before = pictures
        asked = [named_alone(scene, mask) for scene, mask in zip(scenes, known, strict=True)]
        drawn = kept(
            folder / f"edit_{place + 1}.npz",
            lambda a=asked, b=before, k=known, p=place: fill(glide, a, b, k, CFG, SEED + 100 * (p + 1)),
        )
        pictures = drawn["pictures"]
        rows.append(
            {"edit": f"edit {place + 1} of 3, CFG {CFG:g}", "pictures": count} | judged(scenes, before, pictures, known)
        )
        shown.append(pictures)
    return rows, shown


def edges(pictures: np.ndarray) -> np.ndarray:
    """bool [N, H, W]: where a picture's neighbours differ by more than 16 of 255, and one pixel around."""
    x = pictures.astype(int)
    found = np.zeros(x.shape[:3], bool)
    found[:, 1:] |= (np.abs(np.diff(x, axis=1)) > 16).any(-1)
    found[:, :, 1:] |= (np.abs(np.diff(x, axis=2)) > 16).any(-1)
    return binary_dilation(found, np.ones((1, 3, 3), bool))


def upsampling(folder: Path, scenes: list[Scene], small: np.ndarray) -> tuple[list[dict], np.ndarray]:
    """64 to 128 pixels, of renders and of drawn pictures: error beside bilinear enlargement, and what is still read."""
    from guidance_lab.nodes.glide.upsample import GLIDEUpsample

    glide = Glide("upsample")

    def enlarge(pictures: np.ndarray) -> np.ndarray:
        large = []
        for i, rows in batches(len(pictures)):
            text = glide.encode([scene.caption for scene in scenes[rows]])
            image = torch.from_numpy(pictures[rows]).float() / 255
            positive, latent = GLIDEUpsample.execute(text, image, 2 * SIZE, 2 * SIZE).result
            samples = glide.sample(glide.model, positive, positive, latent["samples"], SEED + i, 1.0, "fast27", "ddim")
            large.append(to_bytes(samples))
        return np.concatenate(large)

    def halved(large: np.ndarray) -> np.ndarray:
        return large.reshape(len(large), SIZE, 2, SIZE, 2, 3).mean((2, 4)).round().astype(np.uint8)

    placed = [place_again(scene, np.random.default_rng([64, i])) for i, scene in enumerate(scenes)]
    true, low = (np.stack([render(scene, size=size) for scene in placed]) for size in (2 * SIZE, SIZE))
    rows = []
    for name, given in (("renders", low), ("drawn pictures", small)):
        large = kept(folder / f"upsampled_{name.replace(' ', '_')}.npz", lambda g=given: enlarge(g))["pictures"]
        row = {
            "picture": name,
            "all before": all_right(scenes, given),
            "all after": all_right(scenes, halved(large)),
        }
        if given is low:
            x = torch.from_numpy(low).movedim(-1, 1).float() / 127.5 - 1
            plain = to_bytes(resized(x, (2 * SIZE, 2 * SIZE)))
            sharp = edges(true)
            for key, value in (("", large), (", bilinear", plain)):
                off = np.abs(value.astype(int) - true)
                row |= {
                    f"error at edges{key}": float(off[sharp].mean()),
                    f"error elsewhere{key}": float(off[~sharp].mean()),
                }
        rows.append(row)
    return rows, large


def pictures_of(name: str, count: int, *others: str) -> Path:
    """The folder of what the Shapes GLIDE `name` drew `count` times; other weights, another folder."""
    folder = RUNS / "evidence" / f"glide-{name}-{weights_key(shipped.GLIDE[name], *others)}-{count}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def drawn_by_base(names: Iterable[str], scenes: list[Scene]) -> tuple[list[dict], dict[str, np.ndarray]]:
    """What the base network draws with each of the `SETTINGS`: the rows of the table, beside renders; the pictures."""
    count, captions = len(scenes), [scene.caption for scene in scenes]
    folder = pictures_of("base", count, "glide_noised_clip")
    base, aims = Glide("base"), Aims()
    draw(base, Setting(), aims, captions[:1])  # loading is nobody's time
    stored = {
        name: kept(folder / f"{name.replace(' ', '_')}.npz", lambda s=SETTINGS[name]: draw(base, s, aims, captions))
        for name in names
    }
    fresh, other = (
        np.stack([render(place_again(s, np.random.default_rng([82 + k, i]))) for i, s in enumerate(scenes)])
        for k in range(2)
    )
    real = features(fresh)
    rows = [{"setting": "(other renders)"} | measure(other, scenes, real, right)]
    for name, row in stored.items():
        rows.append(
            {"setting": name, "ms": 1000 * float(row["seconds"]) / count}
            | measure(row["pictures"], scenes, real, right)
        )
    return rows, {name: row["pictures"] for name, row in stored.items()}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=list(SETTINGS), help="these settings of the base network alone"
    )
    args = parser.parse_args()
    count, edited = (25, 25) if args.quick else (100, 50)
    rng = np.random.default_rng(81)
    scenes = [parse(random_scene(rng).caption) for _ in range(count)]
    shown = ["CFG 1", "CFG 3", "noise-aware CLIP 0.25", "clean CLIP on the noisy sample 0.25"]
    rows, drawn = drawn_by_base(args.only or (shown if args.quick else SETTINGS), scenes)
    columns = ("ms", *COLUMNS)
    if args.only:
        print(table(rows, "setting", columns))
        write_report(args.json, {}, rows)
        return
    inpaint = Glide("inpaint")
    folder = pictures_of("inpaint", edited)
    filled, pictures = inpainting(inpaint, folder, edited)
    changed, more = edits_in_a_row(inpaint, folder, edited)
    large, enlarged = upsampling(
        pictures_of("upsample", edited, "glide_inpaint"), scenes[:edited], drawn["CFG 3"][:edited]
    )
    by_name = {row["setting"]: row for row in rows}
    ratios = {f"{key} {name} / CFG 3": row[key] / by_name["CFG 3"][key] for name, row in by_name.items() if "ms" in row
              for key in ("frechet", "ms")}  # fmt: skip
    text = "\n\n".join([
        table(rows, "setting", columns),
        table(filled + changed, "edit", EDIT_COLUMNS),
        table(large, "picture", ENLARGED_COLUMNS),
    ])  # fmt: skip
    print(text)
    everything = rows + filled + changed + large
    write_report(args.json, ratios, everything)
    if not args.quick:
        write_report(DOCS / "glide.json", ratios, everything)
        insert_tables(DOCS / "glide.md", text)
        contact_sheet(DOCS / "glide.png", [*(drawn[name] for name in shown), *pictures, *more])
        contact_sheet(DOCS / "glide_128.png", [enlarged], 6)


if __name__ == "__main__":
    main()
