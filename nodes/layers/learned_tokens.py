"""Learned tokens in ComfyUI's text encoders: their vocabulary, and captions in which `{}` stands for the token's
vectors.
"""

from dataclasses import dataclass

import comfy.sd
import torch

from .encode_texts import encoder_widths, tokenize_with

ENCODERS = ("clip_l", "clip_h", "clip_g")
PLACEHOLDER = "{}"
_END_OF_WORD = "</w>"  # in the byte pairs of CLIP
_NAME = "guidance_lab_learned_token"
Tokens = dict[str, list[list[tuple]]]  # as ComfyUI tokenizes: text encoder → sections → (number or tensor, weight)


@dataclass(frozen=True)
class Vocabulary:
    """The word table of one text encoder: rows [V, width], float32 on the CPU, and the word of each row. Without
    special tokens.
    """

    rows: torch.Tensor
    words: tuple[str, ...]


def clip_widths(clip: comfy.sd.CLIP) -> dict[str, int]:
    """Text encoder → width of its tokens, in the order of an XTI's columns. ValueError for a CLIP with other
    encoders.
    """
    if clip is None:
        raise ValueError("An XTI needs the CLIP of the model; the checkpoint gave none, load it separately.")
    widths = encoder_widths(clip)
    if not widths or not set(widths) <= set(ENCODERS):
        raise ValueError(
            "An XTI needs the text encoders of SD1, SD2 or SDXL (CLIP-L, CLIP-H, CLIP-G), and this CLIP has "
            f"{', '.join(widths) or 'others'}."
        )
    return widths


def vocabulary(clip: comfy.sd.CLIP, encoder: str) -> Vocabulary:
    """All words of a text encoder ("clip_l", ...), as it was loaded, without patches. A part of a word ends in "-"."""
    tokenizer = getattr(clip.tokenizer, encoder)
    table = _table(clip, encoder)
    kept = [i for i in range(len(table)) if i in tokenizer.inv_vocab and i not in _special(tokenizer)]
    names = [tokenizer.inv_vocab[i] for i in kept]
    if any(name.endswith(_END_OF_WORD) for name in names):
        names = [name.removesuffix(_END_OF_WORD) if name.endswith(_END_OF_WORD) else f"{name}-" for name in names]
    return Vocabulary(table[kept].to("cpu", torch.float32), tuple(names))


def word_rows(clip: comfy.sd.CLIP, text: str, count: int) -> torch.Tensor:
    """The input embeddings of a text as `count` vectors [count, all encoders' width] to start from: its tokens, again
    from the first.

    `embedding:name` gives the vectors of a textual inversion. ValueError for a text without tokens.
    """
    parts = []
    for encoder in clip_widths(clip):
        tokenizer = getattr(clip.tokenizer, encoder)
        tokens = [token for section in tokenizer.tokenize_with_weights(text) for token, _ in section]
        table = _table(clip, encoder)
        rows = [
            token if isinstance(token, torch.Tensor) else table[token]
            for token in tokens
            if isinstance(token, torch.Tensor) or token not in _special(tokenizer)
        ]
        if not rows:
            raise ValueError(
                f'The initial word "{text}" has no tokens; write what kind of thing it is, such as "toy" or "painting".'
            )
        parts.append(torch.stack([rows[i % len(rows)].to("cpu", torch.float32) for i in range(count)]))
    return torch.cat(parts, dim=1)


def caption_tokens(clip: comfy.sd.CLIP, caption: str, count: int) -> Tokens:
    """The tokens of a caption in which each `{}` is `count` learned vectors, as tensors [1] with the vector's number.

    ValueError for a caption without `{}`, or with weights, which the host applies in a way that has no gradient.
    """
    if PLACEHOLDER not in caption:
        raise ValueError(
            f'The caption "{caption}" does not say where the learned token goes; write {PLACEHOLDER} in its place.'
        )
    numbers = torch.arange(count)[:, None]
    tokens = tokenize_with(
        clip,
        caption.replace(PLACEHOLDER, f" embedding:{_NAME} "),
        lambda encoder, name: numbers if name == _NAME else None,
    )
    if any(weight != 1.0 for sections in tokens.values() for section in sections for _, weight in section):
        raise ValueError(f'The caption "{caption}" has weights; write captions for training without brackets.')
    return tokens


def with_rows(tokens: Tokens, rows: list[torch.Tensor], widths: dict[str, int]) -> Tokens:
    """The caption once per layer, as so many sections, with that layer's vectors [n, all encoders' width] in place of
    their numbers.
    """
    filled, start = {}, 0
    for encoder, width in widths.items():
        own = [row[:, start : start + width] for row in rows]
        sections = tokens[encoder.removeprefix("clip_")]
        filled[encoder.removeprefix("clip_")] = [_filled(section, vectors) for vectors in own for section in sections]
        start += width
    return filled


def _filled(section: list[tuple], vectors: torch.Tensor) -> list[tuple]:
    return [(vectors[int(token)] if _is_number(token) else token, weight) for token, weight in section]


def _is_number(token) -> bool:
    return isinstance(token, torch.Tensor) and token.shape == (1,)


def _special(tokenizer) -> set:
    return {tokenizer.start_token, tokenizer.end_token, tokenizer.pad_token}


def _table(clip: comfy.sd.CLIP, encoder: str) -> torch.Tensor:
    return getattr(clip.cond_stage_model, encoder).transformer.get_input_embeddings().weight
