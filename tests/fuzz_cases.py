"""Files of weights that are wrong in their structure, one for each number: case N of a reader is always the same bytes.

The numbers feed Python's own random generator, and safetensors files are written here by hand, because both hypothesis
and saving a whole network anew took longer than the readers themselves. `Cases.kinds` counts what was changed.
"""

import collections
import functools
import io
import json
import math
import struct
import zipfile
from random import Random

import torch

# ---- what is put where a tensor belongs ----
ODD = {
    "sparse": lambda t: torch.eye(3).to_sparse(),
    "csr": lambda t: torch.eye(3).to_sparse_csr(),
    "fp8": lambda t: t.to(torch.float8_e4m3fn),
    "quantised": lambda t: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "meta": lambda t: t.to("meta"),
    "complex": lambda t: t.to(torch.complex64),
    "int64": lambda t: t.to(torch.int64),
    "bool": lambda t: t > 0,
    "uint16": lambda t: torch.zeros(3, dtype=torch.uint16),
    "double": lambda t: t.double(),
    "half": lambda t: t.half(),
    "scalar": lambda t: torch.tensor(1.0),
    "empty": lambda t: t.new_zeros(0),
    "no rows": lambda t: t[:0],
    "nan": lambda t: torch.full_like(t, torch.nan),
    "infinite": lambda t: torch.full_like(t, torch.inf),
    "more dimensions": lambda t: t[None, None],
    "nine dimensions": lambda t: t.reshape((1,) * 9 + tuple(t.shape)),
    "flat": lambda t: t.flatten(),
    "turned": lambda t: t.T.contiguous() if t.ndim == 2 else t,
    "turned view": lambda t: t.T if t.ndim == 2 else t,
    "wider": lambda t: torch.cat([t, t], -1) if t.ndim else t,
    "narrower": lambda t: t[..., :3].clone() if t.ndim else t,
    "longer": lambda t: torch.cat([t, t]) if t.ndim else t,
    "expanded": lambda t: torch.ones(1).expand(t.shape if t.numel() > 1 else (9,)),
    "huge expanded": lambda t: torch.ones(1).expand(10**12),
    "parameter": lambda t: torch.nn.Parameter(t),
    "parameters": lambda t: torch.nn.ParameterDict({"*": t}),
    "list": lambda t: [t, t],
    "tuple": lambda t: (t, 3),
    "dict": lambda t: {"a": t},
    "empty dict": lambda t: {},
    "deep": lambda t: functools.reduce(lambda inner, _: [inner], range(40), t),
    "text": lambda t: "text",
    "none": lambda t: None,
    "number": lambda t: 10**30,
    "float": lambda t: 1e300,
    "bytes": lambda t: b"\xff\x00",
    "size": lambda t: torch.Size([2, 3]),
    "dtype": lambda t: torch.float16,
    "device": lambda t: torch.device("cuda:7"),
    "set": lambda t: {1, 2},
    "class": lambda t: torch.nn.LayerNorm(2),
    "array": lambda t: t.float().numpy(),
}
FOR_ALL = ("half", "scalar", "more dimensions", "int64", "no rows", "wider", "turned")
TREES = ("drop", "rename", "add", "odd", "odd", "odd", "swap", "wrap", "keep one", "all")
WRAPPERS = ("model", "netG", "state_dict", "params", "string_to_param", "x")
_NAMES = [
    "", "module.", "x" * 600, "1" * 5000, "a.b.c", "<x-1-1>", "-0", "\u0663", "state_dict", "model", "params",
    "clip_l", "IN01", "MID", "*", "<a1>", "<a-99-99>", "MID.t5", ".clip_l", "blocks.block_x.ln.g", "visual.",
    "token_embedding.weight", "transformer.resblocks.x.ln_1.weight", "__metadata__",
]  # fmt: skip
_ALPHABETS = ((32, 126), (0, 31), (0x80, 0x24F), (0x300, 0x36F), (0x660, 0x669), (0x2028, 0x202E), (0xD800, 0xDFFF),
              (0x4E00, 0x9FFF), (0x1F600, 0x1F64F))  # fmt: skip


def text(random: Random, longest: int = 12) -> str:
    """Letters, control characters, marks, digits of other scripts, line separators, halves of surrogate pairs."""
    alphabet = random.choice(_ALPHABETS)
    return "".join(chr(random.randint(*alphabet)) for _ in range(random.randint(0, longest)))


