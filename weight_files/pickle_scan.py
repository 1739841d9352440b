"""What the pickle inside a PyTorch file would make, told by reading its opcodes one by one. Nothing is executed.

`torch.load(weights_only=True)` runs no code, but it allocates whatever sizes a file asks for. So every storage and
tensor that the pickle describes is checked first: a small stack machine follows the opcodes that torch.save writes and
refuses all others.
"""

import math
import pickletools
import struct
from typing import NamedTuple

MAX_PICKLE = 32 * 2**20  # bytes; that of the largest CLIP has 0.3 million
MAX_OPCODES = 600_000  # a tensor takes about 45
MAX_TENSORS = 20_000
MAX_ITEMS = 64  # of a tuple whose items matter

ITEM_BYTES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2,
    "LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip
_CODE = "contains Python code or objects, which are never run: ask for a .safetensors file"
_DAMAGED = "is damaged or not a PyTorch file"
_OTHER_TENSORS = {
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_sparse_csr_tensor": "a sparse tensor",
    "_rebuild_qtensor": "a quantised tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor without data (meta)",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_tensor_v3": "a tensor of 8 bits or of another unusual number format",
    "_rebuild_wrapper_subclass": "a tensor of a special class",
    "_rebuild_device_tensor_from_numpy": "a tensor of a special device",
}
_CONSTANTS = {"BINUNICODE", "SHORT_BINSTRING", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"}
_SIMPLE = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class Global(NamedTuple):
    """A name that the pickle would import."""

    module: str
    name: str


class Storage(NamedTuple):
    """Numbers in a row: where they lie in the file, how many, bytes of one."""

    key: str
    length: int
    item_bytes: int


class Made(NamedTuple):
    """Something that the pickle would make: `kind` is list, dict, set, tensor, OrderedDict, ParameterDict, or other."""

    kind: str


class Scan(NamedTuple):
    """`storages`: key -> Storage. `tensor_bytes`: of all tensors, each counted in full. `classes`: names of classes
    that torch.load has to be allowed.
    """

    storages: dict[str, Storage]
    tensor_bytes: int
    classes: set[str]


_MARK = Made("mark")
_ALLOWED = {
    Global("collections", "OrderedDict"), Global("torch", "Size"), Global("torch", "device"),
    Global("torch._utils", "_rebuild_tensor"), Global("torch._utils", "_rebuild_tensor_v2"),
    Global("torch._utils", "_rebuild_parameter"), Global("torch.nn.modules.container", "ParameterDict"),
    Global("__builtin__", "set"), Global("builtins", "set"),
    *(Global("torch", name) for name in ITEM_BYTES),
    *(Global("torch", name) for name in ("float16", "bfloat16", "float32", "float64", "int32", "int64", "bool")),
}  # fmt: skip


class Machine:
    """Follows one pickle after the other of a file; `scan()` is what they described together."""

    def __init__(self):
        self.storages: dict[str, Storage] = {}
        self.tensor_bytes = self.tensors = self.opcodes = 0
        self.classes: set[str] = set()

    def scan(self) -> Scan:
        return Scan(self.storages, self.tensor_bytes, self.classes)

    def follow(self, source) -> None:
        """One pickle, from bytes or from a binary file, which is left behind its end. ValueError says, without a
        subject, what is wrong.
        """
        self.stack: list = []
        self.memo: dict = {}
        try:
            for opcode, argument, _ in pickletools.genops(source):
                self.opcodes += 1
                if self.opcodes > MAX_OPCODES:
                    raise ValueError("is too complicated to be a file of weights")
                self._step(opcode.name, argument)
        except (IndexError, KeyError, TypeError, OverflowError, struct.error, RecursionError, MemoryError):
            raise ValueError(_DAMAGED) from None
        except ValueError as error:
            # pickletools has errors of its own, of many words; ours begin with a verb.
            own = str(error).startswith(("is ", "contains ", "holds "))
            raise ValueError(str(error) if own else _DAMAGED) from None

    def _step(self, name: str, argument) -> None:
        if name in _CONSTANTS:
            self.stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in _SIMPLE:
            self.stack.append(_SIMPLE[name])
        elif name == "MARK":
            self.stack.append(_MARK)
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET"):
            self.stack.append(Made(name[6:].lower()))
        elif name == "TUPLE":
            self._tuple(self._to_mark())
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[5])
            if len(self.stack) < count:
                raise IndexError
            items = self.stack[-count:]
            del self.stack[-count:]
            self._tuple(items)
        elif name in ("APPENDS", "SETITEMS"):
            self._to_mark()
            self._container("list" if name == "APPENDS" else "dict")
        elif name in ("APPEND", "SETITEM"):
            del self.stack[-1 if name == "APPEND" else -2 :]
            self._container("list" if name == "APPEND" else "dict")
        elif name == "GLOBAL":
            self.stack.append(self._global(argument))
        elif name == "BINPERSID":
            self.stack.append(self._storage(self.stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, what = self.stack.pop(), self.stack.pop()
            self.stack.append(self._call(what, arguments, name))
        elif name == "BUILD":
            self.stack.pop()
            if self.stack[-1] not in (Made("OrderedDict"), Made("ParameterDict")):
                raise ValueError(_CODE)
        elif name == "STOP":
            self.stack.pop()
        elif name != "PROTO":
            raise ValueError(_CODE)

    def _to_mark(self) -> list:
        items = []
        while self.stack[-1] is not _MARK:
            items.append(self.stack.pop())
        self.stack.pop()
        return items[::-1]

    def _tuple(self, items: list) -> None:
        """Tuples of numbers and names are kept as they are; other ones, which could nest without end, are not."""
        small = len(items) <= MAX_ITEMS and all(_single(i) or all(map(_single, i)) for i in items)
        self.stack.append(tuple(items) if small else Made("other"))

    def _container(self, kind: str) -> None:
        wanted = ("list",) if kind == "list" else ("dict", "OrderedDict")
        if not isinstance(self.stack[-1], Made) or self.stack[-1].kind not in wanted:
            raise ValueError(_CODE)

    def _global(self, argument: str) -> Global:
        found = Global(*argument.split(" ", 1))
        if found.module == "torch._utils" and found.name in _OTHER_TENSORS:
            raise ValueError(f"holds {_OTHER_TENSORS[found.name]}, and only plain dense ones are read")
        if found.module == "torch" and found.name.endswith("Storage") and found.name not in ITEM_BYTES:
            raise ValueError(f"holds numbers of the kind {found.name[:40]}, and only floats and whole ones are read")
        if found not in _ALLOWED:
            raise ValueError(_CODE)
        return found

    def _storage(self, described) -> Storage:
        if not isinstance(described, tuple) or len(described) not in (5, 6) or described[0] != "storage":
            raise ValueError(_CODE)
        _, kind, key, _, count = described[:5]
        if not isinstance(kind, Global) or kind.name not in ITEM_BYTES:
            raise ValueError(_DAMAGED)
        if not isinstance(key, str) or not _whole(count) or (len(described) == 6 and described[5] is not None):
            raise ValueError(_DAMAGED)
        storage = Storage(key, count, ITEM_BYTES[kind.name])
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError("is damaged: it gives one block of numbers two sizes")
        return storage

    def _call(self, what, arguments, how: str) -> Made:
        if not isinstance(what, Global) or not (isinstance(arguments, tuple) or arguments == Made("other")):
            raise ValueError(_CODE)
        if what.name == "ParameterDict":
            if how != "NEWOBJ" or arguments != ():
                raise ValueError(_CODE)
            self.classes.add("ParameterDict")
            return Made("ParameterDict")
        if how == "NEWOBJ" and what.name != "OrderedDict":
            raise ValueError(_CODE)
        if what.name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            self._tensor(arguments)
            return Made("tensor")
        if what.name == "_rebuild_parameter":
            if not isinstance(arguments, tuple) or arguments[0] != Made("tensor"):
                raise ValueError(_DAMAGED)
            return Made("tensor")
        if what.name in ("OrderedDict", "Size", "device", "set"):
            return Made("OrderedDict" if what.name == "OrderedDict" else "other")
        raise ValueError(_CODE)

    def _tensor(self, arguments) -> None:
        storage, offset, size, stride = arguments[:4] if isinstance(arguments, tuple) else (None,) * 4
        if not isinstance(storage, Storage) or not _whole(offset) or not _wholes(size) or not _wholes(stride):
            raise ValueError(_DAMAGED)
        if len(arguments) > 6 or len(size) != len(stride):
            raise ValueError("holds a tensor with attributes, and only plain dense ones are read")
        if len(size) > 8:
            raise ValueError(f"holds a tensor of {len(size)} dimensions, and weights have at most 8")
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        if count and last >= storage.length:
            raise ValueError("is damaged: a tensor reaches beyond the numbers that are there")
        if count > storage.length:
            raise ValueError(f"holds a tensor of {count:,} numbers that are only {storage.length:,} repeated ones")
        self.tensors += 1
        self.tensor_bytes += count * storage.item_bytes
        if self.tensors > MAX_TENSORS:
            raise ValueError(f"holds more than {MAX_TENSORS:,} tensors, which no file of weights does")


_NAMED = (Global, Storage, Made)


def _single(item) -> bool:
    return not isinstance(item, tuple) or isinstance(item, _NAMED)


def _whole(value) -> bool:
    return type(value) is int and 0 <= value < 2**50


def _wholes(values) -> bool:
    return isinstance(values, tuple) and all(_whole(value) for value in values)
