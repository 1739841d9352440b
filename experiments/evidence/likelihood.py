"""Does a captioner as the matching model add what is missing? Caption likelihood in Shapes against CFG and CLIP.

A setting is chosen on one set of prompts ("chosen on") and reported on others with three noises each ("reported"). All
rows of a set share prompts and noise, so differences are paired; the intervals are bootstrapped over the prompts, with
the noises of a prompt kept together. Pictures are kept in `experiments/runs/` part by part and in the order of `jobs`,
so a run that was stopped goes on where it was, and a report (`--drawn`) can be made at any time of what is there.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from guidance_lab.experiments.evidence import clip
from guidance_lab.experiments.evidence.clip import SEED, clip_score, guided, missing_and_extra
from guidance_lab.experiments.evidence.guidance_variants import VARIANTS
from guidance_lab.experiments.evidence.pictures import DOCS, contact_sheet, kept, table, weights_key
from guidance_lab.experiments.training import RUNS
from guidance_lab.shapes.read import judge, read
from guidance_lab.shapes.world import parse, random_scene
from tools.report import arguments, insert_tables, write_report

TWO, THREE = 33, 17  # prompts of two and of three things in a part: the world's own mixture of them
CHOSEN_ON, REPORTED = (0, 5, 6, 7), (1, 2, 3, 4)  # parts: each has prompts and noise of its own
NOISES = 3  # of a reported prompt
QUICK = 10  # a quick run takes every tenth prompt
DRAWS = 4000  # of the bootstrap
COLUMNS = (
    "prompts", "pairs", "two all", "three all", "complex all", "against cfg", "from", "to", "right now", "wrong now",
    "missing", "extra", "clip score", "cost",
)  # fmt: skip


@dataclass(frozen=True)
class Setting(clip.Setting):
    variant: str = ""  # of `guidance_variants`; none: the node itself
    sampler: tuple[str | Callable, str] = ("euler", "normal")
    steps: int = 16


def likely(scorer: str = "likelihood", variant: str = "", **changed) -> Setting:
    return Setting(clip=guided(**changed), scorer=scorer, variant=variant)


CFG, BEST, MOST = "cfg 2", "cfg 2, best of 3 by the captioner", "cfg 2, best of 3 by the readers themselves"
THROUGH = {"gradient": "through model"}
SETTINGS = {
    CFG: Setting(),
    "likelihood 0.5, through the model": likely(**THROUGH),
    "likelihood 0.5": likely(),
    "likelihood 0.5, through the model, from the first step on": likely(**THROUGH, start_percent=0.0),
    "likelihood 0.5, from the first step on": likely(start_percent=0.0),
    "likelihood 0.5, another picture's caption": likely("other caption"),
    "likelihood -0.5 (wrong sign)": likely(strength=-0.5),
    "clip 0.5": likely("clean"),
    "clip 0.5, through the model": likely("clean", **THROUGH),
    "clip and likelihood 0.5": likely("clean and likelihood"),
    "likelihood 0.25": likely(strength=0.25),
    "likelihood 1.0": likely(strength=1.0),
    "likelihood 0.5, 1 crop beside": likely("likelihood of crops", crops=1),  # which the node does not show it
    "likelihood 0.5, until 0.7": likely(end_percent=0.7),
    "likelihood 0.5, every 2nd step": likely(every=2),
    "likelihood 0.5, through the model, every 2nd step": likely(**THROUGH, every=2),
    "likelihood 0.5, Adam moments": likely(variant="adam"),
    "likelihood 0.5, smoothed by 3 samples": likely(variant="smoothed"),
    "likelihood, clamp 10": likely(size="clamp", strength=10.0),
    "likelihood 0.25, through the model": likely(**THROUGH, strength=0.25),
    "likelihood 0.25, every 2nd step": likely(strength=0.25, every=2),
    "clip and likelihood 0.5, through the model": likely("clean and likelihood", **THROUGH),
}
# Drawn on what is chosen on before anything is reported.
FIRST = [*list(SETTINGS)[:4], "likelihood 0.5, 1 crop beside"]
CHOSEN = [  # decided on the first set: the nodes' defaults, and the best two
    "likelihood 0.5",
    "likelihood 0.5, through the model",
    "likelihood 0.5, every 2nd step",
    "likelihood 0.25, through the model",
]
# Between these the first 50 prompts cannot tell, so they are drawn on all that are chosen on.
CANDIDATES = [
    "likelihood 0.5",
    "likelihood 0.25",
    "likelihood 0.5, every 2nd step",
    "likelihood 0.5, through the model",
    "likelihood 0.25, through the model",
    "clip 0.5, through the model",
    "clip and likelihood 0.5, through the model",
    "likelihood 0.25, every 2nd step",
]
CONTROLS = ["likelihood 0.5, another picture's caption", "clip 0.5", "likelihood -0.5 (wrong sign)"]


def jobs() -> Iterator[tuple[int, int, str]]:
    """(part, noise, setting) in the order in which they are drawn."""
    for name in FIRST:
        yield CHOSEN_ON[0], 0, name
    for part in REPORTED:
        for noise in range(NOISES):
            yield from ((part, noise, name) for name in [CFG, *CHOSEN])
        if part == REPORTED[1]:
            yield from ((CHOSEN_ON[0], 0, name) for name in CONTROLS)
    for name in SETTINGS:
        if name not in (*FIRST, *CONTROLS):
            yield CHOSEN_ON[0], 0, name
    for part in CHOSEN_ON[1:]:
        yield from ((part, 0, name) for name in [CFG, *CANDIDATES])


def prompts(part: int) -> list:
    """The scenes of a part."""
    rng = np.random.default_rng([137, part])
    return [parse(random_scene(rng, things).caption) for things in [2] * TWO + [3] * THREE]


class Studio(clip.Studio):
    """Draws the variants too, and reads pictures with the captioner."""

    def model(self, setting: Setting, captions: list[str]):
        if not setting.variant:
            return super().model(setting, captions)
        from guidance_lab.guidance.schedule import Window
        from guidance_lab.nodes.clip_guidance.score_guidance import Settings
        from guidance_lab.nodes.clip_guidance.views import Views
        from guidance_lab.nodes.host import attach
        from guidance_lab.nodes.host.decode import make_decoder

        own = setting.clip
        settings = Settings(
            own["strength"],
            Window(own["start_percent"], own["end_percent"]),
            views=Views(own["crops"], own["whole_view"]),
        )
        decoder = make_decoder({"decoder": setting.decoder, "vae": self.vae}, self.models["main"])
        guidance = VARIANTS[setting.variant](self.aims(captions, setting.scorer), decoder, settings)
        return attach(self.models["main"], guidance)

    @torch.no_grad()
    def likelihoods(self, pictures: np.ndarray, captions: list[str]) -> np.ndarray:
        """log p(caption | picture) per token, [N]."""
        views = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        reader = self.captioner.likelihood
        return reader(views, reader.texts(captions)).numpy()


def right(pictures: np.ndarray, scenes: list) -> np.ndarray:
    """Whether all that was asked for is as it was asked for, by the readers: [N] of 0 and 1."""
    return np.array([judge(scene, read(picture))["all"] for scene, picture in zip(scenes, pictures, strict=True)])


def interval(gain: np.ndarray) -> tuple[float, float]:
    """95 % of the bootstrapped means of paired differences [noises, prompts], prompts drawn anew."""
    rng, count = np.random.default_rng(0), gain.shape[1]
    means = [gain[:, rng.integers(0, count, count)].mean() for _ in range(DRAWS)]
    return tuple(np.quantile(means, (0.025, 0.975)))


def row(name: str, pictures: np.ndarray, scenes: list, base: np.ndarray) -> dict:
    """One line of the table, of pictures [noises, prompts, 128, 128, 3]; `base` [noises, prompts] is `right` of CFG."""
    things = np.array([len(scene.things) for scene in scenes])
    all_right = np.stack([right(of_noise, scenes) for of_noise in pictures])
    gain = all_right - base
    low, high = interval(gain)
    flat, repeated = pictures.reshape(-1, *pictures.shape[2:]), scenes * len(pictures)
    return {
        "setting": name,
        "prompts": len(scenes),
        "pairs": gain.size,
        "two all": float(all_right[:, things == 2].mean()),
        "three all": float(all_right[:, things == 3].mean()),
        "complex all": float(all_right.mean()),
        "against cfg": float(gain.mean()),
        "from": low,
        "to": high,
        # How often a picture that was wrong is right now, and the other way round.
        "right now": float((gain > 0).mean()),
        "wrong now": float((gain < 0).mean()),
        **missing_and_extra(flat, repeated),
        "clip score": clip_score(flat, [scene.caption for scene in repeated]),
    }


def separation(liked: np.ndarray, is_right: np.ndarray) -> float:
    """How often a right picture is likelier to the captioner than a wrong one, of all pairs: 0.5 is chance."""
    good, bad = liked[is_right > 0.5], liked[is_right < 0.5]
    return float((good[:, None] > bad[None]).mean())


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--drawn", action="store_true", help="draw nothing, report on what is drawn already")
    parser.add_argument("--draw", action="store_true", help="draw and keep the pictures, no report")
    args = parser.parse_args()
    studio, drawn, seconds = Studio(), {}, {}
    for part, noise, name in jobs():
        scenes = prompts(part)[:: QUICK if args.quick else 1]
        folder = RUNS / "evidence" / f"likelihood-{weights_key(*SETTINGS[name].weights)}-{len(scenes)}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{part}_{noise}_{name.replace(' ', '_')}.npz"
        if args.drawn and not path.exists():
            continue
        captions, seed = [scene.caption for scene in scenes], SEED + 1000 * (1 + part) + 100 * noise
        found = kept(path, lambda n=name, c=captions, s=seed: studio.draw(SETTINGS[n], c, s))
        drawn[part, noise, name] = found["pictures"]
        seconds.setdefault(name, []).append(float(found["seconds"]) / len(scenes))
    if args.draw:
        return
    cost = {name: float(np.median(values)) for name, values in seconds.items()}
    tables, rows, ratios = [], [], {}
    for title, parts, whole in (("chosen on", CHOSEN_ON, 1), ("reported", REPORTED, NOISES)):
        parts = [p for p in parts if all((p, noise, CFG) in drawn for noise in range(whole))]
        part_rows = []
        for name in SETTINGS:
            used = [p for p in parts if (p, 0, name) in drawn]
            if not used:
                continue
            noises = 1  # as many as are there of every part: a run may have been stopped
            while all((p, noises, n) in drawn for p in used for n in (CFG, name)):
                noises += 1
            scenes = [scene for p in used for scene in prompts(p)[:: QUICK if args.quick else 1]]

            def pictures(n, used=used, noises=noises):
                return np.stack([np.concatenate([drawn[p, k, n] for p in used]) for k in range(noises)])

            base = np.stack([right(of_noise, scenes) for of_noise in pictures(CFG)])
            made = row(name, pictures(name), scenes, base)
            part_rows.append(made | {"cost": cost[name] / cost[CFG]})
            if name == CFG and noises > 1:
                liked = np.stack([studio.likelihoods(one, [x.caption for x in scenes]) for one in pictures(CFG)])
                ratios["captioner tells right from wrong (area under the curve)"] = separation(liked, base)
                for choice, judged in ((BEST, liked), (MOST, base)):
                    chosen = pictures(CFG)[judged.argmax(0), np.arange(len(scenes))][None]
                    made = row(choice, chosen, scenes, base.mean(0, keepdims=True))
                    for shares in ("right now", "wrong now"):  # of one picture against three
                        del made[shares]
                    part_rows.append(made | {"cost": float(noises)})
        tables.append(f"**{title}**\n\n" + table(part_rows, "setting", COLUMNS))
        rows += [{"set": title, **one} for one in part_rows]
    ratios |= {f"complex all {one['setting']} - cfg alone ({one['set']})": one["against cfg"] for one in rows}
    text = "\n\n".join(tables)
    write_report(args.json, ratios, rows)
    print(text)
    if not args.quick:
        write_report(DOCS / "likelihood.json", ratios, rows)
        insert_tables(DOCS / "clip.md", text, "likelihood")
        sheet = [drawn[REPORTED[0], 0, name] for name in [CFG, *CHOSEN] if (REPORTED[0], 0, name) in drawn]
        contact_sheet(DOCS / "likelihood.png", sheet)


if __name__ == "__main__":
    main()
