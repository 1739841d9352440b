"""Which matching model guides best in Shapes: a CLIP's cosine, a captioner's likelihood, an image-text match?

All through the model beside CFG 2, on the prompts of `evidence likelihood`: strengths are chosen on one set of 200
pairs and reported on 200 other prompts. Three of the scorers do not ship; `train captioner_estimates`, `train
captioner_own` and `train matcher` make them. Pictures are kept, so a run that was stopped goes on.
"""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from functools import cache, cached_property

import numpy as np
import torch

from guidance_lab.experiments.evidence.clip import SEED, missing_and_extra
from guidance_lab.experiments.evidence.guidance_variants import recurrent_euler
from guidance_lab.experiments.evidence.likelihood import (
    CHOSEN_ON,
    REPORTED,
    THROUGH,
    Setting,
    Studio,
    interval,
    likely,
    prompts,
    right,
    separation,
)
from guidance_lab.experiments.evidence.pictures import DOCS, kept, table, weights_key
from guidance_lab.experiments.train.clip import normalized
from guidance_lab.experiments.train.matcher import matcher, words
from guidance_lab.experiments.training import RUNS
from guidance_lab.shapes import shipped
from guidance_lab.shapes.read import judge, read
from guidance_lab.shapes.world import SIZE
from guidance_lab.weight_files.clip import MEAN, STD
from tools.report import arguments, insert_tables, write_report

CFG = "cfg 2"
ALONE = {**THROUGH, "blend": "x0"}  # these were trained on the estimate alone
REPEATED = (recurrent_euler, "normal")
OWN = "likelihood of own pictures"
SETTINGS = {
    CFG: Setting(),
    "cosine 0.5": likely("clean", **THROUGH),
    "likelihood 0.25": likely(**THROUGH, strength=0.25),
    "likelihood, trained on estimates, 0.5": likely("likelihood of estimates", **ALONE),
    "likelihood, trained on estimates, 0.5, from the first step on": likely(
        "likelihood of estimates", **ALONE, start_percent=0.0
    ),
    "likelihood 0.25, early steps repeated": replace(likely(**THROUGH, strength=0.25), sampler=REPEATED),
    "cfg 2, early steps repeated": Setting(sampler=REPEATED),
    **{
        f"likelihood, trained on own pictures, {strength:g}": likely(OWN, **ALONE, strength=strength)
        for strength in (0.25, 0.5)
    },
    "match 0.25": likely("match", **ALONE, strength=0.25),
    "match 0.5": likely("match", **ALONE),
    "match 1.0": likely("match", **ALONE, strength=1.0),
}
# scorer → its run
TRAINED = {
    "likelihood of estimates": "captioner_estimates",
    OWN: "captioner_own",
    "match": "matcher",
}
REPORT = [
    CFG,
    "cosine 0.5",
    "likelihood 0.25",
    "likelihood, trained on estimates, 0.5",
    "likelihood, trained on own pictures, 0.25",
    "likelihood, trained on own pictures, 0.5",
    "match 0.5",
]
COLUMNS = ("pairs", "complex all", "against cfg", "from", "to", "right now", "wrong now", "missing", "extra", "tells")


def trained(name: str) -> dict[str, torch.Tensor]:
    """The weights of a run. Raises FileNotFoundError with the command that makes them."""
    path = RUNS / name / "last.pt"
    if not path.exists():
        raise FileNotFoundError(f"{name} is not trained yet: python dev.py train {name}")
    return {key: value.float() for key, value in torch.load(path, weights_only=True)["model"].items()}


@cache
def weights_digest(run: str) -> str:
    """Changes with the weights, so that pictures of a scorer that is trained again are drawn again."""
    digest = hashlib.sha256()
    for value in trained(run).values():
        digest.update(value.half().numpy().tobytes())
    return digest.hexdigest()[:8]


@cache
def captioner_of(run: str):
    """The Shapes captioner with the weights of a run."""
    from guidance_lab.nodes.captions.captioners import HeldNetwork
    from guidance_lab.nodes.host.networks import as_patcher
    from guidance_lab.nodes.shapes.demo_models import ShapesCaptioner

    held, found = shipped.load_captioner(), ShapesCaptioner()
    held.load_state_dict(trained(run))
    found.models = (as_patcher(HeldNetwork(held)),)
    return found


