"""CLIP guidance in a sampling run: the estimate moves up the gradient of an objective that looks at it."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...guidance.crops import crop_generator
from ...guidance.cross_modal import (
    CLAMP,
    EXACT,
    RMS,
    Gradient,
    ScoreTerm,
    model_gradient,
    sample_gradient,
    shift,
    x0_gradient,
)
from ...guidance.frames import NoiseLevel
from ...guidance.schedule import Window
from ..host import Guidance, Run, Step
from ..host.curve_input import show_weights
from ..host.decode import Decoder, PixelDecoder
from ..host.gradient import (
    differentiable_weights,
    gradient_memory,
    refuse_through,
    refuse_without_residence,
)
from ..host.node_text import show_on_node
from .live_view import LiveView
from .objective import Objective, ScoringStep
from .views import Seen, Views, crop_side, noisy_terms, score_terms

SIZES = (RMS, CLAMP, EXACT)
NO_BACKWARD = (
    "autograd kernel",
    "autograd formula",
    "autograd tracking",
    "derivative for",
    "saved for backward",
    "does not require grad",
)
ADVICE = "Choose gradient 'x0' if it is the model, and another decoder or scorer if it is not."


@dataclass(frozen=True)
class Settings:
    """What the nodes ask for. strength and size: as in `guidance.cross_modal.shift`; every: steps from one gradient to
    the next; curve: percent -> factor of the strength.
    """

    strength: float
    window: Window
    blended: bool = True
    every: int = 1
    size: str = RMS
    views: Views = Views()
    curve: Callable[[float], float] | None = None

    def __post_init__(self):
        if self.size not in SIZES:
            raise ValueError(f"size is '{self.size}'; choose {', '.join(SIZES[:-1])} or {SIZES[-1]}.")
        if not math.isfinite(self.strength):
            raise ValueError(f"strength is {self.strength}; give a finite number, 0 for no guidance, usually 0.2 to 1.")
        if self.every < 1:
            raise ValueError(
                f"every is {self.every}; give 1 for a new gradient at each step, 2 for every second step, and so on."
            )


@dataclass
class _State:
    view: LiveView
    gradient: Gradient | None = None
    in_place: bool = False  # whether a network turned out to write into what its own backward pass needs
    warned: bool = False


class ScoreGuidance(Guidance):
    """D = D + shift(gradient of the objective), UPainting's rule in the parameterization of the model; see
    `guidance.cross_modal`. The gradient is taken at the estimate.
    """

    name = "CLIP guidance"
    adds_a_gradient = True

    def __init__(self, objective: Objective, decoder: Decoder, settings: Settings, node_id: str | None = None):
        """ValueError when the objective is empty, or wants noisy pictures that this model cannot give."""
        if not objective.parts:
            raise ValueError("The objective is empty: connect an Objective node that has a weight other than 0.")
        self.noisy = scores_noisy(objective)
        if self.noisy and not all(scorer.noisy for _, scorer in objective.parts):
            raise ValueError(
                "The objective mixes scorers of noisy and of clean pictures: put them on two CLIP Guidance nodes in a "
                "row."
            )
        if self.noisy and not isinstance(decoder, PixelDecoder):
            raise ValueError(
                "The objective scores noisy pictures, and a latent model has none to show: "
                "use it on a pixel-space model, or let the objective add its own noise to the decoded estimate."
            )
        self.objective, self.decoder, self.settings, self.node_id = objective, decoder, settings, node_id
        self.window, self.over_time = settings.window, settings.curve
        self.loaded_models = (*decoder.models, *objective.models)

    def extra_memory(self, model, noise_shape: tuple[int, ...]) -> float:
        cells = noise_shape[-2:]
        if self.decoder.crops:
            cells = [min(size, crop_side(self.objective, self.decoder)) for size in cells]
        look = max(scorer.memory for _, scorer in self.objective.parts)
        return self.decoder.memory((*noise_shape[:2], *cells)) + look * noise_shape[0]

    def begin(self, run: Run) -> _State:
        self._refuse_shape(run.noise)
        refuse_without_residence(
            self.loaded_models, "Use a smaller decoder (taesd, latent_rgb), a smaller scorer, or a smaller picture."
        )
        view = LiveView(self.node_id, run)
        show_weights(self, self.settings.strength, run, view.live)
        return _State(view)

    def step(self, step: Step, state: _State) -> torch.Tensor:
        run, level = step.run, step.run.noise_level(step.sigma, step.x)
        due = self._is_due(step, state)
        if due:
            look = state.view.look()
            seen = run.with_surroundings(step.denoised, step.sigma)

            def gradient(in_place: bool) -> Gradient:
                terms = self._terms(step, level, look)
                if self.noisy:
                    return sample_gradient(terms, step.x, seen, level, in_place=in_place)
                return x0_gradient(terms, step.x, seen, level, blended=self.settings.blended, in_place=in_place)

            with differentiable_weights(self.loaded_models), step.network_call():
                state.gradient = _tolerant(gradient, state)
        return self._move(step, state, step.denoised, level, due)

    def end(self, run: Run, state: _State) -> None:
        state.view.flush()

    def _is_due(self, step: Step, state: _State) -> bool:
        """Between two due steps the last gradient is used again, at the size that belongs to the present noise
        level.
        """
        return state.gradient is None or step.index % self.settings.every == 0

    def _terms(self, step: Step, level: NoiseLevel, look: Seen | None) -> list[ScoreTerm]:
        scoring_step = ScoringStep(level, crop_generator(self.settings.views.seed, step.index))
        if self.noisy:
            return noisy_terms(self.objective, self.settings.views, step.x.shape, scoring_step)
        return score_terms(self.objective, self.decoder, self.settings.views, step.x.shape, scoring_step, look)

    def _move(self, step: Step, state: _State, denoised: torch.Tensor, level: NoiseLevel, scored: bool) -> torch.Tensor:
        run, size, strength = step.run, self.settings.size, self.weight_at(self.settings.strength, step)
        # The exact rule is kept exact: nothing caps it.
        following = None if size == EXACT else run.noise_level(run.next_sigma(step.sigma), step.x)
        value = shift(state.gradient, level, strength, size=size, mask=run.mask(step.sigma), next_level=following)
        value = value.to(denoised.dtype)
        if not state.warned and not torch.isfinite(state.gradient.value).all():
            state.warned = True
            message = (
                "the gradient is not a number at some step, so that step is not guided; a scorer or VAE in float32 "
                "usually cures it."
            )
            logging.warning("Guidance Lab: CLIP guidance: %s", message)
            show_on_node(message, self.node_id)
        step.record_term(value, strength)
        state.view.record(step, state.gradient.score if scored else None, value)
        return denoised + value

    def _refuse_shape(self, noise: torch.Tensor) -> None:
        if noise.is_nested or noise.ndim not in (4, 5) or (noise.ndim == 5 and noise.shape[2] != 1):
            raise ValueError(
                "CLIP guidance looks at pictures, and this latent is a video or no picture at all; sample a single "
                "frame."
            )
        if self.noisy:
            side = max(scorer.side for _, scorer in self.objective.parts)
            height, width = noise.shape[-2:]
            if min(height, width) < side:
                raise ValueError(
                    f"The objective scores noisy pictures of {side} x {side} pixels, and this is {width} x {height}."
                )


class ThroughModel(ScoreGuidance):
    """The same with the gradient taken at x, back through the guider's whole evaluation: it wraps that evaluation, and
    makes it with a graph, so that the model is not evaluated a second time.
    """

    def extra_memory(self, model, noise_shape: tuple[int, ...]) -> float:
        return super().extra_memory(model, noise_shape) + gradient_memory(model, noise_shape)

    def begin(self, run: Run) -> _State:
        state = super().begin(run)
        if sum(isinstance(guidance, ThroughModel) for guidance in run.guidances) > 1:
            raise ValueError("Only one guidance can go through the model: join the objectives with Objective: Combine.")
        refuse_through(run, "Choose gradient 'x0', which does without it.")
        return state

    def step(self, step: Step, state: _State) -> torch.Tensor:
        return step.denoised

    def wrap(self, step: Step, state: _State, evaluate: Callable) -> torch.Tensor:
        run, level = step.run, step.run.noise_level(step.sigma, step.x)
        if not self._is_due(step, state):
            return self._move(step, state, evaluate(step.x), level, False)
        made, look = None, state.view.look()

        def denoiser(x: torch.Tensor) -> torch.Tensor:
            nonlocal made
            made = evaluate(x)
            return run.with_surroundings(made, step.sigma)

        def gradient(in_place: bool) -> Gradient:
            terms = self._terms(step, level, look)
            return model_gradient(terms, denoiser, step.x, level, blended=self.settings.blended, in_place=in_place)

        with differentiable_weights(self.loaded_models), step.network_call():
            state.gradient = _tolerant(gradient, state)
        return self._move(step, state, made.detach().to(step.x.dtype), level, True)


def scores_noisy(objective: Objective) -> bool:
    """Whether it scores the noisy sample itself: then there is nothing to go through the model for."""
    return any(scorer.noisy for _, scorer in objective.parts)


def _tolerant(gradient: Callable[[bool], Gradient], state: _State) -> Gradient:
    """`gradient(in_place)`, first without the costly tolerance for networks that write in place, from the first refusal
    on with it.
    """
    try:
        return gradient(state.in_place)
    except RuntimeError as error:
        if any(sign in str(error) for sign in NO_BACKWARD):
            reason = str(error).split(". ")[0].strip()
            raise ValueError(
                f"A network on the way from the score to the picture has no gradient ({reason}). {ADVICE}"
            ) from error
        if state.in_place or "inplace operation" not in str(error):
            raise
    state.in_place = True
    return gradient(True)
