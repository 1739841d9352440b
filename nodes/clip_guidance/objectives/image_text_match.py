"""Objective: Image-Text Match, BLIP's own judgement whether a text describes a picture."""

from pathlib import Path

import torch

from ....guidance.classifier import log_probability
from ..._api import io
from ...host.model_folders import chosen_folder, model_folders, read_json, weights_file
from ...host.networks import as_patcher, checked_statistics, dtype_of, normalized
from ...host.transformers_folders import read_network, short
from ..clip_text import TOKENIZER_FILES
from ..objective import Scorer, ScoringStep
from .values import CATEGORY, lines_of, objective, objective_output, weight_input

FOLDER = "captioners"
MATCH = 1  # of the head's two classes
EMPTY = "The text of Objective: Image-Text Match is empty: write what the picture should show."


class _Matching(torch.nn.Module):
    """The parts of BlipForImageTextRetrieval that make the matching logits. Its own forward keeps a mask on the CPU."""

    def __init__(self, network):
        super().__init__()
        self.vision, self.text, self.head = network.vision_model, network.text_encoder, network.itm_head

    def forward(self, pixels: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        picture = self.vision(pixel_values=pixels).last_hidden_state
        states = self.text(input_ids=tokens, attention_mask=mask, encoder_hidden_states=picture).last_hidden_state
        return self.head(states[:, 0])


class TextMatch(Scorer):
    """log p(match | picture, text) of BLIP's image-text matching head (Li et al. 2022, arXiv 2201.12086), the mean over
    the texts.
    """

    def __init__(self, network, tokenizer, mean, std, side: int, lines: list[str], name: str):
        self.mean, self.std, self.side, self.name = tuple(mean), tuple(std), side, name
        self.models = (as_patcher(_Matching(network)),)
        with torch.inference_mode(False):
            encoded = tokenizer(lines, padding=True, truncation=True, return_tensors="pt")
            self.tokens, self.mask = encoded["input_ids"], encoded["attention_mask"]

    def score(self, view: torch.Tensor, step: ScoringStep) -> torch.Tensor:
        patcher = self.models[0]
        pixels = normalized(view.to(patcher.load_device), self.mean, self.std).to(dtype_of(patcher.model))
        scores = []
        for tokens, mask in zip(self.tokens, self.mask, strict=True):
            rows = [one.to(pixels.device).expand(len(pixels), -1) for one in (tokens, mask)]
            scores.append(log_probability(patcher.model(pixels, *rows), MATCH))
        return sum(scores) / len(scores)


def read_matcher(folder: Path, lines: list[str]) -> TextMatch:
    """The scorer of a folder with BlipForImageTextRetrieval. ValueError, in one sentence, when it is another model or
    is not whole.
    """
    kinds = read_json(folder / "config.json").get("architectures") or ["?"]
    if not isinstance(kinds, list) or "BlipForImageTextRetrieval" not in kinds:
        kind = short(kinds[0] if isinstance(kinds, list) else kinds)[:60]
        raise ValueError(
            f"{folder.name} is a {kind}, which cannot judge a match: use a BlipForImageTextRetrieval such as "
            f"blip-itm-base-coco."
        )
    weights_file(folder)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):  # transformers would make up an empty one
        raise ValueError(f"{folder.name} has no tokenizer (vocab.txt or tokenizer.json): download the whole folder.")
    network = read_network(folder, "BlipForImageTextRetrieval", "a BLIP matcher")
    import transformers  # slow

    try:
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            options = {"local_files_only": True, "trust_remote_code": False}
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
            pixels = transformers.AutoImageProcessor.from_pretrained(folder, **options)
            mean, std = pixels.image_mean, pixels.image_std
    except Exception as error:  # whatever a damaged file makes of transformers
        raise ValueError(
            f"{folder.name} cannot be read as a BLIP matcher ({short(error)}): download the whole folder again."
        ) from None
    mean, std = checked_statistics(mean, std, folder.name)
    side = network.config.vision_config.image_size
    return TextMatch(network, tokenizer, mean, std, side, lines, f"BLIP match ({folder.name})")


class ObjectiveImageTextMatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_ObjectiveImageTextMatch",
            display_name="Objective: Image-Text Match",
            category=CATEGORY,
            description="Guides towards pictures that BLIP, reading text and picture together, finds described by the "
            "text.",
            search_aliases=["BLIP", "ITM", "image text matching", "BLIP match", "BlipForImageTextRetrieval"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=sorted(model_folders(FOLDER)),
                    tooltip="A folder in models/captioners with a BLIP for image-text retrieval (blip-itm-base-coco, "
                    "0.22 B parameters): "
                    "config.json, tokenizer and .safetensors. A captioning BLIP has no matching head. Nothing is "
                    "downloaded.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    tooltip="What the picture should show, in a plain sentence. Each line is a text of its own and "
                    "costs a look; their log probabilities are averaged.",
                ),
                weight_input(),
            ],
            outputs=[objective_output()],
        )

    @classmethod
    def validate_inputs(cls, text=None) -> bool | str:
        return True if text is None or lines_of(text) else EMPTY  # None: it is linked

    @classmethod
    def execute(cls, model: str, text: str, weight=1.0) -> io.NodeOutput:
        lines = lines_of(text)
        if not lines:
            raise ValueError(EMPTY)
        return io.NodeOutput(objective(weight, read_matcher(chosen_folder(FOLDER, model), lines)))


NODES = [ObjectiveImageTextMatch]
