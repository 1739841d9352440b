"""One sampling run: what the guidances see of it, and the evaluation, counting and timing of models inside it."""

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import comfy.model_sampling
import comfy.samplers
import torch

MODEL = "model"  # the name that evaluations outside of any guidance are counted on


@dataclass
class Cost:
    """What a name has evaluated in one step: calls of a network, rows it predicted (batch x conds x areas), seconds."""

    calls: int = 0
    rows: int = 0
    seconds: float = 0.0


@dataclass
class Term:
    """What one guidance added to the prediction: `value` as it was added (None: nothing), and the weight in force."""

    name: str
    value: torch.Tensor | None
    weight: float


@dataclass(eq=False)
class Step:
    """One model evaluation of the sampler (a step of a two-evaluation sampler has two). Tensors are (batch, ...), predictions are x0."""

    run: "Run"
    x: torch.Tensor
    sigma: torch.Tensor  # (batch,)
    denoised: torch.Tensor | None = None  # so far; the final one when listeners are called
    cond: list | None = None  # the processed conds that cond_denoised was made from
    cond_denoised: torch.Tensor | None = None  # the main model's own prediction, before any pre-CFG hook
    uncond_denoised: torch.Tensor | None = None  # None where the guider made none (cfg 1)
    cond_scale: float | None = None
    terms: list[Term] = field(default_factory=list)
    costs: dict[str, Cost] = field(default_factory=dict)
    seconds: float = 0.0
    own_predictions: dict[int, tuple[list, torch.Tensor]] = field(default_factory=dict)

    @cached_property
    def sigma_value(self) -> float:
        """sigma as a number. Reading it waits for the GPU, so it is read only where it is needed."""
        return self.sigma.flatten()[0].item()

    def publish(self, value: torch.Tensor | None, weight: float) -> None:
        """Tells listeners what the calling guidance adds to the prediction in this evaluation, and with which weight."""
        if self.run.listeners:
            self.terms.append(Term(self.run.charged_to, value, weight))

    def own_prediction(self, cond: list | None, after_hooks: torch.Tensor) -> torch.Tensor:
        """The main model's prediction for these conds as it came from the model; pre-CFG hooks may have changed the given one."""
        made_from, prediction = self.own_predictions.get(id(cond), (None, None))
        return prediction if made_from is cond and cond is not None and prediction.shape == self.x.shape else after_hooks


class Evaluator:
    """A loaded model with the options and processed conds under which it is evaluated in this run."""

    def __init__(self, run: "Run", patcher, options: dict, conds: dict[str, list]):
        self.run, self.patcher, self.options, self.conds = run, patcher, options, conds

    def process(self, conds: dict[str, list]) -> dict[str, list]:
        """Host-converted conds {"positive": [...]} → the same with this model's own inputs: areas, masks, adm, ControlNet, timesteps."""
        run = self.run
        return comfy.samplers.process_conds(
            self.patcher.model, run.noise, conds, run.device, run.latent_image, run.denoise_mask, run.seed, **run.shapes
        )

    def predict(self, cond: list, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The x0 prediction (batch, ...) of this model at x, sigma (batch,) for one list of processed conds."""
        model = self.patcher.model
        whole = self.options.get("sampler_calc_cond_batch_function")
        if whole is not None:
            return whole({"conds": [cond, None], "input": x, "sigma": sigma, "model": model, "model_options": self.options})[0]
        return comfy.samplers.calc_cond_batch(model, [cond], x, sigma, self.options)[0]

    def predict_like(self, step: Step) -> torch.Tensor:
        """The prediction at the step's x and sigma on the conditioning that the guider's own prediction was made from."""
        name = next((k for k, processed in self.run.guider.conds.items() if processed is step.cond), "positive")
        cond = self.conds.get(name, self.conds.get("positive"))
        if cond is None:
            raise RuntimeError(f"This guider has no positive conditioning (only {', '.join(self.conds)}); use a guider that has one.")
        return self.predict(cond, step.x, step.sigma)


class Run:
    """What one sampling run offers to its guidances. Valid from `begin` to `end`."""

    def __init__(self, guider, shapes: dict):
        self.guider = guider
        self.model_patcher = guider.model_patcher
        self.conds = {name: [c.copy() for c in conds] for name, conds in guider.conds.items()}  # before the host processes them
        self.shapes = shapes  # {"latent_shapes": ...} where the host knows nested latents
        self.listeners: list[Callable[[Step], None]] = []
        self.evaluators: dict = {}
        self.charged_to = MODEL
        self.step: Step | None = None

    def start(self, sigmas, extra_args: dict, noise, latent_image, denoise_mask) -> None:
        """Fills in what is known once all models are loaded."""
        self.sigmas = sigmas
        self.seed = extra_args.get("seed")
        self.noise = noise
        self.latent_image = latent_image  # processed: in the scale of x
        self.denoise_mask = denoise_mask
        self.device = self.model_patcher.load_device
        self.model = self.model_patcher.model
        self.main = Evaluator(self, self.model_patcher, extra_args["model_options"], self.guider.conds)

    @property
    def model_sampling(self):
        return self.model.model_sampling

    @property
    def frame(self) -> str:
        """What x is: "flow", x = (1 - sigma) x0 + sigma n, or "VE", x = x0 + sigma n."""
        return "flow" if isinstance(self.model_sampling, comfy.model_sampling.CONST) else "VE"

    def evaluator(self, extra) -> Evaluator:
        """The evaluator of an `ExtraModel` of a guidance of this run."""
        return self.evaluators[extra]

    @contextmanager
    def charge(self, name: str):
        before, self.charged_to = self.charged_to, name
        try:
            yield
        finally:
            self.charged_to = before

    def now(self) -> float:
        """Seconds; only a run that somebody listens to waits for the GPU."""
        if self.listeners and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    # The three wrappers below are put around the host's calls for the length of this run.

    def predict_noise(self, executor, x, sigma, *args, **kwargs):
        """Around each evaluation of the guider: opens the step, and tells the listeners when it is finished."""
        self.step = Step(self, x, sigma)
        began = self.now()
        try:
            denoised = executor(x, sigma, *args, **kwargs)
            self.step.seconds = self.now() - began
            self.step.denoised = denoised
            for listener in self.listeners:
                listener(self.step)
            return denoised
        finally:
            self.step = None

    def calc_cond_batch(self, executor, model, conds, x, sigma, model_options):
        """Around the main model's predictions: keeps the first one of each list of conds, as it is before pre-CFG hooks."""
        predictions = executor(model, conds, x, sigma, model_options)
        if self.step is not None:
            for cond, prediction in zip(conds, predictions, strict=False):
                if cond is not None:
                    self.step.own_predictions.setdefault(id(cond), (cond, prediction))
        return predictions

    def apply_model(self, executor, x, *args, **kwargs):
        """Around each forward of any network of this run: counts and times it."""
        began = self.now()
        out = executor(x, *args, **kwargs)
        if self.step is not None:
            cost = self.step.costs.setdefault(self.charged_to, Cost())
            cost.calls += 1
            cost.rows += x.shape[0]
            cost.seconds += self.now() - began
        return out
