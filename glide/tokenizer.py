"""GLIDE's words: GPT-2's byte-pair encoding, lower case, without a start token, padded to a fixed length."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path

import torch

PADDING = 50256  # GPT-2's <|endoftext|>; never the encoding of a text
MERGES = Path(__file__).with_name("vocab.bpe.gz")  # OpenAI, MIT (LICENSE.vocab)


@cache
def _encoder():
    """The encoder that the merges alone define: 256 bytes, then one entry for each merge, in the order of the file."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    lines = gzip.decompress(MERGES.read_bytes()).decode("utf-8").splitlines()[1:]
    merges = [tuple(line.split()) for line in lines if line]
    entries = [*_byte_characters(), *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(BPE({entry: index for index, entry in enumerate(entries)}, merges))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    return tokenizer


def _byte_characters() -> list[str]:
    """The 256 entries for single bytes: the printable characters of Latin-1 stand for themselves, the rest for U+0100
    and on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [*map(chr, printable), *(chr(256 + index) for index in range(256 - len(printable)))]


def encode(text: str) -> list[int]:
    """Token ids of a text, however long. Nothing in it is special: '<|endoftext|>' is seven ordinary tokens."""
    return _encoder().encode(text.lower()).ids


def pad(ids: list[int], text_ctx: int = 128) -> tuple[list[int], list[bool]]:
    """Exactly `text_ctx` ids, cut or padded, and whether each is text. A text that fills them has no padding."""
    ids = ids[:text_ctx]
    missing = text_ctx - len(ids)
    return ids + [PADDING] * missing, [True] * len(ids) + [False] * missing


def tokenize(texts: list[str], text_ctx: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """(long [B, text_ctx], bool [B, text_ctx]): tokens, and True where there is text. '' is nothing but padding."""
    if isinstance(texts, str):
        raise ValueError("tokenize takes a list of texts; put the text into one.")
    rows = [pad(encode(text), text_ctx) for text in texts]
    ids, masks = (torch.tensor([row[part] for row in rows]).reshape(len(rows), text_ctx) for part in (0, 1))
    return ids.long(), masks.bool()
