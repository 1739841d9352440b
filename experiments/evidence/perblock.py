"""Per-layer prompts in Shapes: which layers decide object, colour, texture and background, and the swap of inner and
outer prompts.

Four measurements through the real Per-Block Conditioning node, each on pairs of prompts A and B drawn from the same
noise, and a control:

    layer       A everywhere, B in one layer: what that layer alone changes
    innermost   A everywhere, B in the k innermost layers, k = 0 ... 16 (the P+ project page's growing subsets)
    part        A everywhere, B in the layers on the way down or up, or in the middle or outer ones
    swap        "a red cube" outside, "a green lizard" inside: whose object and whose colour is drawn
    control     A everywhere, but without the text on maps of one size, or without the levels of that size and smaller

Pictures are kept in `experiments/runs/`, so a run that was stopped goes on where it was. `--draw` draws without a
report, `--only NAME ...` takes a part of the settings: two processes can share the work so.
"""

from functools import partial
from pathlib import Path

import numpy as np

from guidance_lab.experiments.evidence.pictures import DOCS, contact_sheet, kept, table, weights_key
from guidance_lab.experiments.sampling import draw, encode, without_text, zeroed_below
from guidance_lab.experiments.training import RUNS
from guidance_lab.shapes import shipped
from guidance_lab.shapes.read import nearest_colour, read
from guidance_lab.shapes.world import BACKGROUNDS, COLOURS, OBJECTS, TEXTURES, Scene, Thing, hue_of
from guidance_lab.xti.selection import select
from tools.report import arguments, insert_tables, write_report

ATTRIBUTES = ("object", "colour", "texture", "background")
SEED, CFG = 3000, 2.0
PARTS = ("down", "up", "middle", "outer")
SIDES = (16, 8, 4, 2)  # cells of the four levels' maps
SHEET = ("innermost 0", "part down", "part up", "innermost 16", "swap 0", "swap 6", "swap 11", "swap 16")
INNER = (
    2,
    6,
    8,
    10,
    11,
    12,
    13,
    14,
)  # sizes of the inner part in the swap; 2 is SVDiff's choice, 6 "middle" in the layer table


def pairs(count: int, rng: np.random.Generator, plain: bool) -> list[tuple[Scene, Scene]]:
    """Pairs of one-thing scenes that differ in object and colour, and, unless `plain`, in texture and background
    too.
    """

    def two(values):
        return rng.choice(list(values), 2, replace=False)

    found = []
    for _ in range(count):
        names, colours, textures, grounds = two(OBJECTS), two(COLOURS), two(TEXTURES), two(BACKGROUNDS)
        if plain:
            textures, grounds = ("plain", "plain"), (grounds[0], grounds[0])
        found.append(
            tuple(
                Scene((Thing(str(name), hue_of(str(colour)), str(texture)),), str(g))
                for name, colour, texture, g in zip(names, colours, textures, grounds, strict=True)
            )
        )
    return found


def seen(picture: np.ndarray) -> dict[str, str]:
    """What a picture of one thing shows, by attribute; only the background where there is no one thing."""
    reading = read(picture)
    shown = {"background": reading.background}
    if len(reading.things) == 1:
        thing = reading.things[0]
        shown |= {"object": thing.name, "colour": nearest_colour(thing.hue), "texture": thing.texture}
    return shown


def asked(scene: Scene) -> dict[str, str]:
    thing = scene.things[0]
    return {"object": thing.name, "colour": thing.colour, "texture": thing.texture, "background": scene.background}


def shares(pictures: np.ndarray, couples: list[tuple[Scene, Scene]], attributes: tuple[str, ...]) -> dict[str, float]:
    """For each attribute the share of pictures that show B's value, and A's; the rest show another one or no single
    thing.

    "mixed": the share with B's object in A's colour. "apart": with B's object and colour on A's background, or the
    other way round.
    """
    hits: dict[str, list[bool]] = {f"{attribute} {label}": [] for attribute in attributes for label in "BA"}
    hits |= {"mixed": [], "apart": [], "one thing": []}
    for picture, (a, b) in zip(pictures, couples, strict=True):
        found, wanted = seen(picture), {"A": asked(a), "B": asked(b)}

        def shows(label, *names, found=found, wanted=wanted):
            return all(found.get(name) == wanted[label][name] for name in names)

        for attribute in attributes:
            for label in "BA":
                hits[f"{attribute} {label}"].append(shows(label, attribute))
        hits["mixed"].append(shows("B", "object") and shows("A", "colour"))
        hits["apart"].append(any(shows(x, "object", "colour") and shows(y, "background") for x, y in ("AB", "BA")))
        hits["one thing"].append("object" in found)
    return {name: float(np.mean(values)) for name, values in hits.items()}


