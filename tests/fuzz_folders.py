"""Folders of classifiers, matchers and captioners whose files are wrong in their structure: one for each number, as in
`fuzz_cases`. A case changes one to three files of a good folder, which is put right again after it.
"""

import collections
import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import fuzz_cases
import timm
import tiny_captioner
import tiny_scorers
import torch
import transformers
from safetensors.torch import load_file, save_file

from guidance_lab.nodes.captions.captioner_loader import read_captioner
from guidance_lab.nodes.clip_guidance.clip_release import _config_beside
from guidance_lab.nodes.clip_guidance.objectives.classifier_folder import read_classifier
from guidance_lab.nodes.clip_guidance.objectives.image_text_match import read_matcher
from guidance_lab.nodes.host.model_folders import weights_of

_DEEP: object = "x"
for _ in range(20):
    _DEEP = {"a": [_DEEP]}
# What is put where a value of a JSON file belongs.
VALUES = {
    "null": None, "true": True, "false": False, "zero": 0, "negative": -1, "one": 1, "seven": 7, "billion": 10**9,
    "large": 2**20, "beyond 64 bits": 10**30, "fraction": 0.5, "nan": float("nan"), "infinite": float("inf"),
    "empty text": "", "text": "x", "two lines": "a\nb", "surrogate": "\ud800", "path up": "../../x",
    "path": "/etc/passwd", "address": "https://host/x", "repository": "someone/something", "long text": "x" * 5000,
    "empty list": [], "list": [1, 2, 3], "nulls": [None] * 4, "long list": [1] * 1000, "lists": [[1]],
    "empty dict": {}, "dict": {"a": 1}, "numbered": {"0": "a", "x": 3}, "deep": _DEEP, "dtype": "float16",
    "torch dtype": "torch.int8", "act": "gelu_new", "class": "BlipForConditionalGeneration", "model": "bert",
}  # fmt: skip
# Names that transformers, timm, open_clip or the tokenizers look for.
KEYS = (
    "auto_map", "custom_generate", "quantization_config", "attn_implementation", "_attn_implementation", "torch_dtype",
    "dtype", "architectures", "model_type", "is_encoder_decoder", "num_labels", "id2label", "label2id", "problem_type",
    "pruned_heads", "hidden_act", "hidden_size", "num_hidden_layers", "image_size", "patch_size", "num_channels",
    "tokenizer_class", "image_processor_type", "feature_extractor_type", "processor_class", "added_tokens_decoder",
    "special_tokens_map_file", "vocab_file", "chat_template", "model_max_length", "extra_special_tokens", "size",
    "crop_size", "image_mean", "image_std", "do_normalize", "do_resize", "resample", "rescale_factor", "unk_token",
    "additional_special_tokens", "sub_processors", "text_config", "vision_config", "num_query_tokens", "architecture",
    "model_args", "pretrained_cfg", "label_names", "label_descriptions", "num_classes", "model_cfg", "preprocess_cfg",
    "quick_gelu", "mean", "std", "weight_map", "metadata", "max_length", "use_fast", "backend", "tie_word_embeddings",
    "", "a\nb",
)  # fmt: skip
CHANGES = ("value", "value", "value", "value", "drop", "rename", "add", "add", "swap", "wrap")
TEXTS = ("gone", "empty", "cut", "bytes", "another file", "utf-16", "mark", "not utf-8", "brackets", "list", "null",
         "folder")  # fmt: skip


def changed(random: Random, content: object, kinds: collections.Counter) -> object:
    """A copy of a JSON value with one to three things changed."""
    content = copy.deepcopy(content)
    for _ in range(random.randint(1, 3)):
        places = list(_places(content))
        change = random.choice(CHANGES)
        kinds[f"json: {change}"] += 1
        if change == "wrap" or not places:
            content = random.choice(([content], {"a": content}, {random.choice(KEYS): content}))
            continue
        holder, key = random.choice(places)
        if change == "value":
            kind = random.choice(list(VALUES))
            kinds[f"value: {kind}"] += 1
            holder[key] = copy.deepcopy(VALUES[kind])
        elif change == "drop":
            del holder[key]
        elif change == "swap":
            other, name = random.choice(places)
            holder[key], other[name] = copy.deepcopy(other[name]), copy.deepcopy(holder[key])
        elif isinstance(holder, dict):
            value = holder.pop(key) if change == "rename" else copy.deepcopy(random.choice(list(VALUES.values())))
            holder[random.choice(KEYS)] = value
        else:
            holder.insert(key, copy.deepcopy(random.choice(list(VALUES.values()))))
    return content


def _places(content: object, depth: int = 8):
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, item in list(entries)[:200]:
        yield content, key
        if depth:
            yield from _places(item, depth - 1)


