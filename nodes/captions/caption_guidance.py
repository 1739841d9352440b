"""Caption-residual guidance in a sampling run: away from what a captioner says of the running estimate."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import comfy.sd
import torch

from ...guidance.caption_residual import caption_residual, same_caption
from ...guidance.schedule import Window
from ..host import Guidance, Run, Step, attach
from ..host.curve_input import show_weights
from ..host.decode import Decoder
from ..host.live import Live
from ..host.models import models_loaded_with
from ..host.node_text import show_on_node
from .captioners import Captioner
from .run_texts import RunTexts, refuse_for_run

CAPTIONER_MEMORY = 256 * 2**20  # activations of a captioner at one picture; BLIP at 384 pixels needs about 150 MiB


@dataclass(frozen=True)
class Settings:
    """What the node asks for. weight: b; every: steps from one caption to the next; prompt: what was asked for, if
    told; curve: percent -> factor of the weight.
    """

    weight: float
    window: Window
    every: int = 1
    prompt: str = ""
    curve: Callable[[float], float] | None = None

    def __post_init__(self):
        if not math.isfinite(self.weight):
            raise ValueError(
                f"scale is {self.weight}; give a finite number, 0 for no caption guidance, usually 0.25 to 1."
            )
        if self.every < 1:
            raise ValueError(
                f"every is {self.every}; give 1 for a new caption at each step, 2 for every second step, and so on."
            )


@dataclass
class _State:
    texts: RunTexts
    first: int | None = None  # index of the first captioned step
    captioned: int | None = None  # of the last one
    captions: tuple[str, ...] = ()
    conds: tuple[
        tuple[list[dict], list[int]], ...
    ] = ()  # and the pictures they are for: those whose caption is not the prompt


class CaptionResidual(Guidance):
    """D = D - b(D_b - D_c), D_b under the caption of the estimate that the evaluation before came to; see
    `guidance.caption_residual`.

    That estimate is one step old, and so the caption is known before the model is called: prompt, negative and caption
    are one call.
    """

    name = "Caption residual"

    def __init__(
        self,
        clip: comfy.sd.CLIP,
        captioner: Captioner,
        decoder: Decoder,
        settings: Settings,
        node_id: str | None = None,
    ):
        self.clip, self.captioner, self.decoder, self.settings, self.node_id = (
            clip,
            captioner,
            decoder,
            settings,
            node_id,
        )
        self.window, self.over_time = settings.window, settings.curve
        self.loaded_models = (clip.patcher, *captioner.models, *decoder.models)

    def extra_memory(self, model, noise_shape: tuple[int, ...]) -> float:
        return self.decoder.memory(noise_shape) + CAPTIONER_MEMORY * noise_shape[0]

    def begin(self, run: Run) -> _State:
        show_weights(self, self.settings.weight, run, Live(self.node_id))
        return _State(RunTexts(run, self.clip))

    def extra_conds(self, step: Step, state: _State) -> list[list[dict]]:
        """The captions in force, brought up to date; none before there is an estimate to caption."""
        if step.previous is None:
            return []
        state.first = step.index if state.first is None else state.first
        if step.index != state.captioned and (step.index - state.first) % self.settings.every == 0:
            state.captioned = step.index
            with step.network_call():
                self._caption(step, state)
        return [caption for caption, _ in state.conds]

    def step(self, step: Step, state: _State) -> torch.Tensor:
        note = " | ".join(state.captions)
        if not state.conds:
            step.record_term(None, self.neutral_weight, note)
            return step.denoised
        known = step.known_prediction(state.texts.positive)
        cond = step.cond_denoised if known is None else known
        captioned = self._captioned(step, state, cond)
        weight = self.weight_at(self.settings.weight, step)
        step.record_term(-weight * (captioned - cond), weight, note)
        return caption_residual(step.denoised, cond, captioned, weight)

    def _captioned(self, step: Step, state: _State, cond: torch.Tensor) -> torch.Tensor:
        """D_b [B, ...]: each picture under its own caption, and D_c where the caption says the prompt."""
        captioned = cond.clone()
        for caption, rows in state.conds:
            captioned[rows] = step.predict(caption)[rows]
        return captioned

    def _caption(self, step: Step, state: _State) -> None:
        with torch.inference_mode():
            captions = tuple(
                self.captioner.caption(self.decoder.decode(step.run.with_surroundings(step.previous, step.sigma)))
            )
        show_on_node("\n".join(captions), self.node_id)
        if captions == state.captions:
            return
        state.captions = captions
        wanted = [None if self._says_prompt(state, caption, row) else caption for row, caption in enumerate(captions)]
        state.conds = tuple(state.texts.conds(wanted)) if any(text is not None for text in wanted) else ()

    def _says_prompt(self, state: _State, caption: str, row: int) -> bool:
        # Away from no words at all would be another negative prompt, which nobody asked for.
        if not caption or (self.settings.prompt and same_caption(caption, self.settings.prompt)):
            return True
        return state.texts.is_positive(caption, row)


def caption_residual_model(model, clip, captioner, decoder: Decoder, settings: Settings, node_id: str | None = None):
    """A clone of the MODEL that carries caption-residual guidance; at weight 0 it carries nothing.

    ValueError, in one sentence, when this CLIP cannot encode while sampling.
    """
    if settings.weight == 0:
        return model.clone()
    refuse_for_run(clip, [*models_loaded_with(model), *captioner.models])
    return attach(model, CaptionResidual(clip, captioner, decoder, settings, node_id))
