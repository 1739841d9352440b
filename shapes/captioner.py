"""The Shapes captioner: a BLIP of 1.1 M parameters that writes the caption of a 128×128 Shapes picture, in the words of
the tokenizer.

transformers' own classes: a ViT of 3 layers with patches of 16 pixels, and a text decoder of 2 layers that looks at its
patches.
"""

from .models import WIDTH, word_tokenizer
from .words import MAX_TOKENS, vocabulary
from .world import SIZE


def captioner():
    """The untrained `BlipForConditionalGeneration`; its weights are random numbers from torch's global generator."""
    from transformers import BlipConfig, BlipForConditionalGeneration  # slow to import, and only this model needs it

    known = vocabulary()
    common = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4, "projection_dim": WIDTH}
    vision = {**common, "num_hidden_layers": 3, "image_size": SIZE, "patch_size": 16}
    text = {
        **common,
        "encoder_hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "vocab_size": len(known),
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": known["<start>"],
        "eos_token_id": known["<end>"],
        "sep_token_id": known["<end>"],
        "pad_token_id": known["<unk>"],  # never in a caption; `<end>` would make transformers guess what is padding
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
