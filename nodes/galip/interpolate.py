"""GALIP Interpolate: pictures on the way between texts and between noises."""

import torch

from ...galip import PATHS, seeded_noise, walk
from .._api import io
from .inputs import noise_vectors, sentences
from .model import CATEGORY, GalipSocket
from .sampler import MAX_SEED

MAX_PICTURES = 1024
LAYOUTS = ["row", "grid", "loop"]


def parse_seeds(text: str) -> list[int]:
    """'0, 7, 12' -> [0, 7, 12]. ValueError for anything else."""
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isdecimal() and int(part) <= MAX_SEED for part in parts):
        raise ValueError(f"seeds is '{text}'; give whole numbers with commas between them, such as 0, 1, 2.")
    return [int(part) for part in parts]


def frames(texts: torch.Tensor, noises: torch.Tensor, layout: str, steps: int, text_path: str, noise_path: str):
    """(noise [N, nz], sentence [N, cond_dim], (rows, columns)) of all pictures, rows * columns = N, row by row.

    row, loop: text and noise move together through their keys; where one has a single key, it stays there. grid: the
    text changes from column to column, the noise from row to row. ValueError when the keys do not fit the layout, or
    give too many pictures.
    """
    if layout != "grid" and len(texts) != len(noises) and 1 not in (len(texts), len(noises)):
        raise ValueError(
            f"{len(texts)} texts and {len(noises)} noises cannot move together; give equally many, or one of either, "
            f"or use layout grid."
        )
    if len(texts) == len(noises) == 1:
        raise ValueError(
            "There is one text and one noise, so nothing to interpolate; give a second conditioning or a second seed."
        )
    keys = max(len(texts), len(noises))
    ways = {
        "row": (keys - 1) * steps + 1,
        "loop": keys * steps,
        "grid": ((len(texts) - 1) * steps + 1) * ((len(noises) - 1) * steps + 1),
    }
    if ways[layout] > MAX_PICTURES:
        raise ValueError(
            f"That would be {ways[layout]} pictures; the node draws at most {MAX_PICTURES}, so lower steps or give "
            f"fewer keys."
        )
    if layout == "grid":
        across, down = walk(texts, steps, text_path), walk(noises, steps, noise_path)
        return down.repeat_interleave(len(across), dim=0), across.repeat(len(down), 1), (len(down), len(across))
    sentence = walk(texts.expand(keys, -1), steps, text_path, layout == "loop")
    noise = walk(noises.expand(keys, -1), steps, noise_path, layout == "loop")
    return noise, sentence, (1, len(noise))


def tile(images: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """IMAGE [rows * columns, H, W, C] -> one IMAGE [1, rows * H, columns * W, C]."""
    return images.unflatten(0, (rows, columns)).transpose(1, 2).flatten(2, 3).flatten(0, 1)[None]


class GALIPInterpolate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        text = io.Conditioning.Input(
            "conditioning", tooltip="A text on the way, from CLIP Text Encode with the CLIP of GALIP CLIP."
        )
        return io.Schema(
            node_id="GuidanceLab_GALIPInterpolate",
            display_name="GALIP Interpolate",
            category=CATEGORY,
            description=(
                "Draws the pictures between texts and between noises with a GALIP generator, as a row, a grid or an "
                "endless loop of frames. The pictures at the keys are exactly those of GALIP Sampler."
            ),
            search_aliases=[
                "GALIP",
                "latent walk",
                "morph",
                "style interpolation",
                "slerp",
                "GAN interpolation",
                "animation loop",
            ],
            inputs=[
                GalipSocket.Input("galip", tooltip="The generator, from GALIP Loader."),
                io.Autogrow.Input(
                    "conditionings",
                    template=io.Autogrow.TemplatePrefix(text, prefix="conditioning", min=1, max=16),
                    tooltip="One or more texts, in the order of the way; every text of a batch counts. With one text "
                    "only the noise changes.",
                ),
                io.String.Input(
                    "seeds",
                    default="0",
                    tooltip="One or more seeds, such as 0, 1, 2, in the order of the way. Each is the noise that GALIP "
                    "Sampler draws from that seed. With one seed only the text changes.",
                ),
                io.Int.Input(
                    "steps",
                    default=8,
                    min=1,
                    max=256,
                    tooltip="Steps from one key to the next, 1 to 256: 8 give 7 new pictures between two keys.",
                ),
                io.Combo.Input(
                    "layout",
                    options=LAYOUTS,
                    default="row",
                    tooltip="row: text and noise move together from the first key to the last. loop: and back to the "
                    "first, for an endless video. grid: texts from left to right, noises from top to bottom.",
                ),
                io.Combo.Input(
                    "text_path",
                    options=list(PATHS),
                    default="lerp",
                    tooltip="How the text embedding moves: lerp in a straight line, as usual; slerp by equal angles.",
                ),
                io.Combo.Input(
                    "noise_path",
                    options=list(reversed(PATHS)),
                    default="slerp",
                    tooltip="How the noise moves: slerp by equal angles, which keeps it as strong as normal noise; "
                    "lerp in a straight line, which passes weaker noise, that is more typical pictures, half-way.",
                ),
                io.Float.Input(
                    "truncation",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="As in GALIP Sampler: 1 is off; lower values, usually 0.7 to 0.9, give more typical "
                    "pictures with less variety.",
                ),
                io.Latent.Input(
                    "noise",
                    optional=True,
                    tooltip="Noises on the way in place of seeds and truncation, which are then not used: the noise "
                    "output of GALIP Sampler, one key per picture of its batch.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images",
                    tooltip="All pictures as a batch, in the order of the way; a grid row by row.",
                ),
                io.Image.Output(
                    display_name="sheet", tooltip="The same pictures side by side in one picture: one row, or the grid."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        galip,
        conditionings,
        seeds="0",
        steps=8,
        layout="row",
        text_path="lerp",
        noise_path="slerp",
        truncation=1.0,
        noise=None,
    ) -> io.NodeOutput:
        if not conditionings:
            raise ValueError("GALIP Interpolate needs at least one conditioning; connect CLIP Text Encode.")
        texts = torch.cat([sentences(conditioning, galip.dims) for conditioning in conditionings.values()])
        if noise is None:
            noises = seeded_noise(parse_seeds(seeds), galip.dims.nz, truncation)
        else:
            noises = noise_vectors(noise, galip.dims)
        vectors, sentence, (rows, columns) = frames(texts, noises, layout, steps, text_path, noise_path)
        images = galip.draw(vectors, sentence)
        return io.NodeOutput(images, tile(images, rows, columns))