class Cases:
    """Cases of one reader of folders. good: a folder that it takes. extra: files that a case may put there beside."""

    def __init__(self, good: Path, extra: dict[str, bytes] | None = None):
        self.good, self.kinds = good, collections.Counter()
        self.files = {path.name: path.read_bytes() for path in sorted(good.iterdir()) if path.is_file()}
        self.extra = extra or {}
        self.contents = {name: json.loads(data) for name, data in self.files.items() if name.endswith(".json")}
        self.weights = {
            name: fuzz_cases.Cases(load_file(good / name)) for name in self.files if name.endswith(".safetensors")
        }
        self.left: tuple[Path, list[str]] | None = None  # the folder, and the files that the last case changed

    def folder(self, number: int, place: Path) -> Path:
        """The folder of case `number`, in `place`, which no other reader uses."""
        folder = place / self.good.name
        if self.left is None:
            shutil.copytree(self.good, folder)
        else:
            self.put_right()
        random, names = Random(number), [*self.files, *self.extra]
        light = [name for name in names if not name.endswith((".safetensors", ".txt"))]
        chosen = {random.choice(light if random.random() < 0.8 else names) for _ in range(random.choice((1, 1, 2, 3)))}
        self.left = folder, sorted(chosen)
        for name in self.left[1]:
            self._change(random, folder / name)
        return folder

    def put_right(self) -> None:
        """Undoes the last case."""
        folder, names = self.left
        for name in names:
            path = folder / name
            if path.is_dir():
                path.rmdir()
            path.unlink(missing_ok=True)
            if name in self.files:
                path.write_bytes(self.files[name])

    def _change(self, random: Random, path: Path) -> None:
        data = self.files.get(path.name) or self.extra[path.name]
        if path.name in self.weights and random.random() < 0.8:
            cases = self.weights[path.name]
            path.write_bytes(cases.changed_safetensors(random))
            self.kinds["weights"] += 1
        elif path.name in self.contents and random.random() < 0.85:
            text = json.dumps(changed(random, self.contents[path.name], self.kinds))
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
        else:
            self._damage(random, path, data)

    def _damage(self, random: Random, path: Path, data: bytes) -> None:
        kind = random.choice(TEXTS)
        self.kinds[f"file: {kind}"] += 1
        at = random.randrange(len(data) or 1)
        damaged = {
            "empty": b"", "cut": data[:at], "bytes": data[:at] + random.randbytes(4) + data[at + 4 :],
            "another file": self.files[random.choice(list(self.files))],
            "utf-16": data[:20_000].decode("latin-1").encode("utf-16"),
            "mark": b"\xef\xbb\xbf" + data, "not utf-8": data[:at] + b"\xff\xfe\xc3" + data[at:],
            "brackets": random.choice((b"[" * 100_000, b'{"a":' * 100_000)), "list": b"[1, 2]", "null": b"null",
        }  # fmt: skip
        path.unlink(missing_ok=True)
        if kind == "folder":
            path.mkdir()
        elif kind != "gone":
            path.write_bytes(damaged[kind])


# ---- readers: (cases, function of a folder) ----
def _timm(place: Path):
    own = {"img_size": 32, "depth": 2}
    folder = place / "classifier"
    folder.mkdir()
    with torch.random.fork_rng(devices=[]):
        save_file(timm.create_model("test_vit", num_classes=5, **own).state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "test_vit", "num_classes": 5, "num_features": 64, "model_args": own, "global_pool": "token",
        "label_names": ["a", "b", "c", "d", "e"], "label_descriptions": {"a": "apple"},
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 5},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    tags = b"tag_id,name,category,count\n1,a,0,3\n2,b,0,3\n3,c,0,3\n4,d,0,3\n5,e,4,3\n"
    return Cases(folder, {"selected_tags.csv": tags}), read_classifier


def _vit(place: Path):
    folder = place / "vit"
    config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                                    image_size=16, patch_size=8, id2label={0: "cat", 1: "dog"})  # fmt: skip
    tiny_scorers.randomized(transformers.ViTForImageClassification(config)).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return Cases(folder), read_classifier


def _blip(place: Path):
    return Cases(tiny_captioner.blip(place / "blip")), read_captioner


def _git(place: Path):
    return Cases(tiny_captioner.git(place / "git")), read_captioner


def _matcher(place: Path):
    folder = tiny_captioner.blip(place / "itm", network_class=transformers.BlipForImageTextRetrieval)
    return Cases(folder), lambda path: read_matcher(path, ["a red ball"])


def _clip_config(place: Path):
    folder = place / "clip"
    folder.mkdir()
    config = {
        "model_cfg": {"embed_dim": 8, "quick_gelu": True, "vision_cfg": {"layers": 2}, "text_cfg": {"width": 8}},
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return Cases(folder), lambda path: _config_beside(path / "open_clip_model.safetensors")


def _index(place: Path):
    folder = place / "parts"
    folder.mkdir()
    names = {"a.safetensors": ("x", "y"), "b.safetensors": ("z",)}
    for file, keys in names.items():
        save_file({key: torch.ones(2, 3) for key in keys}, folder / file)
    index = {"metadata": {"total_size": 72}, "weight_map": {key: file for file, keys in names.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return Cases(folder), weights_of


READERS: dict[str, Callable] = {
    "timm_folder": _timm, "classifier_folder": _vit, "captioner_blip": _blip, "captioner_git": _git,
    "matcher_folder": _matcher, "open_clip_config": _clip_config, "weights_index": _index,
}  # fmt: skip
