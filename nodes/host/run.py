"""What a guidance may read: the facts of a sampling run (`Run`) and of one model evaluation in it (`Step`).

Both are made by the driver, and nothing is registered on them.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property

import comfy.model_sampling
import torch
from comfy.model_patcher import ModelPatcher

from ...guidance import frames
from ...guidance.schedule import next_sigma, percent_at, step_index
from .evaluate import Evaluator
from .meter import Cost, Meter


@dataclass
class Term:
    """What one guidance added to the prediction: `value` as it was added (None: nothing), the weight in force, and what
    it says of it in words.
    """

    name: str
    value: torch.Tensor | None
    weight: float
    note: str = ""


class Run:
    """One sampling run, from `begin` to `end`. Everything is loaded."""

    def __init__(self, guider, guidances: tuple, conds: dict[str, list], shapes: dict, evaluators: dict):
        self._guider = guider
        self.guidances = guidances  # all of this run, in wiring order
        self.conds = conds  # copies, as the user gave them; `main.conds` are processed
        self.shapes = shapes  # {"latent_shapes": ...} where the host knows nested latents
        self._evaluators = evaluators
        self.model_patcher: ModelPatcher = guider.model_patcher
        self.model = self.model_patcher.model
        self.device: torch.device = self.model_patcher.load_device

    def start(self, sigmas, extra_args: dict, noise, latent_image, denoise_mask) -> None:
        """Fills in what the host knows last, when it hands over to the sampler."""
        self.sigmas: torch.Tensor = sigmas
        self.seed: int | None = extra_args.get("seed")
        self.noise: torch.Tensor = noise
        self.latent_image: torch.Tensor | None = latent_image  # processed: in the scale of x
        self.denoise_mask: torch.Tensor | None = denoise_mask
        self.main = Evaluator(self, self.model_patcher, extra_args["model_options"], self._guider.conds)

    def close(self) -> None:
        """Lets go of everything. The host's options point at the run and the run at them, and a MODEL that only the
        garbage collector can free is one that ComfyUI takes for a memory leak.
        """
        vars(self).clear()

    @property
    def model_sampling(self):
        return self.model.model_sampling

    @property
    def models(self) -> list[ModelPatcher]:
        """The diffusion models that are evaluated in this run: the guider's, and the extra ones of all guidances."""
        return [self.model_patcher, *(evaluator.patcher for evaluator in self._evaluators.values())]

    def evaluator(self, extra) -> Evaluator:
        """The evaluator of an `ExtraModel` of a guidance of this run."""
        return self._evaluators[extra]

    @property
    def parameterization(self) -> str:
        """What x is: "flow", x = (1 - sigma) x0 + sigma n, or "VE", x = x0 + sigma n."""
        return "flow" if isinstance(self.model_sampling, comfy.model_sampling.CONST) else "VE"

    def noise_level(self, sigma: torch.Tensor, x: torch.Tensor) -> frames.NoiseLevel:
        """The noise level sigma (batch,) in the parameterization of this run, shaped to broadcast over x."""
        return frames.flow(sigma, x) if self.parameterization == "flow" else frames.ve(sigma, x)

    @cached_property
    def _schedule(self) -> list[float]:
        return self.sigmas.tolist()

    def step_index(self, sigma: float) -> int:
        """The number of the step that sigma belongs to, as the trace counts them."""
        return step_index(self._schedule, sigma)

    def next_sigma(self, sigma: torch.Tensor) -> torch.Tensor:
        """The next lower noise level of the schedule, for each of sigma (batch,); 0 below the last."""
        return next_sigma(self.sigmas, sigma)

    def mask(self, sigma: torch.Tensor) -> torch.Tensor | None:
        """The inpainting mask in force at sigma (batch,), 1 = inside, in latent cells; None when everything is
        sampled.
        """
        function = self.main.options.get("denoise_mask_function")  # Differential Diffusion lets it grow
        if self.denoise_mask is None or function is None:
            return self.denoise_mask
        return function(sigma, self.denoise_mask, extra_options={"model": self._guider, "sigmas": self.sigmas})

    def with_surroundings(self, estimate: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The estimate (batch, ...) with the given picture around the inpainting mask, which is what the sampler makes
        of it.
        """
        mask = self.mask(sigma)
        if mask is None or self.latent_image is None:
            return estimate
        mask = mask.clone()  # made by the sampler, which autograd must not save
        return estimate * mask + self.latent_image * (1 - mask)


@dataclass(eq=False)
class Step:
    """One model evaluation of the sampler (a step of a two-evaluation sampler has two). Tensors are (batch, ...),
    predictions are x0.
    """

    run: Run
    _meter: Meter = field(repr=False)
    x: torch.Tensor
    sigma: torch.Tensor  # (batch,)
    previous: torch.Tensor | None = None  # what the evaluation before came to; None at the first
    denoised: torch.Tensor | None = None  # so far; the final one in `observe`
    cond: list | None = None  # the processed conds that cond_denoised was made from
    cond_denoised: torch.Tensor | None = None  # the main model's own prediction, before any pre-CFG hook
    uncond_denoised: torch.Tensor | None = None  # None where the guider made none (cfg 1)
    cond_scale: float | None = None
    # What follows is known in `observe`.
    terms: list[Term] = field(default_factory=list)
    costs: dict[str, Cost] = field(default_factory=dict)
    seconds: float = 0.0
    _predictions: dict[int, tuple[list, torch.Tensor]] = field(default_factory=dict)
    _extra_conds: dict[str, list] = field(default_factory=dict)

    @cached_property
    def sigma_value(self) -> float:
        """sigma as a number. Reading it waits for the GPU, so it is read only where it is needed."""
        return self.sigma.flatten()[0].item()

    @cached_property
    def index(self) -> int:
        """The number of the step of the schedule that this evaluation belongs to."""
        return self.run.step_index(self.sigma_value)

    @cached_property
    def percent(self) -> float:
        """Where this evaluation lies in the model's own percent scale: 0 the noisiest, 1 the clean end."""
        return percent_at(self.sigma_value, self.run.model_sampling.percent_to_sigma)

    def record_term(self, value: torch.Tensor | None, weight: float, note: str = "") -> None:
        """Says what the guidance at work adds to the prediction in this evaluation (None: nothing this time) and with
        which weight, for those who observe; `note`: what it worked with, in words.
        """
        if self._meter.watched:
            self.terms.append(Term(self._meter.name, value, weight, note))

    def network_call(self) -> AbstractContextManager[None]:
        """Around one call of networks that are no diffusion models: counted and timed on the guidance at work."""
        return self._meter.network_call(self.x.shape[0])

    def predict(self, cond: list) -> torch.Tensor:
        """The main model's prediction for these processed conds: the one of the guider's own call if it was asked for
        there (`Guidance.extra_conds`), else made now.
        """
        known = self.known_prediction(cond)
        return self.run.main.predict(cond, self.x, self.sigma) if known is None else known

    def known_prediction(self, cond: list | None) -> torch.Tensor | None:
        """What the main model predicted for these conds in the guider's own call, before any pre-CFG hook; None when it
        was not asked.
        """
        made_from, prediction = self._predictions.get(id(cond), (None, None))
        # A model that works in tiles calls the host for each with the same conds: then this is a part of the picture.
        if cond is None or made_from is not cond or prediction is None or prediction.shape != self.x.shape:
            return None
        return prediction

    def detach_predictions(self) -> None:
        """Cuts the predictions off the graph that they were made in: cfg_pp samplers keep them, and would keep it."""
        with torch.inference_mode(False):  # inside, detach_ does nothing, and says nothing
            for _, prediction in self._predictions.values():
                if prediction.requires_grad:
                    prediction.detach_()
