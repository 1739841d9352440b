"""The Shapes captioner: a BLIP of 1.1 M parameters that writes the caption of a 64×64 Shapes picture, in the words of
the tokenizer.

transformers' own classes: a ViT of 3 layers with patches of 8 pixels, and a text decoder of 2 layers that looks at its
patches.
"""

from .models import MAX_TOKENS, WIDTH, word_tokenizer
from .world import SIZE


def captioner():
    """The untrained `BlipForConditionalGeneration`; its weights are random numbers from torch's global generator."""
    from transformers import BlipConfig, BlipForConditionalGeneration  # slow to import, and only this model needs it

    words = word_tokenizer()
    common = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4, "projection_dim": WIDTH}
    vision = {**common, "num_hidden_layers": 3, "image_size": SIZE, "patch_size": 8}
    text = {
        **common,
        "encoder_hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "vocab_size": len(words.get_vocab()),
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "sep_token_id": words.eos_token_id,
        "pad_token_id": words.unk_token_id,  # never in a caption; `<end>` would make transformers guess what is padding
        "label_smoothing": 0.0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return BlipForConditionalGeneration(
        BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=WIDTH)
    )


def captioner_processor():
    """The `BlipProcessor`: pictures to the network's input, token ids to words."""
    from transformers import BlipImageProcessor, BlipProcessor

    return BlipProcessor(BlipImageProcessor(size={"height": SIZE, "width": SIZE}), word_tokenizer())
