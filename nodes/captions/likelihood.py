"""Captioners read the other way round: how likely they find a given text, differentiable in the picture."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from ...guidance.likelihood import TOKEN, log_likelihood
from ..host.networks import dtype_of, normalized

TOLERANCE = 1e-3  # between our pixels and those of the captioner's own processor, whose unit is a standard deviation


class Texts(NamedTuple):
    """Texts as token ids [N, T], start and end included; `kept` [N, T] is true where there is a token, else padding."""

    ids: torch.Tensor
    kept: torch.Tensor

    def for_each(self, pictures: int) -> "Texts":
        """Every text for every one of `pictures`: text l and picture b are row l * pictures + b."""
        return Texts(*(rows.repeat_interleave(pictures, 0) for rows in self))


# What a family says after each of `ids` [N, T], as logits [N, T, V], when row n is about picture n modulo B of `pixels`
# [B, 3, side, side]. Each picture goes through the vision tower once, however many texts there are. `asked`: token ids
# [1, K] of the task with the picture's places in it, of a captioner that has to be asked.
Forcing = Callable[..., torch.Tensor]


def _blip(network, pixels, ids, kept, asked) -> torch.Tensor:
    seen = network.vision_model(pixel_values=pixels).last_hidden_state
    return network.text_decoder(
        input_ids=ids, attention_mask=kept, encoder_hidden_states=_repeated(seen, ids), use_cache=False
    ).logits


def _blip2(network, pixels, ids, kept, asked) -> torch.Tensor:
    seen = _repeated(network.get_image_features(pixels).pooler_output, ids)
    inputs = torch.cat([seen, network.get_input_embeddings()(ids).to(seen.dtype)], 1)
    mask = torch.cat([kept.new_ones(seen.shape[:2]), kept], 1)
    return network.language_model(inputs_embeds=inputs, attention_mask=mask, use_cache=False).logits[:, seen.shape[1] :]


def _git(network, pixels, ids, kept, asked) -> torch.Tensor:
    # GIT repeats what it has seen to the number of texts, in the same order.
    logits = network(pixel_values=pixels, input_ids=ids, attention_mask=kept, use_cache=False).logits
    return logits[:, -ids.shape[1] :]


def _florence2(network, pixels, ids, kept, asked) -> torch.Tensor:
    seen = network.get_image_features(pixels).pooler_output
    asked = asked.expand(len(pixels), -1)
    inputs = network.get_input_embeddings()(asked)
    places = network.get_placeholder_mask(asked, inputs_embeds=inputs, image_features=seen)
    inputs = inputs.masked_scatter(places, seen.to(inputs.dtype))
    language = network.model.language_model
    encoded = language.encoder(inputs_embeds=inputs, attention_mask=torch.ones_like(asked)).last_hidden_state
    states = language.decoder(
        input_ids=ids, attention_mask=kept, encoder_hidden_states=_repeated(encoded, ids), use_cache=False
    ).last_hidden_state
    return network.lm_head(states)


def _repeated(seen: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return seen.repeat(len(ids) // len(seen), 1, 1)


class _Family(NamedTuple):
    forcing: Forcing
    start: tuple[str, ...]  # names in the text configuration of the tokens that a caption starts with, and ends with
    end: str
    # MiB in half precision that the largest published one keeps for its backward pass, counted on its true sizes: for a
    # picture of `side` pixels with one text of 20 tokens, and for each further text.
    side: int
    picture: int
    text: int


_FAMILIES = {
    "blip": _Family(_blip, ("bos_token_id",), "sep_token_id", 384, 520, 30),
    "blip-2": _Family(_blip2, ("bos_token_id",), "eos_token_id", 224, 620, 110),
    "git": _Family(_git, ("bos_token_id",), "eos_token_id", 224, 340, 35),
    "florence2": _Family(_florence2, ("decoder_start_token_id", "bos_token_id"), "eos_token_id", 768, 3150, 70),
}


class Likelihood:
    """How likely a captioner of transformers finds texts. Immutable.

    side: pixels of the square picture it takes. squeezes: whether its processor squeezes a picture that is not square
    (else it cuts off what is outside the middle square).
    """

    def __init__(self, name: str, patcher: ModelPatcher, processor, task: str | None):
        """`patcher`: holds the network as `model.network`. ValueError, in one sentence, when this captioner has no
        usable loss.
        """
        config = patcher.model.network.config
        family = _FAMILIES.get(config.model_type)
        if family is None or (config.model_type == "blip-2" and not config.use_decoder_only_language_model):
            raise ValueError(
                f"{name} cannot say how likely a text is: use a BLIP, a BLIP-2 with OPT, a GIT or a Florence-2 from "
                "Captioner Loader."
            )
        self.name, self.patcher, self.family = name, patcher, family
        text_config = config.get_text_config()
        self.start = [getattr(text_config, key) for key in family.start]
        self.end = getattr(text_config, family.end)
        self.longest = text_config.max_position_embeddings
        self.tokenizer = processor.tokenizer
        self._match(processor, task)

    def _match(self, processor, task: str | None) -> None:
        """Takes over what the processor does to a picture, and refuses a processor that does something else."""
        pictures = processor.image_processor
        asked = {} if task is None else {"text": [task]}

        def processed(picture: torch.Tensor):
            return processor(images=[picture], do_rescale=False, return_tensors="pt", **asked)

        with torch.inference_mode(False), torch.no_grad():
            self.side = processed(torch.zeros(3, 64, 64))["pixel_values"].shape[-1]
            self.squeezes = not getattr(pictures, "do_center_crop", False)
            plain = not pictures.do_normalize
            self.mean = (0.0,) * 3 if plain else tuple(pictures.image_mean)
            self.std = (1.0,) * 3 if plain else tuple(pictures.image_std)
            view = torch.rand(1, 3, self.side, self.side, generator=torch.Generator().manual_seed(0))
            inputs = processed(view[0])
            self.asked = inputs["input_ids"] if asked else None
        own = normalized(view, self.mean, self.std)
        if inputs["pixel_values"].shape != own.shape or (inputs["pixel_values"] - own).abs().max() > TOLERANCE:
            raise ValueError(
                f"The processor of {self.name} does more to a picture than to resize and normalize it, which cannot be "
                "differentiated here: use another captioner."
            )

    def memory(self, texts: int) -> float:
        """Bytes that one picture with so many texts keeps for its gradient."""
        size = comfy.model_management.dtype_size(dtype_of(self.patcher.model))
        picture = self.family.picture * (self.side / self.family.side) ** 2
        return (picture + (texts - 1) * self.family.text) * 2**20 * size / 2

    def texts(self, lines: Sequence[str]) -> Texts:
        """Token ids of the lines. ValueError, in one sentence, when a line is empty, too long, or has a character that
        the captioner does not know.
        """
        rows = []
        for line in lines:
            words = self.tokenizer(line, add_special_tokens=False)["input_ids"]
            if not words:
                raise ValueError(f"{self.name} finds no word in '{line}': write what the picture shows.")
            if self.tokenizer.unk_token_id in words:
                raise ValueError(f"{self.name} does not know a word or a sign in '{line}': write it in other words.")
            rows.append([*self.start, *words, self.end])
            if len(rows[-1]) > self.longest:
                raise ValueError(
                    f"A text has {len(rows[-1])} tokens and {self.name} reads {self.longest} at most: shorten it."
                )
        longest = max(map(len, rows))
        with torch.inference_mode(False):  # autograd has to save them
            ids = torch.tensor([row + [self.end] * (longest - len(row)) for row in rows])
            kept = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return Texts(ids, kept)

    def __call__(self, view: torch.Tensor, texts: Texts, per: str = TOKEN) -> torch.Tensor:
        """log p(text | picture), [N], in float32; see `guidance.likelihood`. The captioner's model is loaded.

        view: [B, 3, side, side], RGB in 0..1. Text n is read with picture n modulo B, so N is a multiple of B. The end
        of the text counts as a token.
        """
        device, network = self.patcher.load_device, self.patcher.model.network
        pixels = normalized(view.to(device), self.mean, self.std).to(dtype_of(network))
        ids, kept = (rows.to(device) for rows in texts)
        asked = None if self.asked is None else self.asked.to(device)
        logits = self.family.forcing(network, pixels, ids[:, :-1], kept[:, :-1], asked)
        return log_likelihood(logits, ids[:, 1:], kept[:, 1:], per)
