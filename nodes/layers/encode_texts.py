"""Encoding several texts at once, and texts with embeddings that are no files.

ComfyUI's CLIP text encoders take the 77-token sections of a long prompt as one batch and put their outputs in a row.
Texts that only differ by layer can therefore be encoded as sections of one batch, with the same result as one by one.
"""

import copy
import re
from collections.abc import Callable

import comfy.sd
import torch
from comfy.sd1_clip import SDTokenizer

from .carried import Text
from .cross_attention_dit import COMPANIONS

_CLIP_TOWERS = {"l", "g", "h"}  # the token lists of CLIP text encoders; other encoders look at a whole text at once
# White space to ComfyUI, which looks for `embedding:` behind some, and in no text; no text encoder is shown it.
_CUT = "\x1f"


def encode_texts(clip: comfy.sd.CLIP, tokens: list[dict]) -> list[tuple[list, list[Text]]]:
    """Encode tokenized texts; the first is the base.

    Returns, for each entry that CLIPTextEncode would give for the base (several where the CLIP has scheduled hooks),
    that entry [context [1, T, D], options] and the context and companions of every text, the base included. A pooled
    output is the base's.
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

    encoder: "clip_l", "t5xxl", "qwen25_7b", ... It gives [n, width] rows, or None where the name is a file's. One space
    before the name and one after it are no part of the text. The rows take the place of a word, with the space before
    it, as the tokens of most text encoders have it: what stands before and after keeps its own tokens. The CLIP is not
    changed.
    """
    outer = copy.copy(clip.tokenizer)
    for name, inner in vars(clip.tokenizer).items():
        if isinstance(inner, SDTokenizer):
            setattr(outer, name, _with_embeddings(inner, _encoder_name(name), embedding))
    tokens = outer.tokenize_with_weights(text, tokenizer_options=clip.tokenizer_options)
    return {key: [[_unpacked(token) for token in section] for section in sections] for key, sections in tokens.items()}


def encoder_widths(clip: comfy.sd.CLIP) -> dict[str, int]:
    """The text encoders of a CLIP that take embeddings, and the width of their tokens: {"clip_l": 768, "clip_g": 1280}
    for SDXL. Only those that are loaded: SD3 can do without some, and Anima reads T5's tokens without a T5.
    """
    return {
        _encoder_name(name): inner.embedding_size
        for name, inner in vars(clip.tokenizer).items()
        if isinstance(inner, SDTokenizer) and _encoder(clip, _encoder_name(name))
    }


def _encoder_name(name: str) -> str:
    """ComfyUI's name of a tokenizer, the same for one text encoder everywhere: T5 is t5xxl in Flux and clip_t5xxl
    alone.
    """
    return name if name in ("clip_l", "clip_g", "clip_h") else name.removeprefix("clip_")


def word_scale(clip: comfy.sd.CLIP, encoder: str) -> float:
    """What a row of the encoder's table of words is multiplied with before it is read: sqrt(width) in Gemma, else 1.

    ComfyUI reads tensors among the tokens as they are.
    """
    with torch.inference_mode():
        table = _encoder(clip, encoder).transformer.get_input_embeddings()
        some = torch.arange(16, device=table.weight.device)
        read, rows = table(some, out_dtype=torch.float32).norm(), table.weight[some].float().norm()
    gemma = table.weight.shape[1] ** 0.5
    return gemma if abs(read - gemma * rows) < abs(read - rows) else 1.0


def _encoder(clip: comfy.sd.CLIP, name: str) -> torch.nn.Module | None:
    """The text encoder of this name, None where it is not loaded."""
    return getattr(clip.cond_stage_model, name, None) or getattr(clip.cond_stage_model, f"clip_{name}", None)


class _Vectors(list):
    """Rows as the host's tokenizers take them, each packed in a tuple: that of Qwen-Image compares tokens with numbers,
    which a tensor does not answer with yes or no.
    """

    def __init__(self, rows: torch.Tensor):
        super().__init__((row,) for row in rows)
        self.shape = rows.shape


def _unpacked(token: tuple) -> tuple:
    return (token[0][0], *token[1:]) if isinstance(token[0], tuple) else token


def _with_embeddings(tokenizer: SDTokenizer, encoder: str, embedding) -> SDTokenizer:
    ours = copy.copy(tokenizer)
    ours.embedding_directory = (
        tokenizer.embedding_directory or []
    )  # without a folder the host would not look for embeddings at all

    def look_up(word: str):
        name, _, rest = word.partition(_CUT)
        rows = embedding(encoder, name)
        return tokenizer._try_get_embedding(word) if rows is None else (_Vectors(rows), name, rest)

    def cut_out(found: re.Match) -> str:
        return found[0] if embedding(encoder, found[1]) is None else f"{_CUT}embedding:{found[1]}{_CUT}"

    def tokenize(text: str, *args, **options):
        cut = re.sub(r" ? embedding:(\S+) ?", cut_out, text)
        # ComfyUI drops line breaks at the very end behind an embedding, where a chat template has one.
        cut += _CUT if cut != text else ""
        return type(tokenizer).tokenize_with_weights(ours, cut, *args, **options)

    # On our copy: the host's tokenizers have no other way to give them a tensor.
    ours._try_get_embedding, ours.tokenize_with_weights = look_up, tokenize
    ours.tokenizer = lambda text: tokenizer.tokenizer(text.replace(_CUT, ""))
    return ours
