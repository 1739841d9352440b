"""GLIDE's own samplers in ComfyUI: ancestral steps with the variance that the network learned, and DDIM."""

import comfy.samplers
import torch
from tqdm.auto import trange

from ...glide.diffusion import Schedule
from .run_state import STATE, TEMPERATURE, StepState, found

ANCESTRAL, DDIM = "ancestral", "ddim"
SEED_OFFSET = 0x5DEECE66D  # steps must not repeat the first noise, which the host draws from the same number
NEARLY_ALL_NOISE = 997 / 1000  # fast27 starts at timestep 997, and the original draws pure noise there


class GlideSampler(comfy.samplers.KSAMPLER):
    """A SAMPLER that also starts as the original: from pure noise, times the temperature that GLIDE Upsample asks
    for.
    """

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, *rest, **kwargs):
        temperature = found(model_wrap.conds.get("positive"), TEMPERATURE)
        if temperature is not None:
            noise = noise * temperature
        return super().sample(model_wrap, sigmas, extra_args, callback, noise, *rest, **kwargs)

    def max_denoise(self, model_wrap, sigmas) -> bool:
        levels = model_wrap.inner_model.model_sampling.sigmas
        start = levels[min(int(NEARLY_ALL_NOISE * len(levels)), len(levels) - 1)]
        return float(sigmas[0]) >= float(start) * (1 - 1e-5)


def glide_sampler(method: str, eta: float = 0.0, noise_sampler=None) -> GlideSampler:
    """The SAMPLER of a method. `noise_sampler(i)` gives the noise of step i in place of the seed's."""
    options = {"method": method, "eta": eta, "noise_sampler": noise_sampler}
    return GlideSampler(sample_glide, options)


@torch.no_grad()
def sample_glide(
    model, x, sigmas, extra_args=None, callback=None, disable=None, method=ANCESTRAL, eta=0.0, noise_sampler=None
):
    """A sampler function of k-diffusion's form: x [B, 3, H, W] = picture + sigma*noise at sigmas[0] → the same at
    sigmas[-1].

    `model` is the host's, around a guider of a GLIDE MODEL; what it says of a step lies in a StepState. Steps are those
    of `glide.diffusion`; a gradient of a score that a guidance has added moves the mean by variance*gradient
    (ancestral) or the noise (DDIM), and is not clamped.
    """
    guider, options = model.inner_model, extra_args["model_options"]
    if not hasattr(guider.inner_model, "fingerprint"):
        raise ValueError(
            "GLIDE Sampler steps by a variance that only GLIDE's networks predict; connect a model of GLIDE Loader."
        )
    if "positive" not in guider.conds:
        names = ", ".join(guider.conds)
        raise ValueError(f"GLIDE Sampler needs a positive conditioning, and this guider has none (only {names}).")
    schedule = Schedule.from_sigmas(sigmas.double().flip(0).tolist())
    draw = noise_sampler or seeded(x, extra_args.get("seed"))
    state = StepState()
    options.setdefault("transformer_options", {})[STATE] = state
    rows, steps = x.new_ones([x.shape[0]]), len(schedule)
    x = x / (1 + sigmas[0] ** 2).sqrt()
    for step in trange(steps, disable=disable):
        i = steps - 1 - step
        sigma = sigmas[step] * rows
        state.clear()
        noisy = x * (1 + sigmas[step] ** 2).sqrt()
        denoised = model(noisy, sigma, **extra_args)
        if callback is not None:
            callback({"x": noisy, "i": step, "sigma": sigmas[step], "sigma_hat": sigmas[step], "denoised": denoised})
        noise = draw(step)
        if method == DDIM:
            x = schedule.ddim(denoised, schedule.eps(x, denoised, i), i, noise, eta)
            continue
        x0, shift = split(state, denoised, model, sigma, extra_args)
        mean = schedule.posterior_mean(x, x0, i)
        log_variance = schedule.log_variance(state.variance(guider.conds["positive"], noisy, sigma), i)
        # The shift of an estimate by a gradient g of log p is (1 - abar)/sqrt(abar)*g; the mean moves by variance*g.
        mean = mean + log_variance.exp() * (schedule.abar[i] ** 0.5 / (1 - schedule.abar[i])) * shift
        x = mean + (0.5 * log_variance).exp() * noise if sigmas[step + 1] > 0 else mean
    return x * (1 + sigmas[-1] ** 2).sqrt()


def split(state: StepState, denoised, model, sigma, extra_args) -> tuple[torch.Tensor, torch.Tensor]:
    """(the estimate within the model's limits, what guidances by the gradient of a score have added to it)."""
    x0, mask = denoised if state.limited is None else state.limited, extra_args.get("denoise_mask")
    if mask is not None and state.limited is not None:
        # As the host does after the guider: outside the mask the estimate is the given picture.
        function = extra_args["model_options"].get("denoise_mask_function")
        if function is not None:
            mask = function(sigma, mask, extra_options={"model": model.inner_model, "sigmas": model.sigmas})
        x0 = x0 * mask + model.latent_image * (1.0 - mask)
    return x0, denoised - x0


def seeded(x: torch.Tensor, seed: int | None):
    """Noise of a generator of its own, the same on every device."""
    generator = torch.Generator().manual_seed(((seed or 0) + SEED_OFFSET) % 2**63)
    return lambda step: torch.randn(x.shape, generator=generator).to(x)