class Matchers(Studio):
    """Has the scorers too that do not ship."""

    @cached_property
    def matching(self) -> torch.nn.Module:
        network = matcher()
        network.load_state_dict(trained("matcher"))
        return network.eval()

    def aims(self, captions: list[str], scorer: str):
        if scorer == "match":
            return self.objective(((1.0, self.match(captions)),))
        if scorer in TRAINED:
            return self.objective(((1.0, self.likelihood(captioner_of(TRAINED[scorer]), captions, [], "token")),))
        return super().aims(captions, scorer)

    def match(self, captions: list[str]):
        from guidance_lab.nodes.clip_guidance.objectives.image_text_match import TextMatch

        class OwnMatches(TextMatch):
            """Picture i and caption i, where the node has all texts for every picture."""

            def score(self, view, step):
                return self.models[0].model(normalized(view), self.tokens, self.mask).log_softmax(-1)[:, 1]

        def tokenizer(lines, **_):
            return dict(zip(("input_ids", "attention_mask"), words(lines), strict=True))

        return OwnMatches(self.matching, tokenizer, MEAN, STD, SIZE, captions, "Shapes match")

    @torch.no_grad()
    def judged(self, setting: Setting, pictures: np.ndarray, captions: list[str]) -> np.ndarray:
        """The scorer of a setting on finished pictures uint8 [N, 128, 128, 3] and their captions: [N]."""
        views = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        return self.aims(captions, setting.scorer).parts[0][1].score(views, None).numpy()


def faults(pictures: np.ndarray, scenes: list) -> Counter[str]:
    """How many pictures [noises, prompts, 128, 128, 3] are wrong in a thing, else in colour and texture, else in
    texture only; the last is what is left.
    """
    found: Counter[str] = Counter()
    for one in pictures:
        for scene, picture in zip(scenes, one, strict=True):
            judged = judge(scene, read(picture))
            kinds = [key for key in ("object", "colour", "texture", "all") if judged[key] < 1]
            if kinds:
                found[kinds[0]] += 1
    return found


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", metavar="SETTING", choices=list(SETTINGS), help="other rows stay as they are"
    )
    parser.add_argument("--noises", type=int, default=1, help="of a reported prompt (1)")
    args = parser.parse_args()
    studio, every = Matchers(), 10 if args.quick else 1
    page = DOCS / "matchers.json"
    before = {"rows": [], "ratios": {}}
    if args.only and not args.quick:
        before = json.loads(page.read_text(encoding="utf-8"))

    def drawn(name: str, part: int, noise: int) -> np.ndarray:
        scenes = prompts(part)[::every]
        folder = RUNS / "evidence" / f"matchers-{weights_key('main', 'text', 'vae', 'clip', 'captioner')}-{len(scenes)}"
        folder.mkdir(parents=True, exist_ok=True)
        seed, captions = SEED + 1000 * (1 + part) + 100 * noise, [scene.caption for scene in scenes]
        run = TRAINED.get(SETTINGS[name].scorer)
        digest = f"_{weights_digest(run)}" if run else ""
        path = folder / f"{part}_{noise}_{name.replace(' ', '_')}{digest}.npz"
        return kept(path, lambda: studio.draw(SETTINGS[name], captions, seed))["pictures"]

    tables, rows, ratios = [], [], before["ratios"]
    for title, parts, noises, names in (
        ("chosen on", CHOSEN_ON, 1, list(SETTINGS)),
        ("reported", REPORTED, args.noises, REPORT),
    ):
        scenes = [scene for part in parts for scene in prompts(part)[::every]]
        base, found = None, []
        for name in names:
            if args.only and name not in (CFG, *args.only):
                kept_rows = [row for row in before["rows"] if (row["set"], row["setting"]) == (title, name)]
                found += [{key: value for key, value in row.items() if key != "set"} for row in kept_rows]
                continue
            pictures = np.stack([np.concatenate([drawn(name, part, k) for part in parts]) for k in range(noises)])
            all_right = np.stack([right(one, scenes) for one in pictures])
            base = all_right if name == CFG else base
            gain = all_right - base
            low, high = interval(gain)
            row = {
                "setting": name, "pairs": gain.size, "complex all": float(all_right.mean()),
                "against cfg": float(gain.mean()), "from": low, "to": high, "right now": float((gain > 0).mean()),
                "wrong now": float((gain < 0).mean()),
                **missing_and_extra(pictures.reshape(-1, *pictures.shape[2:]), scenes * noises),
            }  # fmt: skip
            if name == CFG:
                unguided = pictures
                for kind, count in faults(pictures, scenes).items():
                    ratios[f"wrong with cfg alone, pictures ({title}): {kind}"] = count
            elif SETTINGS[name].clip:  # does the scorer tell right pictures of CFG from wrong ones?
                captions = [scene.caption for scene in scenes]
                judged = np.stack([studio.judged(SETTINGS[name], one, captions) for one in unguided])
                row["tells"] = separation(judged, base)
            found.append(row)
            print(row, flush=True)
        tables.append(f"**{title}**\n\n" + table(found, "setting", COLUMNS))
        rows += [{"set": title, **one} for one in found]
        ratios |= {f"complex all {one['setting']} - cfg alone ({title})": one["against cfg"] for one in found}
    write_report(args.json, ratios, rows)
    if not args.quick:
        write_report(page, ratios, rows)
        insert_tables(DOCS / "clip.md", "\n\n".join(tables), "matchers")


if __name__ == "__main__":
    main()
