"""What the tests of the model pair share: an independent guider written from the paper, ways to sample, and
counting.
"""

import comfy.model_management
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

STEPS = 2  # enough for what a step leaves to the next one


def pair(run_node, model, guide, weight=2.0, **options):
    """The MODEL that the node gives."""
    return run_node("GuidanceLab_AutoguidanceModelPair", model=model, guide_model=guide, weight=weight, **options)[0]


def run_guider(
    guider, latent, sampler_name="euler", steps=STEPS, seed=0, scheduler="normal", denoise_mask=None, sigmas=None
):
    """Samples as SamplerCustomAdvanced does, on the sigmas and the noise of KSampler; returns the latent tensor."""
    with torch.inference_mode():
        if sigmas is None:
            sigmas = comfy.samplers.calculate_sigmas(
                guider.model_patcher.get_model_object("model_sampling"), scheduler, steps
            )
            if sampler_name in comfy.samplers.KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS:
                sigmas = comfy.samplers.calculate_sigmas(
                    guider.model_patcher.get_model_object("model_sampling"), scheduler, steps + 1
                )
                sigmas = torch.cat([sigmas[:-2], sigmas[-1:]])
        noise = comfy.sample.prepare_noise(latent["samples"], seed)
        sampler = comfy.samplers.sampler_object(sampler_name)
        return guider.sample(
            noise, latent["samples"], sampler, sigmas, denoise_mask=denoise_mask, seed=seed, disable_pbar=True
        )


class PaperGuider(comfy.samplers.CFGGuider):
    """Eq. 6 with two separate modules, written without the pack: D = D_m + (w_u - 1)(D_m - D_u) + (w_c - 1)(D_m -
    D_c).
    """

    def __init__(self, main, guide, w_u, w_c):
        super().__init__(main)
        self.guide, self.w_u, self.w_c = guide, w_u, w_c
        self.guide_positive = None

    def outer_sample(self, noise, *args, **kwargs):
        comfy.model_management.load_models_gpu([self.model_patcher, self.guide])
        self.guide.pre_run()
        conds = self.conds if self.guide_positive is None else {"positive": self.guide_positive}
        self.guide_conds = {k: [c.copy() for c in v] for k, v in conds.items()}
        try:
            return super().outer_sample(noise, *args, **kwargs)
        finally:
            self.guide.cleanup()

    def inner_sample(self, noise, latent_image, device, sampler, sigmas, denoise_mask, *args, **kwargs):
        image = self.inner_model.process_latent_in(latent_image) if torch.count_nonzero(latent_image) else latent_image
        self.guide_conds = comfy.samplers.process_conds(
            self.guide.model, noise, self.guide_conds, device, image, denoise_mask, 0
        )
        return super().inner_sample(noise, latent_image, device, sampler, sigmas, denoise_mask, *args, **kwargs)

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        main = self.inner_model
        negative = None if self.w_u == 1.0 else self.conds.get("negative")
        c, u = comfy.samplers.calc_cond_batch(main, [self.conds["positive"], negative], x, timestep, model_options)
        cfg = u + (c - u) * self.w_u if negative is not None else c
        if self.w_c == 1.0:
            return cfg
        (b,) = comfy.samplers.calc_cond_batch(
            self.guide.model, [self.guide_conds["positive"]], x, timestep, self.guide.model_options
        )
        return cfg + (c - b) * (self.w_c - 1.0)


class CallCounter:
    """A clone of a MODEL whose forwards are counted: `calls`, `rows`, and the sigma of each call."""

    def __init__(self, model):
        self.sigmas, self.rows = [], []
        self.model = model.clone()
        self.model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "count", self._count)

    def _count(self, executor, x, t, *args, **kwargs):
        self.sigmas.append(t[0].item())
        self.rows.append(x.shape[0])
        return executor(x, t, *args, **kwargs)

    @property
    def calls(self):
        return len(self.rows)


def with_lora(model, seed=5, strength=1.0, part="attn2.to_k.weight"):
    """A clone of a MODEL with a weight patch on every cross-attention key matrix, as a LoRA loader adds it."""
    generator = torch.Generator().manual_seed(seed)
    weights = {key: value for key, value in model.model.state_dict().items() if key.endswith(part)}
    patches = {key: ("diff", (0.2 * torch.randn(value.shape, generator=generator),)) for key, value in weights.items()}
    patched = model.clone()
    assert len(patched.add_patches(patches, strength)) == len(patches) > 0
    return patched


def with_attention_patch(model):
    """A clone of a MODEL whose middle self-attention passes its values through (what PAG does): a patch without
    weights.
    """
    patched = model.clone()
    patched.set_model_attn1_replace(lambda q, k, v, extra_options, mask=None: v, "middle", 0)
    return patched