def whole(random: Random) -> int:
    return random.choice(
        (0, 1, -1, random.randint(-300, 300), 2 ** random.randint(0, 80), -(2 ** random.randint(0, 80)))
    )


def key(random: Random) -> object:
    """A name, or what is none."""
    kinds = (lambda: text(random), lambda: random.choice(_NAMES), lambda: whole(random), lambda: None, lambda: True)
    return random.choices(kinds, (4, 6, 2, 1, 1))[0]()


def _numbers(random: Random) -> object:
    some = [random.randint(-2, random.choice((3, 12, 10**9))) for _ in range(random.randint(0, 12))]
    return random.choice((some, None, random.randint(-1, 10**9)))


def _layer_table(random: Random) -> str:
    odd = ("{", "[" * 50_000, "null", '{"image_model": "wan2.1", "num_layers": 1000}', "1" * 6000)
    if random.random() < 0.3:
        return random.choice(odd)
    floats = [random.choice((0.5, math.nan, math.inf, 1e300)) for _ in range(random.randint(0, 3))]
    recipe = {
        "transformer_depth": _numbers(random),
        "transformer_depth_middle": random.choice((None, random.randint(-1, 10**9), 1)),
        "transformer_depth_output": random.choice((_numbers(random), text(random, 3), floats)),
        "num_res_blocks": _numbers(random),
        "context_dim": random.choice((whole(random), None, 768)),
        "per_block": random.choice((True, False, text(random, 3))),
    }
    return json.dumps(recipe)


METADATA = {
    "format": lambda random: random.choice(("guidance-lab-xti-1", "kohya-xti", "pt", "")),
    "sizes": lambda random: random.choice(
        ("8,16,32", "8,16", "9" * 5000, "0,0,0", "99999,99999,99999", "-1,2,3", "\u0663,1,2")
    ),
    "steps": lambda random: random.choice(("12", "12.5", "9" * 5000, "-3", "\u0663", "nan")),
    "layer_table": _layer_table,
}


# ---- safetensors, written by hand ----
_CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.bool: "BOOL", torch.uint8: "U8", torch.uint16: "U16", torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
}  # fmt: skip
ENTRIES = {
    "shape huge": {"shape": [10**15, 10**15]}, "shape negative": {"shape": [-1, 2]}, "shape float": {"shape": [2.0]},
    "shape text": {"shape": "2,3"}, "shape nested": {"shape": [[2]]}, "shape none": {"shape": None},
    "shape bool": {"shape": [True]}, "shape long": {"shape": [1] * 9}, "dtype unknown": {"dtype": "F31"},
    "dtype number": {"dtype": 5}, "dtype packed": {"dtype": "F4"}, "dtype long": {"dtype": "x" * 9999},
    "offsets reversed": {"data_offsets": [8, 0]}, "offsets one": {"data_offsets": [0]},
    "offsets beyond": {"data_offsets": [0, 2**40]}, "offsets huge": {"data_offsets": [0, 2**70]},
    "offsets first": {"data_offsets": [0, 4], "shape": [1]}, "offsets text": {"data_offsets": ["0", "4"]},
    "entry list": [1], "entry text": "x", "entry none": None, "entry number": 1, "entry empty": {},
    "entry more": {"extra": {"a": [1, 2]}},
}  # fmt: skip
HEADERS = ("length", "not an object", "not json", "padded", "metadata odd", "doubled name", "number names", "gap")


def stored(tensor: torch.Tensor) -> tuple[str, list[int], bytes] | None:
    """dtype, shape and bytes of a tensor as safetensors has them; None when it cannot hold this one."""
    if tensor.is_meta or tensor.is_quantized or tensor.layout is not torch.strided or tensor.dtype not in _CODES:
        return None
    if tensor.numel() > 10**6:
        return None
    return (
        _CODES[tensor.dtype],
        list(tensor.shape),
        bytes(tensor.detach().flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8).numpy()),
    )