class Drawing:
    """Draws each setting once and keeps its pictures: all pairs, from the same noise."""

    def __init__(self, folder: Path, count: int):
        from guidance_lab.nodes.layers.cross_attention import layer_table
        from guidance_lab.nodes.layers.per_block import PerBlockConditioning

        self.node = PerBlockConditioning.PREPARE_CLASS_CLONE(None)
        self.model, self.clip, self.vae = shipped.load_model("main"), shipped.load_clip(), shipped.load_vae()
        self.table, self.folder = layer_table(self.model), folder
        rng = np.random.default_rng(79)
        self.pairs = {"all": pairs(count, rng, plain=False), "plain": pairs(count, rng, plain=True)}
        self.contexts = {
            kind: [encode(self.clip, [couple[i].caption for couple in couples]) for i in (0, 1)]
            for kind, couples in self.pairs.items()
        }
        self.empty = encode(self.clip, [""])
        inside_out = self.table.inside_out()
        self.settings = {f"layer {name}": ("all", (i,)) for i, name in enumerate(self.table.names)}
        self.settings |= {f"innermost {k}": ("all", inside_out[:k]) for k in range(len(self.table) + 1)}
        self.settings |= {f"part {part}": ("all", select(part, self.table)) for part in PARTS}
        self.settings |= {f"swap {k}": ("plain", inside_out[:k]) for k in (0, *INNER, len(self.table))}

        # name: the hooks on the U-Net that are there while A is drawn
        self.controls = {f"no text on {side}×{side}": partial(self._silent, {side}) for side in SIDES}
        self.controls |= {f"text only on {side}×{side}": partial(self._silent, {*SIDES} - {side}) for side in SIDES}
        self.controls |= {f"no levels from {side}×{side} down": partial(self._zeroed, side) for side in SIDES[1:]}

    def _silent(self, sides: set[int]) -> list:
        return without_text(self.model.model.diffusion_model, sides, self.empty)

    def _zeroed(self, side: int) -> list:
        return [zeroed_below(self.model.model.diffusion_model, side)]

    def control(self, name: str) -> np.ndarray:
        """A of every pair with that part of the network silent."""

        def drawn() -> np.ndarray:
            hooks = self.controls[name]()
            try:
                return draw(self.model, self.vae, self.contexts["all"][0], self.empty, SEED, CFG)
            finally:
                for hook in hooks:
                    hook.remove()

        return kept(self.folder / f"{name.replace(' ', '_')}.npz", drawn)["pictures"]

    def pictures(self, name: str) -> np.ndarray:
        """Every pair with B in the setting's layers and A in the others."""
        return kept(self.folder / f"{name.replace(' ', '_')}.npz", lambda: self._draw(*self.settings[name]))["pictures"]

    def _draw(self, kind: str, layers: tuple[int, ...]) -> np.ndarray:
        a, b = self.contexts[kind]
        lines = f"{','.join(map(str, layers))}: A" if layers else ""

        def conditioning(rows):
            return self.node.execute(self.model, [[a[rows], {}]], lines, {"A": [[b[rows], {}]]}).result[1]

        model = self.node.execute(self.model, [[a[:1], {}]], "all: A", {"A": [[b[:1], {}]]}).result[0]
        return draw(model, self.vae, a, self.empty, SEED, CFG, conditioning=conditioning)


