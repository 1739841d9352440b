"""Encoding several texts at once, and texts with embeddings that are no files.

ComfyUI's CLIP text encoders take the 77-token sections of a long prompt as one batch and put their outputs in a row. Texts that only
differ by layer can therefore be encoded as sections of one batch, with the same result as one by one.
"""

import copy
from collections.abc import Callable

import comfy.sd
import torch
from comfy.sd1_clip import SDTokenizer

from .cross_attention import Text
from .cross_attention_dit import COMPANIONS

_CLIP_TOWERS = {"l", "g", "h"}  # the token lists of CLIP text encoders; other encoders look at a whole text at once


def encode_texts(clip: comfy.sd.CLIP, tokens: list[dict]) -> list[tuple[list, list[Text]]]:
    """Encode tokenized texts; the first is the base.

    Returns, for each entry that CLIPTextEncode would give for the base (several where the CLIP has scheduled hooks), that entry
    [context [1, T, D], options] and the context and companions of every text, the base included. A pooled output is the base's.
    """
    counts = [{tower: len(sections) for tower, sections in text.items()} for text in tokens]
    if all(set(text) <= _CLIP_TOWERS for text in tokens) and all(len(set(count.values())) == 1 for count in counts):
        return _encode_sections(clip, tokens, [next(iter(count.values())) for count in counts])
    each = [clip.encode_from_tokens_scheduled(text) for text in tokens]
    return [(entries[0], [text_of(entry) for entry in entries]) for entries in zip(*each, strict=True)]


def _encode_sections(clip, tokens: list[dict], counts: list[int]) -> list[tuple[list, list[Text]]]:
    together = {tower: [section for text in tokens for section in text[tower]] for tower in tokens[0]}
    encoded = []
    for context, options in clip.encode_from_tokens_scheduled(together):
        length = context.shape[1] // sum(counts)
        contexts = context.split([length * count for count in counts], dim=1)
        encoded.append(([contexts[0], options], [{"cross_attn": part} for part in contexts]))
    return encoded


def text_of(entry: list) -> Text:
    """The text of a CONDITIONING entry: its context, and what its encoder gave besides."""
    return {"cross_attn": entry[0], **{key: entry[1][key] for key in COMPANIONS if entry[1].get(key) is not None}}


def tokenize_with(clip: comfy.sd.CLIP, text: str, embedding: Callable[[str, str], torch.Tensor | None]) -> dict:
    """Tokenize as ComfyUI does, but ask `embedding(encoder, name)` first for each `embedding:name` of the text.

    encoder: "clip_l", "clip_g" or "clip_h". It gives [n, width] rows, or None where the name is a file's. The CLIP is not changed.
    """
    outer = copy.copy(clip.tokenizer)
    for name, inner in vars(clip.tokenizer).items():
        if isinstance(inner, SDTokenizer):
            setattr(outer, name, _with_embeddings(inner, name, embedding))
    return outer.tokenize_with_weights(text, tokenizer_options=clip.tokenizer_options)


def encoder_widths(clip: comfy.sd.CLIP) -> dict[str, int]:
    """The text encoders of a CLIP that take embeddings, and the width of their tokens: {"clip_l": 768, "clip_g": 1280} for SDXL."""
    return {name: inner.embedding_size for name, inner in vars(clip.tokenizer).items() if isinstance(inner, SDTokenizer)}


def _with_embeddings(tokenizer: SDTokenizer, encoder: str, embedding) -> SDTokenizer:
    ours = copy.copy(tokenizer)
    ours.embedding_directory = tokenizer.embedding_directory or []  # without a folder the host would not look for embeddings at all

    def look_up(word: str):
        name, *rest = word.split()
        rows = embedding(encoder, name)
        return tokenizer._try_get_embedding(word) if rows is None else (rows, name, " ".join(rest))

    ours._try_get_embedding = look_up  # on our copy: the host's tokenizers have no other way to give them a tensor
    return ours
