"""Writes tokenizer.json: one token per word of `shapes.world`, `<start>` and `<end>` around. Run once when the
vocabulary changes.
"""

from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from guidance_lab.shapes.world import BACKGROUNDS, COLOURS, OBJECTS, RELATIONS, TEXTURES

SHAPES = Path(__file__).resolve().parents[2] / "shapes"


def main() -> None:
    relations = dict.fromkeys(word for relation in RELATIONS for word in relation.split())
    words = ["<start>", "<end>", "<unk>", "a", "on", "and", *relations, *COLOURS, *TEXTURES, *OBJECTS, *BACKGROUNDS]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(",", "removed"), pre_tokenizers.Split(".", "removed")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        "<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<start>", eos_token="<end>", unk_token="<unk>", pad_token="<end>"
    ).save_pretrained(str(SHAPES / "tokenizer"))


if __name__ == "__main__":
    main()