def change(pictures: np.ndarray, base: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute pixel change against A's picture, as a share of the change to B's picture."""
    base = base.astype(np.float32)
    return float(np.abs(pictures - base).mean() / np.abs(other - base).mean())


def measure(drawing: Drawing) -> list[dict]:
    """One row per setting."""
    whole = {"all": "innermost", "plain": "swap"}
    rows = []
    for name, (kind, layers) in drawing.settings.items():
        drawn = drawing.pictures(name)
        ends = (drawing.pictures(f"{whole[kind]} {k}") for k in (0, len(drawing.table)))
        attributes = ATTRIBUTES if kind == "all" else ATTRIBUTES[:2]
        row = {"setting": name, "pictures": len(drawn), "layers": [drawing.table.names[i] for i in layers]}
        rows.append(row | shares(drawn, drawing.pairs[kind], attributes) | {"change": change(drawn, *ends)})
    whole = drawing.pictures("innermost 0")
    for name, pictures in [("whole network", whole), *((name, drawing.control(name)) for name in drawing.controls)]:
        found = shares(pictures, drawing.pairs["all"], ATTRIBUTES)
        rows.append({"setting": f"control: {name}", "pictures": len(pictures)} | found)
    return rows


def tables(rows: list[dict]) -> str:
    """The tables of the page."""
    parts = []
    for title, start, columns in (
        ("One layer reads B, all others A", "layer", [f"{name} B" for name in ATTRIBUTES] + ["one thing", "change"]),
        (
            "The k innermost layers read B",
            "innermost",
            [f"{name} {who}" for name in ATTRIBUTES for who in "BA"] + ["one thing", "change"],
        ),
        (
            "A part of the layers reads B",
            "part",
            [f"{name} {who}" for name in ATTRIBUTES for who in "BA"] + ["apart", "one thing"],
        ),
        (
            "Swap: the k innermost layers read B",
            "swap",
            [f"{name} {who}" for name in ATTRIBUTES[:2] for who in "BA"] + ["mixed", "one thing"],
        ),
        ("Control: A everywhere", "control:", [f"{name} A" for name in ATTRIBUTES] + ["one thing"]),
    ):
        chosen = [row for row in rows if row["setting"].startswith(f"{start} ")]
        parts.append(f"**{title}**\n\n{table(chosen, 'setting', columns)}")
    return "\n\n".join(parts)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these settings")
    parser.add_argument("--draw", action="store_true", help="draw and keep the pictures, no report")
    parser.add_argument("--pairs", type=int, help="pairs of prompts (400, or 16 with --quick)")
    args = parser.parse_args()
    count = args.pairs or (16 if args.quick else 400)
    folder = RUNS / "evidence" / f"perblock-{weights_key()}-{count}"
    folder.mkdir(parents=True, exist_ok=True)
    drawing = Drawing(folder, count)
    names = [*drawing.settings, *drawing.controls]
    unknown = set(args.only or []) - set(names)
    if unknown:
        parser.error(f"no setting {', '.join(sorted(unknown))}; there is {', '.join(names)}")
    for name in args.only or names:
        drawing.control(name) if name in drawing.controls else drawing.pictures(name)
    if args.draw or args.only:
        return
    rows = measure(drawing)
    by_name = {row["setting"]: row for row in rows}
    ratios = {
        "B's object in A's colour, best swap": max(row["mixed"] for row in rows if row["setting"].startswith("swap")),
        "the same by the middle layers (the claim for large models)": by_name["swap 6"]["mixed"],
        "thing of one prompt on the background of the other, way up": by_name["part up"]["apart"],
        "thing of one prompt on the background of the other, way down": by_name["part down"]["apart"],
        "object right without the levels of 4×4 cells and fewer": by_name["control: no levels from 4×4 down"][
            "object A"
        ],
        "object right with one prompt in all layers": by_name["swap 16"]["object B"],
    }
    write_report(args.json, ratios, rows)
    text = tables(rows)
    print(text)
    if not args.quick:
        DOCS.mkdir(parents=True, exist_ok=True)
        write_report(DOCS / "perblock.json", ratios, rows)
        insert_tables(DOCS / "perblock.md", text)
        contact_sheet(DOCS / "perblock.png", [drawing.pictures(name) for name in SHEET])


if __name__ == "__main__":
    main()
