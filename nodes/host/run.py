"""One sampling run: what the guidances see of it, and the evaluation, counting and timing of models inside it."""

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import comfy.model_sampling
import comfy.samplers
import torch

from ...guidance import frames
from .gradient import options_for_gradient

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
    notes: list[tuple[str, str]] = field(default_factory=list)  # (who, what)
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

    def spend(self, name: str, calls: int, rows: int, seconds: float) -> None:
        """Adds to the cost of a name in this step."""
        cost = self.costs.setdefault(name, Cost())
        cost.calls += calls
        cost.rows += rows
        cost.seconds += seconds

    def forget(self) -> None:
        """Takes back what was said of this evaluation, before it is made once more. What it cost stays."""
        self.own_predictions.clear()
        self.terms.clear()
        self.notes.clear()

    def release(self) -> None:
        """Cuts the main model's predictions off the graph that they were made in, for samplers that keep them (cfg_pp)."""
        with torch.inference_mode(False):  # inside, detach_ does nothing, and says nothing
            for _, prediction in self.own_predictions.values():
                prediction.detach_()

    def note(self, text: str) -> None:
        """Tells listeners in words what the calling guidance worked with in this evaluation."""
        if self.run.listeners:
            self.notes.append((self.run.charged_to, text))

    def prediction(self, cond: list) -> torch.Tensor:
        """The main model's prediction for these processed conds: from the guider's own call (`Run.beside`), else made now."""
        made_from, prediction = self.own_predictions.get(id(cond), (None, None))
        if made_from is not cond:
            prediction = self.run.main.predict(cond, self.x, self.sigma)
        return prediction

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
        options = options_for_gradient(self.options) if self.run.differentiating else self.options
        whole = options.get("sampler_calc_cond_batch_function")
        if whole is not None:
            return whole({"conds": [cond, None], "input": x, "sigma": sigma, "model": model, "model_options": options})[0]
        return comfy.samplers.calc_cond_batch(model, [cond], x, sigma, options)[0]

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
        # A guidance that differentiates the guider's whole evaluation puts itself around it during begin: (step, evaluate) -> denoised,
        # where evaluate(x) is that evaluation. There is one place for it.
        self.around: Callable | None = None
        self.differentiating = False  # inside `gradient.differentiable_run`
        # Asked in each evaluation for more conds to predict in the guider's own call; each counts as another version of the positive.
        self.beside: list[Callable[[Step], list[list]]] = []
        self.evaluators: dict = {}
        self.charged_to = MODEL
        self.same_as: dict[int, int] = {}  # place of an appended cond in the running call → that of the positive
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

    def close(self) -> None:
        """Lets go of everything. The host's options point at the run and the run at them, and a MODEL that only the garbage collector
        can free is one that ComfyUI takes for a memory leak."""
        vars(self).clear()

    @property
    def model_sampling(self):
        return self.model.model_sampling

    @property
    def frame(self) -> str:
        """What x is: "flow", x = (1 - sigma) x0 + sigma n, or "VE", x = x0 + sigma n."""
        return "flow" if isinstance(self.model_sampling, comfy.model_sampling.CONST) else "VE"

    def level(self, sigma: torch.Tensor, x: torch.Tensor) -> frames.Level:
        """The noise level sigma (batch,) in the frame of this run, shaped to broadcast over x."""
        return frames.flow(sigma, x) if self.frame == "flow" else frames.ve(sigma, x)

    def index(self, sigma: float) -> int:
        """How many noise levels of the schedule lie above sigma: the number of the step that starts there."""
        return int((self.sigmas > sigma * (1 + 1e-6)).sum())

    def next_sigma(self, sigma: torch.Tensor) -> torch.Tensor:
        """The next lower noise level of the schedule, for each of sigma (batch,); 0 below the last."""
        lower = torch.where(self.sigmas < sigma[:, None] * (1 - 1e-6), self.sigmas, 0)
        return lower.amax(1)

    @contextmanager
    def work(self, step: Step):
        """Counts one call of other networks on the guidance at work, and all time in this block that no diffusion model is charged with."""
        began, charged = self.now(), sum(cost.seconds for cost in step.costs.values())
        yield
        charged = sum(cost.seconds for cost in step.costs.values()) - charged
        step.spend(self.charged_to, 1, step.x.shape[0], self.now() - began - charged)

    def mask(self, sigma: torch.Tensor) -> torch.Tensor | None:
        """The inpainting mask in force at sigma (batch,), 1 = inside, in latent cells; None when everything is sampled."""
        function = self.main.options.get("denoise_mask_function")  # Differential Diffusion lets it shrink
        if self.denoise_mask is None or function is None:
            return self.denoise_mask
        return function(sigma, self.denoise_mask, extra_options={"model": self.guider, "sigmas": self.sigmas})

    def with_surroundings(self, estimate: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The estimate (batch, ...) with the given picture around the inpainting mask, which is what the sampler makes of it."""
        mask = self.mask(sigma)
        if mask is None or self.latent_image is None:
            return estimate
        mask = mask.clone()  # made by the sampler, which autograd must not save
        return estimate * mask + self.latent_image * (1 - mask)

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

    def predict_noise(self, executor, x, sigma, model_options=None, *args, **kwargs):
        """Around each evaluation of the guider: opens the step, and tells the listeners when it is finished."""

        def evaluate(at: torch.Tensor) -> torch.Tensor:
            with self.charge(MODEL):
                if not self.differentiating:
                    return executor(at, sigma, model_options, *args, **kwargs)
                self.step.x = at  # so that other guidances are differentiated too
                try:
                    # Autograd must not save an inference tensor, and the sampler's sigma is one.
                    return executor(at, sigma.clone(), options_for_gradient(model_options), *args, **kwargs)
                finally:
                    self.step.x = x

        self.step = Step(self, x, sigma)
        began = self.now()
        try:
            denoised = evaluate(x) if self.around is None else self.around(self.step, evaluate)
            self.step.seconds = self.now() - began
            self.step.denoised = denoised
            for listener in self.listeners:
                listener(self.step)
            return denoised
        finally:
            self.step = None

    def calc_cond_batch(self, executor, model, conds, x, sigma, model_options):
        """Around the main model's predictions: keeps the first one of each list of conds, as it is before pre-CFG hooks.

        The guider's own call, the first one at the step's x, gets what `beside` asks for appended.
        """
        step, beside = self.step, []
        positive = next((i for i, cond in enumerate(conds) if cond is not None and cond is self.guider.conds.get("positive")), None)
        if step is not None and x is step.x and positive is not None and not step.own_predictions:
            beside = [cond for ask in self.beside for cond in ask(step)]
        self.same_as = {len(conds) + i: positive for i in range(len(beside))}
        try:
            predictions = executor(model, [*conds, *beside], x, sigma, model_options)
        finally:
            self.same_as = {}
        if step is not None:
            for cond, prediction in zip([*conds, *beside], predictions, strict=False):
                if cond is not None:
                    step.own_predictions.setdefault(id(cond), (cond, prediction))
        return predictions[: len(conds)]

    def apply_model(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        """Around each forward of any network of this run: counts and times it."""
        options = {} if transformer_options is None else transformer_options
        if self.same_as and "cond_or_uncond" in options:
            # Attention patches know a positive (0) and a negative (1) at this place of the list, and nothing after them.
            options["cond_or_uncond"][:] = [self.same_as.get(i, i) for i in options["cond_or_uncond"]]
        began = self.now()
        out = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        if self.step is not None:
            self.step.spend(self.charged_to, 1, x.shape[0], self.now() - began)
        return out
