"""Tiny random text encoders of ComfyUI's own classes, with their own tokenizers, for models with joint streams. Import
after ComfyUI is on the path.
"""

import io

import comfy.sd
import comfy.text_encoders.flux
import comfy.text_encoders.lumina2
import comfy.text_encoders.mage_flow
import comfy.text_encoders.pixart_t5
import comfy.text_encoders.qwen3vl
import comfy.text_encoders.qwen_image
import comfy.text_encoders.qwen_vl
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.z_image
import sentencepiece
import tiny_networks
import torch

from guidance_lab.nodes.layers.cross_attention import layer_table
from guidance_lab.xti import XTI

encoders = comfy.text_encoders
CLIP = dict(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16)
T5 = dict(d_model=24, d_ff=32, d_kv=8, num_heads=3, num_layers=2)
# SD3 puts the channels of CLIP-L and CLIP-G beside T5's 4096; the words of the tests are among T5's first.
WIDE_T5 = {**T5, "d_model": 4096, "vocab_size": 2048}
LLM = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=1, num_key_value_heads=1)
BEFORE, AFTER = "a photo of", "on a table"
WITH_WORD, WITHOUT = f"{BEFORE} cat {AFTER}", f"{BEFORE} {AFTER}"
CALLS = f"{BEFORE} xti:A {AFTER}"
WORDS = ["a photo of cat on a table", "of the cat on the table", "cat on a table", "a photo"]

# model → text encoder's class, tokenizer, its configurations; widths of its tokens
TARGETS = {
    "Flux": (encoders.flux.FluxClipModel, encoders.flux.FluxTokenizer, {"clip_l": CLIP, "t5xxl": T5}),
    "Chroma": (encoders.pixart_t5.PixArtT5XXL, encoders.pixart_t5.PixArtTokenizer, {"t5xxl": T5}),
    "SD3": (encoders.sd3_clip.sd3_clip(), encoders.sd3_clip.SD3Tokenizer,
            {"clip_l": CLIP, "clip_g": CLIP, "t5xxl": WIDE_T5}),
    "QwenImage": (encoders.qwen_image.te(), encoders.qwen_image.QwenImageTokenizer, {"qwen25_7b": LLM}),
    "MageFlow": (encoders.mage_flow.te(), encoders.mage_flow.MageFlowTokenizer, {"qwen3vl_4b": LLM}),
    "Lumina2": (encoders.lumina2.te(), encoders.lumina2.LuminaTokenizer, {"gemma2_2b": {**LLM, "vocab_size": 64}}),
    "ZImage": (encoders.z_image.te(), encoders.z_image.ZImageTokenizer, {"qwen3_4b": LLM}),
}  # fmt: skip
WIDTHS = {
    name: {encoder: each.get("hidden_size") or each["d_model"] for encoder, each in parts.items()}
    for name, (_, _, parts) in TARGETS.items()
}


def build(name: str, monkeypatch, **changed):
    """The CLIP of a model; the towers for pictures are left out of those that have one. changed: another `clip`."""

    class Target:
        params: dict = {}
        clip, tokenizer = TARGETS[name][:2]

    Target.clip = changed.get("clip", Target.clip)
    for module, tower in ((encoders.qwen_vl, "Qwen2VLVisionTransformer"), (encoders.qwen3vl, "Qwen3VLVisionModel")):
        monkeypatch.setattr(module, tower, lambda *args, **options: torch.nn.Identity())
    options = {f"{encoder}_model_config": config for encoder, config in TARGETS[name][2].items()}
    data = {"spiece_model": _pieces()} if name in ("Lumina2", "Wan") else {}
    with torch.inference_mode(False):
        clip = comfy.sd.CLIP(Target, embedding_directory=None, model_options=options, tokenizer_data=data)
        tiny_networks.filled(clip.cond_stage_model, 3)
    for encoder, width in WIDTHS[name].items():
        tokenizer_of(clip, encoder).embedding_size = width
    return clip


def tokenizer_of(clip, encoder: str):
    return getattr(clip.tokenizer, encoder, None) or getattr(clip.tokenizer, f"clip_{encoder}")


def table_of(clip, encoder: str) -> torch.Tensor:
    """The encoder's embeddings of its tokens, [V, width]."""
    part = getattr(clip.cond_stage_model, encoder, None) or getattr(clip.cond_stage_model, f"clip_{encoder}")
    return part.transformer.get_input_embeddings().weight


def _pieces() -> torch.Tensor:
    """A SentencePiece model of a few words, with the settings of Gemma's, which is not free to ship."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS * 4), model_writer=out, model_type="word", vocab_size=14, hard_vocab_limit=False,
        add_dummy_prefix=False, remove_extra_whitespaces=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        minloglevel=2,
    )  # fmt: skip
    return torch.frombuffer(bytearray(out.getvalue()), dtype=torch.uint8)


def learned(model, encoders: dict[str, int], vectors: int = 2, seed: int = 4) -> XTI:
    table, generator = layer_table(model), torch.Generator().manual_seed(seed)
    width = sum(encoders.values())
    layers = {name: torch.randn(vectors, width, generator=generator) for name in table.names}
    return XTI(table, layers, "test", encoders)


def place_of_word(clip, key: str, text: str) -> int:
    """Which token of the text is "cat": the one that is another where the text says "table" instead."""
    (one,), (other,) = (clip.tokenize(each)[key] for each in (text, text.replace("cat", "table")))
    (place,) = (i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a[0] != b[0])
    return place


def by_hand(clip, encoders: dict[str, int], rows: torch.Tensor):
    """The CONDITIONING of the text whose word "cat" is these vectors, as ComfyUI encodes tokens that are tensors; text
    encoders without vectors read the text without the word.
    """
    tokens, start = clip.tokenize(WITHOUT), 0
    for encoder, width in encoders.items():
        key = encoder.removeprefix("clip_")
        (section,) = clip.tokenize(WITH_WORD)[key]
        place = place_of_word(clip, key, WITH_WORD)
        scale = width**0.5 if encoder == "gemma2_2b" else 1.0  # its table of words is read times this
        vectors = [(scale * row, 1.0) for row in rows[:, start : start + width]]
        joined = [*section[:place], *vectors, *section[place + 1 :]]
        while len(joined) > len(section) and section[-1] == section[-2]:  # padded at the end, to one length
            joined.pop()
        tokens[key], start = [joined], start + width
    return clip.encode_from_tokens_scheduled(tokens)
