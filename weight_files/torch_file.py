"""PyTorch files (.pt, .pth, .bin, .ckpt): their container is checked, then torch.load reads them with weights_only."""

import struct
import zipfile
from pathlib import Path

import torch

from .pickle_scan import MAX_PICKLE, Machine, Scan

_MAX_DIRECTORY = 4 * 2**20  # bytes of a zip's list of members: 40,000 of them


def load(path: Path) -> object:
    """Whatever the file holds, on the CPU. Its sizes have been checked against the file's, so that reading takes no
    more memory than the file is large. ValueError says, without a subject, what is wrong.
    """
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6):
        raise ValueError(
            f"cannot be read safely with torch {torch.__version__} (CVE-2025-32434): update torch to 2.6 or newer, or "
            f"use a .safetensors file"
        )
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(4)
    if first == b"PK\x03\x04":
        zipped, scan = True, _scan_zip(path, size)
    elif first[:1] == b"\x80":
        zipped, scan = False, _scan_stream(path, size)
    else:
        raise ValueError("is damaged or not a PyTorch file")
    # Weights that are tied share numbers, so a little more than the file holds is no bomb.
    if scan.tensor_bytes > 1.5 * size + 2**24:
        raise ValueError(f"holds tensors of {scan.tensor_bytes:,} bytes in a file of {size:,}: numbers are repeated")
    allowed: list = [torch.nn.ParameterDict] if scan.classes else []  # of the first textual inversions
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipped)
    except Exception:  # whatever a damaged file makes of torch.load
        raise ValueError("is damaged or not a PyTorch file") from None


def _scan_zip(path: Path, size: int) -> Scan:
    _check_directory(path, size)
    try:
        with zipfile.ZipFile(path) as archive:
            members: dict[str, zipfile.ZipInfo] = {}
            root = archive.infolist()[0].filename.partition("/")[0]
            if f"{root}/constants.pkl" in archive.namelist():
                raise ValueError(
                    "is a TorchScript archive (OpenAI's original download is one), which is code and never run: use "
                    "the same model as .safetensors"
                )
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
                    raise ValueError("is packed, which torch.save never does: unpack it, or use a .safetensors file")
                if members.setdefault(member.filename.lower(), member) is not member:
                    raise ValueError("is damaged: two of its parts have one name")
            if sum(member.file_size for member in members.values()) > size:
                raise ValueError("is damaged: its parts are larger than the file")
            pickled = members[f"{root}/data.pkl".lower()]
            if pickled.file_size > MAX_PICKLE:
                raise ValueError("is too complicated to be a file of weights")
            machine = Machine()
            machine.follow(archive.read(pickled))
    except (zipfile.BadZipFile, KeyError, IndexError, OSError, EOFError, NotImplementedError, RuntimeError):
        raise ValueError("is damaged or not a PyTorch file") from None
    scan = machine.scan()
    for storage in scan.storages.values():
        numbers = members.get(f"{root}/data/{storage.key}".lower())
        if numbers is None or numbers.file_size != storage.length * storage.item_bytes:
            raise ValueError("is damaged: a part of its numbers is cut off")
    return scan


def _check_directory(path: Path, size: int) -> None:
    """The end of a zip as torch.save writes it: nothing after it, and a list of members that can be read quickly."""
    with path.open("rb") as file:
        file.seek(max(0, size - 22))
        end = file.read(22)
        if end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
            raise ValueError("is damaged or not a PyTorch file")
        length, start = struct.unpack("<II", end[12:20])
        if 0xFFFFFFFF in (length, start) or end[10:12] == b"\xff\xff":  # zip64: the real numbers are in a larger record
            file.seek(max(0, size - 22 - 20 - 56))
            record = file.read(56)
            if record[:4] != b"PK\x06\x06":
                raise ValueError("is damaged or not a PyTorch file")
            length, start = struct.unpack("<QQ", record[40:56])
    if length > _MAX_DIRECTORY:
        raise ValueError("is too complicated to be a file of weights")
    if start + length > size:
        raise ValueError("is damaged or not a PyTorch file")


def _scan_stream(path: Path, size: int) -> Scan:
    """A file of before PyTorch 1.6: three pickles of the version, one of the content, one of keys, then the numbers."""
    machine = Machine()
    with path.open("rb") as file:
        for _ in range(5):
            machine.follow(_Bounded(file))
            if file.tell() >= size:
                break
    scan = machine.scan()
    if sum(storage.length * storage.item_bytes for storage in scan.storages.values()) > size:
        raise ValueError("is damaged: a part of its numbers is cut off")
    return scan


class _Bounded:
    """A binary file of which no more than MAX_PICKLE bytes are read at once."""

    def __init__(self, file):
        self.file = file

    def read(self, count: int) -> bytes:
        if count > MAX_PICKLE:
            raise ValueError("is too complicated to be a file of weights")
        return self.file.read(count)

    def readline(self) -> bytes:
        return self.file.readline(4096)
