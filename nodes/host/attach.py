"""Putting a guidance on a MODEL.

The MODEL clone carries three things: a post-CFG function per guidance (their order is the wiring order), the extra
models, and one OUTER_SAMPLE wrapper. The wrapper makes a `Driver` for each sampling, which adds everything else.
"""

import uuid

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .driver import RUN, Driver, extra_key
from .evaluate import needs_own_module
from .guidance import Guidance
from .models import KEY, attach_extra_model


class _Attachment:
    """A guidance on a MODEL, as the post-CFG function that the host calls. The key tells two attachments on one MODEL
    apart.
    """

    def __init__(self, guidance: Guidance):
        self.guidance = guidance
        self.key = f"{KEY}.{uuid.uuid4().hex}"

    def __call__(self, args: dict) -> torch.Tensor:
        driver: Driver | None = args["model_options"].get(RUN)
        if driver is None:
            raise RuntimeError(
                f"{self.guidance.name} needs a sampler that runs ComfyUI's OUTER_SAMPLE wrappers, and this one does "
                f"not; "
                "use KSampler, or SamplerCustomAdvanced with any guider."
            )
        return driver.post_cfg(self.key, args)


def attach(model: ModelPatcher, guidance: Guidance) -> ModelPatcher:
    """A clone of the MODEL that carries the guidance after all that it carried before. Raises what `own_module`
    raises.
    """
    attachment = _Attachment(guidance)
    patched = model.clone()
    patched.set_model_sampler_post_cfg_function(attachment)
    for place, extra in enumerate(guidance.extra_models):
        attach_extra_model(patched, extra_key(attachment.key, place), extra.patcher, separate=needs_own_module(extra))
    for place, loaded in enumerate(guidance.loaded_models):
        attach_extra_model(patched, f"{attachment.key}.loaded.{place}", loaded)
    if not patched.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _outer_sample)
    return patched


def attached(model: ModelPatcher) -> list[Guidance]:
    """The guidances that the MODEL carries, in wiring order."""
    hooks = model.model_options.get("sampler_post_cfg_function", [])
    return [hook.guidance for hook in hooks if isinstance(hook, _Attachment)]


def _outer_sample(executor, *args, **kwargs):
    guider = executor.class_obj
    attached = [f for f in guider.model_options.get("sampler_post_cfg_function", []) if isinstance(f, _Attachment)]
    shapes = {k: v for k, v in kwargs.items() if k == "latent_shapes"}
    driver = Driver(guider, [(attachment.key, attachment.guidance) for attachment in attached], shapes)
    return driver.sample(executor, *args, **kwargs)
