"""Text encoders in the middle of a sampling run: loaded by somebody else, and encoding what nobody knew before."""

import uuid
from collections.abc import Iterable
from functools import lru_cache

import comfy.samplers
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher

from ..host import Run, same_weights
from ..host.models import models_loaded_with

REMEMBERED = 32  # encoded texts of a run; at 77 to 256 tokens that is 8 to 130 MB


def loaded_clip(clip: comfy.sd.CLIP, patcher: ModelPatcher) -> comfy.sd.CLIP:
    """A CLIP that works on `patcher`, which somebody else keeps loaded, and asks for no memory itself.

    `CLIP.load_model` makes room for its activations, in the worst case by unloading the diffusion model that is about
    to be used.
    """
    clone = clip.clone()
    clone.patcher = patcher
    clone.load_model = lambda tokens=None: patcher
    return clone


def refuse_for_run(clip: comfy.sd.CLIP, others: Iterable[ModelPatcher]) -> None:
    """ValueError, in one sentence, for a CLIP that cannot encode in mid-run, which is loaded with `others`.

    Scheduled weights belong to a part of the sampling, and one module cannot carry two sets of LoRAs.
    """
    if clip.use_clip_schedule and clip.patcher.forced_hooks is not None:
        raise ValueError("This CLIP has scheduled hooks (Set CLIP Hooks); connect the CLIP as it was before that node.")
    if any(other.model is clip.patcher.model and not same_weights(other, clip.patcher) for other in others):
        raise ValueError(
            "This text encoder is already used with other LoRAs by the captioner or a guidance; use one CLIP for all "
            "of them."
        )


class RunTexts:
    """Encodes texts during one run, and makes conds of them that differ from the guider's positive in nothing but the
    text.
    """

    def __init__(self, run: Run, clip: comfy.sd.CLIP):
        """The CLIP is among the loaded models. RuntimeError when the guider has no positive."""
        if "positive" not in run.main.conds:
            raise RuntimeError(
                f"This guider has no positive conditioning (only {', '.join(run.main.conds)}); use a guider that "
                f"has one."
            )
        loaded = next(other for other in models_loaded_with(run.model_patcher) if same_weights(other, clip.patcher))
        self.run = run
        self.given = run.conds["positive"]  # as the user gave it
        self.clip = loaded_clip(clip, loaded)
        self.encoded = lru_cache(REMEMBERED)(self._encode)

    @property
    def positive(self) -> list[dict]:
        """The guider's positive as it is sampled: the processed conds."""
        return self.run.main.conds["positive"]

    def _encode(self, text: str) -> dict:
        with torch.inference_mode():
            context, options = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text), show_pbar=False)[0]
        return {"cross_attn": context, **{key: value for key, value in options.items() if key != "hooks"}}

    def is_positive(self, text: str, row: int) -> bool:
        """Whether the text, encoded, is bit for bit what the positive says for picture `row` of the batch."""
        encoded = self.encoded(text)

        def same(entry: dict) -> bool:
            # A positive without a pooled text is for a model that has no use for one.
            keys = [key for key in ("cross_attn", "pooled_output") if entry.get(key) is not None]
            return "cross_attn" in keys and all(_same_row(entry[key], encoded.get(key), row) for key in keys)

        return all(same(entry) for entry in self.given)

    def conds(self, texts: list[str | None]) -> list[tuple[list[dict], list[int]]]:
        """Processed conds with texts[i] for picture i of the batch (None: for no use), each with the pictures that it
        is for.

        One where the encoded texts have one shape, so that the whole batch is one prediction. Else one for each
        different text, and each is predicted for the whole batch.
        """
        wanted = dict.fromkeys(text for text in texts if text is not None)
        first = next(iter(wanted))
        together = _joined([self.encoded(text or first) for text in texts])
        if together is not None:
            return [(self._like_positive(together), [i for i, text in enumerate(texts) if text is not None])]
        return [
            (self._like_positive(self.encoded(text)), [i for i, other in enumerate(texts) if other == text])
            for text in wanted
        ]

    def _like_positive(self, encoded: dict) -> list[dict]:
        """The guider's positive with another text: its areas, masks, sizes, ControlNets, hooks and timestep ranges
        stay.
        """
        run = self.run
        entries = [{**entry, **encoded, "model_conds": {}, "uuid": uuid.uuid4()} for entry in self.positive]
        inputs = {"latent_image": run.latent_image, "denoise_mask": run.denoise_mask, "seed": run.seed, **run.shapes}
        # Not `process_conds`: ControlNets and hooks of these entries are in the middle of their run, and it would start
        # them again.
        return comfy.samplers.encode_model_conds(
            run.model.extra_conds, entries, run.noise, run.device, "positive", **inputs
        )


def _joined(encoded: list[dict]) -> dict | None:
    """Encoded texts as the rows of one batch; None when they have different shapes."""
    joined = {}
    for key in encoded[0]:
        values = [one.get(key) for one in encoded]
        if all(value is values[0] for value in values):
            joined[key] = values[0]
        elif all(isinstance(value, torch.Tensor) and value.shape == values[0].shape for value in values):
            joined[key] = torch.cat(values)
        else:
            return None
    return joined


def _same_row(given: torch.Tensor, encoded: torch.Tensor | None, row: int) -> bool:
    return encoded is not None and torch.equal(given[row % given.shape[0]].to(encoded), encoded[0])
