"""What the tests of CLIP guidance share: real scorers small enough for a test, ways to sample, and a look at single
evaluations.
"""

import comfy.latent_formats
import comfy.samplers
import open_clip
import torch
from comfy.model_patcher import ModelPatcher

from guidance_lab.nodes.clip_guidance.objective import Objective, Scorer
from guidance_lab.nodes.host import Guidance, attach

RGB = {"decoder": "latent_rgb"}


class LinearScorer(Scorer):
    """The inner product of the view with a fixed pattern: its gradient is the pattern, whatever the view shows."""

    name = "linear"

    def __init__(self, side: int = 8, seed: int = 0, factor: float = 1.0):
        self.side = side
        with torch.inference_mode(False):
            self.pattern = factor * torch.randn(3, side, side, generator=torch.Generator().manual_seed(seed))

    def score(self, view, step):
        return (view * self.pattern.to(view)).flatten(1).sum(1)


class QuadraticScorer(LinearScorer):
    """Minus half the squared distance of the view to a target picture."""

    def score(self, view, step):
        return -0.5 * ((view - self.pattern.to(view)) ** 2).flatten(1).sum(1)


class ConstantScorer(Scorer):
    """A score with a gradient of `value` everywhere: 0, NaN or infinity, as a broken scorer gives it."""

    def __init__(self, value: float, side: int = 8):
        self.value, self.side = value, side

    def score(self, view, step):
        return (view * self.value).flatten(1).sum(1)


class TinyCLIP(Scorer):
    """Cosine to a text of a random open_clip model, two layers small, under a ModelPatcher as a loader makes it."""

    name = "tiny CLIP"

    def __init__(self, inference: bool = False, side: int = 16, seed: int = 0):
        self.side = side
        self.calls = 0
        with torch.inference_mode(inference):
            vision = dict(image_size=side, patch_size=8, width=32, layers=2, head_width=16)
            text = dict(context_length=8, vocab_size=64, width=32, heads=2, layers=1)
            network = open_clip.model.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval().requires_grad_(False)
            generator = torch.Generator().manual_seed(seed)
            for parameter in network.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 6)
        self.models = (ModelPatcher(network, load_device=torch.device("cpu"), offload_device=torch.device("cpu")),)
        with torch.inference_mode(False), torch.no_grad():
            self.target = torch.nn.functional.normalize(torch.randn(1, 16, generator=generator), dim=-1)

    def score(self, view, step):
        self.calls += 1
        embedding = self.models[0].model.encode_image(view * 2 - 1, normalize=True)
        return (embedding * self.target).sum(-1)


def objective(*scorers) -> Objective:
    """The sum of the scorers."""
    return Objective(tuple((1.0, scorer) for scorer in scorers))


def guide(run_node, model, scorer, **options):
    """The MODEL that CLIP Guidance (patch) gives, acting at every step unless told otherwise."""
    settings = dict(decoder=RGB, strength=0.5, start_percent=0.0, crops=0)
    settings |= options
    return run_node("GuidanceLab_CLIPGuidance", model=model, objective=objective(scorer), **settings)[0]


def pixel_space(model):
    """A clone of a tiny MODEL whose latents are pictures: three channels in -1..1, decoded by doing nothing."""
    model.model.latent_format = comfy.latent_formats.ChromaRadiance()
    return model


class Watch(Guidance):
    """Keeps what every evaluation of a run was: `steps`, their numbers in the schedule, `indices`, and the shifts that
    were added, `shifts` (None where nothing was).
    """

    name = "watch"

    def __init__(self):
        self.steps, self.indices, self.shifts = [], [], []

    def observe(self, step, state):
        self.steps.append(step)
        self.indices.append(step.index)
        self.shifts.extend(term.value for term in step.terms if term.name.startswith("CLIP guidance"))


def watched(model):
    """A clone of the MODEL, and the `Watch` on it."""
    watch = Watch()
    return attach(model, watch), watch


def one_evaluation(model, x, sigma, positive, negative=None, cfg=1.0, next_sigma=None, callback=None):
    """The guided x0 at exactly this x and sigma, out of the middle of a real sampling run of CFGGuider."""
    seen = []

    def sampler_function(wrapped, noise, sigmas, extra_args, callback, disable):
        seen.append(wrapped(x, sigmas[0] * x.new_ones([x.shape[0]]), **extra_args))
        return seen[0]

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, positive if negative is None else negative)
    guider.set_cfg(cfg)
    with torch.inference_mode():
        sigmas = torch.tensor([sigma, sigma / 2 if next_sigma is None else next_sigma])
        guider.sample(
            torch.zeros_like(x),
            torch.zeros_like(x),
            comfy.samplers.KSAMPLER(sampler_function),
            sigmas,
            disable_pbar=True,
        )
    return seen[0]
