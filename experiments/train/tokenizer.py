"""Writes tokenizer.json: one token per word of `shapes.words`, `<start>` and `<end>` around. Run once when the
vocabulary changes.
"""

from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from guidance_lab.shapes.words import vocabulary

SHAPES = Path(__file__).resolve().parents[2] / "shapes"


def main() -> None:
    known = vocabulary()
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(",", "removed"), pre_tokenizers.Split(".", "removed")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        "<start> $A <end>", special_tokens=[(word, known[word]) for word in ("<start>", "<end>")]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<start>", eos_token="<end>", unk_token="<unk>", pad_token="<end>"
    ).save_pretrained(str(SHAPES / "tokenizer"))


if __name__ == "__main__":
    main()
