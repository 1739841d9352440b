"""Tiny random captioners as folders on disk, as transformers saves them. No network, no ComfyUI."""

from pathlib import Path

import torch
import transformers
from transformers import BertTokenizer, BlipImageProcessor, BlipProcessor, CLIPImageProcessor, GitProcessor

SIDE = 32
WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [DEC] a red blue green yellow ball cube star house left right of above on white black"
).split()
_TEXT = dict(
    vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=256,
    bos_token_id=4, eos_token_id=3, sep_token_id=3, pad_token_id=0,
)  # fmt: skip
_VISION = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=8
)


def tokenizer(**special_tokens) -> BertTokenizer:
    """One token per word of WORDS, and named special tokens after them."""
    return BertTokenizer(
        vocab={word: i for i, word in enumerate([*WORDS, *special_tokens.values()])}, pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]", mask_token=None, bos_token="[DEC]", eos_token="[SEP]",
        extra_special_tokens=special_tokens,
    )  # fmt: skip


def _fill(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights large enough that another picture gets another caption."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                gain = 4.0 if "crossattention" in name or "patch_embedding" in name else 1.5
                parameter.copy_(gain * torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
    return network.eval()


def blip(folder: Path, seed: int = 0, network_class=transformers.BlipForConditionalGeneration) -> Path:
    """A BLIP of 50,000 weights in `folder`; `network_class` another head of BLIP, which is no captioner."""
    config = transformers.BlipConfig(
        text_config={**_TEXT, "encoder_hidden_size": 32, "projection_dim": 32}, vision_config={**_VISION,
        "projection_dim": 32},
        image_text_hidden_size=32,
    )  # fmt: skip
    _fill(network_class(config), seed).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": SIDE, "width": SIDE}), tokenizer()).save_pretrained(folder)
    return folder


def git(folder: Path, seed: int = 0) -> Path:
    """A GIT in `folder`."""
    config = transformers.GitConfig(vision_config=_VISION, **_TEXT)
    _fill(transformers.GitForCausalLM(config), seed).save_pretrained(folder)
    pictures = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    GitProcessor(pictures, tokenizer()).save_pretrained(folder)
    return folder


def blip2(folder: Path, seed: int = 0) -> Path:
    """A BLIP-2 with an OPT in `folder`."""
    image_token = len(WORDS)
    language = dict(
        vocab_size=image_token + 1, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=4, eos_token_id=3, pad_token_id=0, word_embed_proj_dim=32, model_type="opt",
    )  # fmt: skip
    qformer = {**_TEXT, "encoder_hidden_size": 32, "cross_attention_frequency": 1}
    config = transformers.Blip2Config(
        vision_config=_VISION, qformer_config=qformer, text_config=language, num_query_tokens=4,
        image_token_index=image_token,
        image_text_hidden_size=32,
    )  # fmt: skip
    _fill(transformers.Blip2ForConditionalGeneration(config), seed).save_pretrained(folder)
    words = tokenizer(image_token="<image>")
    transformers.Blip2Processor(
        BlipImageProcessor(size={"height": SIDE, "width": SIDE}), words, num_query_tokens=4
    ).save_pretrained(folder)
    return folder


def florence2(folder: Path, seed: int = 0) -> Path:
    """A Florence-2 in `folder`."""
    image_token = len(WORDS)
    text = dict(
        vocab_size=image_token + 1, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=256, bos_token_id=2,
        eos_token_id=3, pad_token_id=0,
        decoder_start_token_id=2, forced_eos_token_id=3, forced_bos_token_id=None, model_type="bart",
    )  # fmt: skip
    vision = dict(
        depths=(1, 1), patch_size=(7, 3), patch_stride=(4, 2), patch_padding=(3, 1), patch_prenorm=(False, True),
        embed_dim=(16, 32),
        num_heads=(2, 2), num_groups=(2, 2), window_size=4, projection_dim=32, max_temporal_embeddings=4,
        max_position_embeddings=16,
        model_type="florence_vision",
    )  # fmt: skip
    config = transformers.Florence2Config(text_config=text, vision_config=vision, image_token_id=image_token)
    _fill(transformers.Florence2ForConditionalGeneration(config), seed).save_pretrained(folder)
    pictures = CLIPImageProcessor(size={"height": SIDE, "width": SIDE}, do_center_crop=False)
    pictures.image_seq_length = 17
    words = tokenizer(image_token="<image>")
    transformers.Florence2Processor(image_processor=pictures, tokenizer=words).save_pretrained(folder)
    return folder
