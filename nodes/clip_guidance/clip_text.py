"""Tokenizers of CLIPs, without a download."""

from collections.abc import Callable
from pathlib import Path

import folder_paths
import torch

from ..host.model_folders import check_configs
from .clip_weights import open_clip

TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.txt", "sentencepiece.bpe.model")


def tokenizer_folders() -> dict[str, Path]:
    """Name -> folder of every tokenizer, at most two levels down in models/text_encoders or models/clip_vision."""
    found: dict[str, Path] = {}
    for kind in ("text_encoders", "clip_vision"):
        for root in map(Path, folder_paths.get_folder_paths(kind)):
            for name in TOKENIZER_FILES:
                for file in sorted([*root.glob(f"*/{name}"), *root.glob(f"*/*/{name}")]):
                    found.setdefault(file.parent.relative_to(root).as_posix(), file.parent)
    return found


def tokenizer(text_config: dict, folder: str) -> Callable[[list[str]], torch.Tensor]:
    """The tokenizer of an architecture. `folder`: `built in` (CLIP's own), or a name in `tokenizer_folders`.

    Raises ValueError when the architecture has another tokenizer and no folder is given, or the folder cannot be read.
    """
    wanted, length = text_config.get("hf_tokenizer_name"), text_config.get("context_length", 77)
    options = text_config.get("tokenizer_kwargs", {})
    if not wanted and folder == "built in":
        return open_clip().SimpleTokenizer(context_length=length, **options)
    if folder == "built in":
        raise ValueError(
            f"This CLIP needs the tokenizer of {wanted}, which is not part of open_clip and is not downloaded: put its "
            "tokenizer.json in a folder of its own in models/text_encoders, refresh (press R), and choose it in "
            "tokenizer."
        )
    path = tokenizer_folders().get(folder)
    if path is None:
        raise ValueError(
            f"There is no tokenizer folder '{folder}' in models/text_encoders: put it there, or choose another one."
        )
    check_configs(path)
    try:
        read = open_clip().tokenizer.HFTokenizer(str(path), context_length=length, local_files_only=True, **options)
    except Exception as error:  # whatever a damaged file makes of transformers
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"The tokenizer in '{folder}' cannot be read ({reason}): download its files again.") from None
    size, known = len(read.tokenizer), text_config.get("vocab_size", 49408)
    if size > known:
        raise ValueError(
            f"The tokenizer in '{folder}' has {size} tokens, and this CLIP knows {known}: choose the one of "
            f"{wanted or 'CLIP'}."
        )
    return read
