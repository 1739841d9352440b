"""Writing a file of weights whole or not at all, and never over another one."""

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch

_MAX_NUMBER = 99_999


def save_tensors(tensors: Mapping[str, torch.Tensor], path: str | os.PathLike, metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file: first under another name in the same folder, then renamed, so that no reader ever sees
    half of it and a full disk leaves what was there.

    A file of that name is replaced; `free_name` gives one that nobody has. ValueError, in one sentence, when it cannot
    be written.
    """
    path = Path(path)
    unfinished = path.with_name(f".{secrets.token_hex(8)}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # safetensors refuses tensors that share memory.
        safetensors.torch.save_file({key: value.clone() for key, value in tensors.items()}, unfinished, dict(metadata))
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())  # a disk that is full may say so only here
        os.replace(unfinished, path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path.name} could not be written: {_reason(error)}; nothing was changed.") from None
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def free_name(folder: str | os.PathLike, stem: str, first: int = 1) -> Path:
    """`stem`_NNNNN_.safetensors in the folder, with the first number from `first` on that is free; it is taken by an
    empty file at once, so that nobody else gets it. ValueError when no file can be made there.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        for number in range(first if 1 <= first <= _MAX_NUMBER else 1, _MAX_NUMBER + 1):
            path = Path(folder) / f"{stem}_{number:05}_.safetensors"
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
                return path
            except FileExistsError:
                continue
    except OSError as error:
        raise ValueError(f"No file {stem} can be made in the folder for it: {_reason(error)}.") from None
    raise ValueError(f"There are {_MAX_NUMBER:,} files named {stem} already: choose another filename_prefix.")


def _reason(error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number is None:  # safetensors has only the text of it
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else None
    if number in (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else number == errno.ENOSPC:
        return "the disk is full"
    return os.strerror(number).lower() if number else " ".join(str(error).split())[:120]
