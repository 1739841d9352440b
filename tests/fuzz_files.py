"""The readers of weight files, each with a good tree of weights that `fuzz_cases` changes, and what they may answer."""

import contextlib
import functools
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import fuzz_cases
import torch

from guidance_lab import galip, xti
from guidance_lab.galip.clip import TextEncoder
from guidance_lab.guidance import noised_clip
from guidance_lab.weight_files import read_tensors, tensors_of


# ---- readers: (valid tree, function of a path) ----
def _random(shapes: dict) -> dict:
    source = torch.Generator().manual_seed(0)
    return {key: 0.02 * torch.randn(shape, generator=source) for key, shape in shapes.items()}


def _galip():
    dims = galip.Dims(nz=4, cond_dim=8, grid=2, code_channels=4, code_hidden=2, bridge_blocks=1, clip_width=64,
                      clip_layers=2, clip_patch=4, prompts=1, channels=((4, 4), (4, 4)), sizes=(8, 224))  # fmt: skip
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in galip.Generator(dims).state_dict().items()}
    return _random(shapes), galip.load_generator


def _noised():
    both = {}
    for kind in ("image", "text"):
        first = noised_clip.ImageInput(64, 8, 5, 10) if kind == "image" else noised_clip.TextInput(64, 50, 7)
        encoder = noised_clip.Encoder(first, 64, 1, 8, kind == "text")
        both[kind] = _random(
            {
                key.removesuffix(".weight") + ".w"
                if key.endswith(".weight")
                else key.replace(".bias", ".b"): value.shape
                for key, value in encoder.state_dict().items()
            }
        )

    def read(path):
        weights = read_tensors(path, inside=("state_dict",)).tensors
        kind = "image" if "blocks.input.w_t" in weights else "text"
        noised_clip.load(*(weights if kind == each else both[each] for each in ("image", "text")))

    return both["image"], read


def _xti(layout: str):
    import xti_layouts as layouts

    values = layouts.rows(width=8)
    trees = {
        "kohya": layouts.kohya(values),
        "numbered": layouts.numbered(values),
        "promptplusplus": layouts.promptplusplus(layouts.rows(vectors=2, width=8), values[0, 0]),
        "ed_lora": layouts.ed_lora({"<cat1>": values[:, 0].clone(), "<cat2>": values[:, 0].clone()}),
        "sdxl": layouts.sdxl(layouts.rows(11, width=8), layouts.rows(11, width=12)),
        "inversion": {
            "string_to_param": {"*": values[0].clone()},
            "string_to_token": {"*": 265},
            "name": "x",
            "step": 7,
        },
    }

    def read(path):
        with contextlib.suppress(ValueError):  # asked for one word, with the common token: another way through the file
            xti.load(path, "<cat>", True)
        xti.load(path)

    return trees[layout], read


CLIP_CONFIG = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 7, "vocab_size": 60, "width": 8, "heads": 1, "layers": 1},
}


@functools.cache
def _clip_architecture() -> None:
    import open_clip

    folder = Path(tempfile.mkdtemp(prefix="guidance-lab-fuzz-"))
    (folder / "fuzzed-clip.json").write_text(json.dumps(CLIP_CONFIG))
    open_clip.add_model_config(folder / "fuzzed-clip.json")


def _clip(transformers_names: bool):
    import open_clip

    from guidance_lab.nodes.clip_guidance.clip_formats import as_open_clip, read_weights
    from guidance_lab.nodes.clip_guidance.clip_release import release
    from guidance_lab.nodes.clip_guidance.clip_weights import architecture, build

    _clip_architecture()
    valid = _random({key: value.shape for key, value in open_clip.CLIP(**CLIP_CONFIG).state_dict().items()})
    if transformers_names:
        import transformers

        sizes = {"intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
        config = transformers.CLIPConfig(
            text_config={**sizes, "vocab_size": 60, "hidden_size": 8, "max_position_embeddings": 7},
            vision_config={**sizes, "intermediate_size": 64, "hidden_size": 16, "image_size": 16, "patch_size": 8},
            projection_dim=8,
        )
        valid = _random({key: value.shape for key, value in transformers.CLIPModel(config).state_dict().items()})

    def read(path):
        weights = as_open_clip(read_weights(path))
        names = architecture({key: tuple(value.shape) for key, value in weights.items()})
        found = release(names, path, weights)
        build(found.architecture, weights, found.quick_gelu)

    return valid, read


def _text_tower():
    from guidance_lab.nodes.galip.text_tower import text_tower

    with torch.device("meta"):
        shapes = {key: value.shape for key, value in TextEncoder(64, 1, 7, 49408, 64).state_dict().items()}
    valid = {**_random(shapes), "logit_scale": torch.tensor(4.6)}

    def read(tree):
        text_tower(tensors_of(tree, whole=True))

    return valid, read


def _glide():
    import tiny_glide

    from guidance_lab import glide

    def read(tree):
        glide.load(tensors_of(tree))

    return tiny_glide.tensors("base-inpaint"), read


READERS = {
    "galip": _galip,
    "noised_clip": _noised,
    "clip": functools.partial(_clip, False),
    "clip_transformers": functools.partial(_clip, True),
    **{f"xti_{name}": functools.partial(_xti, name)
       for name in ("kohya", "numbered", "promptplusplus", "ed_lora", "sdxl", "inversion")},
}  # fmt: skip
# Their token tables are too large to write them thousands of times.
IN_MEMORY = {"text_tower": _text_tower, "glide": _glide}
FEW = tuple(name for name in READERS if name.startswith("xti"))  # so few tensors that pickles always have all of them


def prepared(name: str) -> tuple[fuzz_cases.Cases, Callable]:
    """The cases of a reader, and the reader: a function of a path, or of a tree."""
    valid, read = {**READERS, **IN_MEMORY}[name]()
    return fuzz_cases.Cases(valid, name in FEW), read


def source(cases: fuzz_cases.Cases, name: str, number: int, folder: Path) -> object:
    """What case `number` gives to the reader: a tree, or the path of a file in `folder`."""
    if name in IN_MEMORY:
        return cases.tree(number)
    ending, data = cases.file(number)
    path = folder / f"file{ending}"
    path.write_bytes(data)
    return path


# Line breaks, control characters, signs that turn the direction of writing, halves of surrogate pairs.
UNWRITTEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class RawError(AssertionError):
    """A reader failed with something else than one sentence."""


def attempt(read, source) -> bool:
    """True when `read` took it, False when it refused it in one sentence. RawError for anything else."""
    try:
        read(source)
        return True
    except ValueError as error:
        text = str(error)
        if UNWRITTEN.search(text) or len(text) > 600 or not text.strip() or "Traceback" in text:
            raise RawError(f"{type(error).__name__}: {text[:300]}") from error
        return False
    except Exception as error:  # the very thing that is looked for
        raise RawError(f"{type(error).__name__}: {str(error)[:300]}") from error
