"""The training set: scene i is drawn from its own seed, pictures are rendered once and kept beside the runs.

Run as a module it renders all of it at once, in some minutes.
"""

import argparse
import time
from functools import lru_cache

import numpy as np

from guidance_lab.experiments.training import RUNS
from guidance_lab.shapes.render import render
from guidance_lab.shapes.world import SIZE, Scene, random_scene

SCENES = 60_000
CHUNK = 2_000


@lru_cache(SCENES)
def scene(index: int) -> Scene:
    """Scene `index` of the training set; those from `SCENES` on are never trained on."""
    return random_scene(np.random.default_rng([2, index]))


def pictures(chunk: int) -> np.ndarray:
    """Pictures of scenes CHUNK·chunk …: uint8 [CHUNK, 128, 128, 3], memory-mapped. Rendered on the first call, about
    20 s."""
    path = RUNS / f"pictures{CHUNK}" / f"{chunk:03}.npy"
    if not path.exists():
        began = time.time()
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = np.empty((CHUNK, SIZE, SIZE, 3), np.uint8)
        for i in range(CHUNK):
            rows[i] = render(scene(chunk * CHUNK + i))
        np.save(path.with_suffix(".tmp.npy"), rows)
        path.with_suffix(".tmp.npy").replace(path)
        print(f"rendered {(chunk + 1) * CHUNK} of {SCENES}, {CHUNK / (time.time() - began):.0f} a second", flush=True)
    return np.load(path, mmap_mode="r")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=SCENES // CHUNK)
    for chunk in range(parser.parse_args().chunks):
        pictures(chunk)


if __name__ == "__main__":
    main()