def safetensors(entries: dict[str, tuple], metadata: dict | None = None, odd: dict | None = None) -> bytes:
    """A file of these entries (of `stored`). odd: fields by name, in place of the right ones."""
    header, parts, at = {} if metadata is None else {"__metadata__": metadata}, [], 0
    for name, (code, shape, data) in entries.items():
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [at, at + len(data)]}
        parts.append(data)
        at += len(data)
    for name, change in (odd or {}).items():
        header[name] = {**header[name], **change} if isinstance(change, dict) and change else change
    return _with_header(json.dumps(header).encode(), b"".join(parts))


def _with_header(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


class Cases:
    """Cases of one reader. valid: a good tree of it. `kinds`: how often each kind of change was made."""

    def __init__(self, valid: dict, whole_trees: bool = False):
        self.valid, self.whole_trees = valid, whole_trees
        self.kinds: collections.Counter = collections.Counter()
        self.ready = {id(value): stored(value) for value in valid.values() if type(value) is torch.Tensor}
        few = {name: valid[name] for name in list(valid)[:6]}
        self.good = {kind: _saved(few, kind) for kind in ("zip", "legacy")}
        self.good["safetensors"] = self._safetensors(few, None, None)

    def tree(self, number: int) -> dict:
        """A dictionary of weights with one to four things changed."""
        return self._tree(Random(number))

    def file(self, number: int) -> tuple[str, bytes]:
        """(ending, bytes) of a file with a changed tree, a changed container, or both."""
        random = Random(number)
        kind = random.choices(("safetensors", "zip", "legacy"), (12, 6, 2))[0]
        self.kinds[f"file: {kind}"] += 1
        if random.random() < 0.15:
            data = self.good[kind]
            data = self._header(random, data) if kind == "safetensors" and random.random() < 0.4 else data
            data = self._container(random, data)
        elif kind == "safetensors":
            data = self.changed_safetensors(random)
        else:
            # Reading a pickle takes a long time for each tensor in it, so most of these have few.
            tree = self._tree(random, None if self.whole_trees or random.random() < 0.06 else random.randint(1, 8))
            try:
                data = _saved(tree, kind)
            except Exception:  # noqa: BLE001  pickle cannot hold what was drawn
                self.kinds["not written"] += 1
                data = b""
        if data and random.random() < 0.1:
            data = self._container(random, data)
        ending = ".safetensors" if kind == "safetensors" else ".pt"
        return (random.choice((".pt", ".safetensors")) if random.random() < 0.1 else ending), data

    def _tree(self, random: Random, most: int | None = None) -> dict:
        valid = self.valid
        if most is not None and most < len(valid):
            valid = {name: valid[name] for name in random.sample(list(valid), most)}
        tree = dict(valid)
        for _ in range(random.randint(1, 4)):
            change = random.choice(TREES)
            self.kinds[f"tree: {change}"] += 1
            names = list(tree) or ["x"]
            name = random.choice(names)
            value = tree.get(name)
            usable = type(value) is torch.Tensor and not value.is_meta and value.layout is torch.strided
            tensor = value if usable and not value.is_quantized else torch.ones(2, 3)
            if change == "drop":
                tree.pop(name, None)
            elif change in ("rename", "add"):
                tree[key(random)] = tree.pop(name, None) if change == "rename" else tensor
            elif change == "odd":
                tree[name] = self._odd(random.choice(list(ODD)), tensor)
            elif change == "all":
                kind = random.choice(FOR_ALL)
                tree = {
                    each: self._odd(kind, item) if type(item) is torch.Tensor else item for each, item in tree.items()
                }
            elif change == "swap":
                other = random.choice(names)
                tree[name], tree[other] = tree.get(other), tree.get(name)
            elif change == "wrap":
                tree = {random.choice(WRAPPERS): tree}
            else:
                tree = {name: tree.get(name)}
        return tree

    def _odd(self, kind: str, tensor: torch.Tensor) -> object:
        self.kinds[f"odd: {kind}"] += 1
        try:
            return ODD[kind](tensor)
        except (RuntimeError, TypeError, IndexError):  # this kind cannot be made of that tensor
            return None

    def _safetensors(self, tree: dict, metadata: dict | None, odd: dict | None) -> bytes:
        entries = {}
        for name, value in tree.items():
            if type(value) is torch.Tensor:
                entry = self.ready.get(id(value)) or stored(value)
                if entry is not None:
                    entries[str(name)] = entry
        return safetensors(entries, metadata, {name: odd[name] for name in odd or {} if name in entries})

    def changed_safetensors(self, random: Random) -> bytes:
        """A safetensors file of a changed tree."""
        tree = self._tree(random)
        metadata = {name: make(random) for name, make in METADATA.items() if random.random() < 0.4}
        self.kinds.update(f"metadata: {name}" for name in metadata)
        odd = None
        if random.random() < 0.15 and tree:
            kind = random.choice(list(ENTRIES))
            self.kinds[f"entry: {kind}"] += 1
            odd = {str(random.choice(list(tree))): ENTRIES[kind]}
        data = self._safetensors(tree, metadata or None, odd)
        return self._header(random, data) if random.random() < 0.06 else data

    def _header(self, random: Random, data: bytes) -> bytes:
        kind = random.choice(HEADERS)
        self.kinds[f"header: {kind}"] += 1
        length = struct.unpack("<Q", data[:8])[0]
        header, rest = data[8 : 8 + length], data[8 + length :]
        if kind == "length":
            other = random.choice((0, 1, length - 1, length + 1, len(data), 2**40, 2**63, 2**64 - 1))
            return struct.pack("<Q", other) + data[8:]
        if kind == "not an object":
            header = random.choice((b"[]", b"null", b"3", b'"x"', b"[" * 50_000, b'{"a":' * 50_000))
        elif kind == "not json":
            at = random.randrange(len(header))
            header = header[:at] + bytes([random.randrange(256)]) + header[at + 1 :]
        elif kind == "padded":
            header = random.choice((header + b" " * 9, b" " + header, header + b"\0", b"\xef\xbb\xbf" + header))
        elif kind == "metadata odd":
            values = (
                b'{"a": 1}',
                b"[]",
                b'"x"',
                b"null",
                b'{"a": {"b": "c"}}',
                b'{"sizes": null}',
                b'{"sizes": "\\ud800"}',
            )
            header = b'{"__metadata__": ' + random.choice(values) + b", " + header[1:]
        elif kind == "doubled name":
            header = header[:-1] + b", " + header[1:]
        elif kind == "number names":
            header = header.replace(b'"', b"", 2)
        else:
            rest = b"\0" * 8 + rest
        return _with_header(header, rest)

    def _container(self, random: Random, data: bytes) -> bytes:
        """The same file with its container changed: cut, overwritten, packed, members cut, doubled or renamed."""
        change = random.choice(("cut", "bytes", "zip", "zip", "append", "prepend", "insert"))
        if change == "zip" and data[:2] == b"PK":
            try:
                return self._repacked(random, data)
            except Exception:  # an earlier change left no zip that Python itself can read
                return data
        self.kinds[f"container: {change}"] += 1
        where = random.randrange(len(data))
        if change == "cut":
            return data[:where]
        if change == "append":
            return data + random.randbytes(random.randint(1, 64))
        if change == "prepend":
            return random.randbytes(random.randint(1, 16)) + data
        if change == "insert":
            return data[:where] + random.randbytes(random.randint(1, 8)) + data[where:]
        patch = random.randbytes(random.randint(1, 8))
        return data[:where] + patch + data[where + len(patch) :]

    def _repacked(self, random: Random, data: bytes) -> bytes:
        out = io.BytesIO()
        packed = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        what = random.choice(("same", "cut", "grow", "drop", "double", "rename", "pickle", "pickle"))
        self.kinds[f"zip: {what}{', packed' if packed else ''}"] += 1
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", packed) as new:
            names = old.namelist()
            chosen = random.choice(names)
            for name in names:
                content = old.read(name)
                if name == chosen and what == "drop":
                    continue
                if name == chosen and what in ("cut", "grow"):
                    content = content[: len(content) // 2] if what == "cut" else content + b"\0" * 64
                if name.endswith("data.pkl") and what == "pickle" and content:
                    at = random.randrange(len(content))
                    content = (
                        content[:at] + random.randbytes(random.randint(1, 6)) + content[at + random.randint(0, 6) :]
                    )
                new.writestr(name.upper() if name == chosen and what == "rename" else name, content)
                if name == chosen and what == "double":
                    new.writestr(name, content)
        return out.getvalue()


def _saved(tree: dict, kind: str) -> bytes:
    buffer = io.BytesIO()
    torch.save(tree, buffer, _use_new_zipfile_serialization=kind == "zip")
    return buffer.getvalue()
