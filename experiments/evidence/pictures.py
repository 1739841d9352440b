"""What the evidence scripts on pictures share: drawing once, the measures, contact sheets and tables."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from guidance_lab.experiments.features import diversity, features, frechet
from guidance_lab.shapes import shipped
from guidance_lab.shapes.read import judge, read
from guidance_lab.shapes.world import Scene, random_scene

DOCS = Path(__file__).resolve().parents[2] / "docs" / "evidence"
DIFFUSION = ("early", "main", "small", "text", "vae")
READ = ("object", "colour", "texture", "background", "count", "relation", "all")


def weights_key(*names: str) -> str:
    """Changes when one of these weights changes, so that kept pictures are never those of another model."""
    digest = hashlib.sha256()
    for name in names or DIFFUSION:
        digest.update(shipped.weights_file(name).read_bytes())
    return digest.hexdigest()[:10]


def kept(path: Path, make: Callable[[], np.ndarray]) -> Mapping[str, np.ndarray]:
    """`pictures` of `make()` and the CPU `seconds` it took, drawn once: what lies at `path` is taken as it is."""
    if not path.exists():
        began = time.process_time()
        pictures = make()
        np.savez_compressed(path.with_suffix(".tmp.npz"), pictures=pictures, seconds=time.process_time() - began)
        path.with_suffix(".tmp.npz").replace(path)
        print(f"{path.stem}: {len(pictures)} pictures in {time.process_time() - began:.0f} s of CPU", flush=True)
    return np.load(path)


def measure(
    pictures: np.ndarray,
    scenes: list,
    real: np.ndarray,
    judged: Callable[[Any, np.ndarray], dict[str, float]] | None = None,
) -> dict[str, float]:
    """Alignment by the readers (simple = one thing, complex = two or three, and these apart), Fréchet distance and
    diversity against features `real`. `judged`: another edition's readers.
    """
    judged = judged or (lambda scene, picture: judge(scene, read(picture)))
    rows = [(len(scene.things), judged(scene, picture)) for scene, picture in zip(scenes, pictures, strict=True)]
    result = {key: float(np.mean([row[key] for _, row in rows if key in row])) for key in READ}
    result["simple all"] = float(np.mean([row["all"] for n, row in rows if n == 1]))
    result["simple object+colour"] = float(np.mean([row["object"] * row["colour"] for n, row in rows if n == 1]))
    for count, name in ((2, "two"), (3, "three")):
        found = [row["all"] for n, row in rows if n == count]
        result |= {f"{name} all": float(np.mean(found))} if found else {}
    result["complex all"] = float(np.mean([row["all"] for n, row in rows if n > 1]))
    drawn = features(pictures)
    return result | {"frechet": frechet(real, drawn)} | diversity(real, drawn)


def place_again(scene: Scene, rng: np.random.Generator) -> Scene:
    """A fresh scene with the same caption: new places, sizes and directions."""
    while True:
        layout = random_scene(rng, len(scene.things))
        sized = [(old.size_word, new.size_word) for old, new in zip(scene.things, layout.things, strict=True)]
        if layout.relation == scene.relation and all(old == new for old, new in sized):
            break
    things = tuple(
        replace(old, x=new.x, y=new.y, size=new.size, flip=new.flip, period=new.period, strength=new.strength)
        for old, new in zip(scene.things, layout.things, strict=True)
    )
    return Scene(things, scene.background, scene.relation)


def grid(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Pictures [N, H, W, 3], N a multiple of `columns`, as one."""
    return np.concatenate(
        [np.concatenate(list(pictures[i : i + columns]), 1) for i in range(0, len(pictures), columns)]
    )


def contact_sheet(path: Path, rows: list[np.ndarray], columns: int = 12) -> None:
    """One row of pictures per setting, each 128 pixels wide."""
    sheet = np.concatenate([np.concatenate(list(row[:columns]), 1) for row in rows], 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    scale = max(1, 128 // rows[0].shape[2])
    Image.fromarray(sheet).resize((sheet.shape[1] * scale, sheet.shape[0] * scale), Image.Resampling.NEAREST).save(path)


COUNTS = ("prompts", "pairs", "pictures")  # columns of whole numbers


def table(rows: list[dict], first: str, columns: Sequence[str]) -> str:
    """A Markdown table: column `first` of the rows as it is, the others as numbers, empty where a row has none."""

    def cell(row: dict, column: str) -> str:
        if column not in row:
            return ""
        return f"{row[column]:.0f}" if column in COUNTS else f"{row[column]:.3f}"

    lines = [f"| {first} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        lines.append(f"| {row[first]} | " + " | ".join(cell(row, column) for column in columns) + " |")
    return "\n".join(lines)
