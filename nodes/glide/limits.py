"""What GLIDE's sampling does to every estimate of the picture, on the MODEL: the known part is put back, and it is
clamped to -1..1.

Both come after all that combines predictions (CFG, autoguidance) and before what adds the gradient of a score, which
the original does not clamp either. Without the clamp a first step from the noisiest level, 20291, leaves the range by
as much.
"""

import logging

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from .run_state import IMAGE, MASK, STATE, found

KEY = "guidance_lab_glide_limits"


def limit(args: dict) -> torch.Tensor:
    """The post-CFG function."""
    estimate, cond = args["denoised"], args["cond"]
    image, mask = found(cond, IMAGE), found(cond, MASK)
    if image is not None and mask is not None:
        image, mask = (comfy.utils.repeat_to_batch_size(part.to(estimate), len(estimate)) for part in (image, mask))
        estimate = estimate * (1 - mask) + image * mask
    estimate = estimate.clamp(-1, 1)
    state = args["model_options"].get("transformer_options", {}).get(STATE)
    if state is not None and state.limited is None:
        state.limited = estimate.detach()
    return estimate


def attach_limits(model: ModelPatcher) -> None:
    """Puts the limits on a MODEL that nobody else has yet."""
    model.set_model_sampler_post_cfg_function(limit)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _outer_sample)


def _adds_a_gradient(function) -> bool:
    return getattr(getattr(function, "guidance", None), "adds_a_gradient", False)


def _outer_sample(executor, noise, latent_image, sampler, sigmas, denoise_mask=None, *rest, **kwargs):
    """Around a whole sampling: puts the limits to their place among the post-CFG functions, and takes the host's
    inpainting off.
    """
    guider = executor.class_obj
    options = guider.model_options  # a copy that lives as long as this sampling
    functions = options.get("sampler_post_cfg_function", [])
    before = [f for f in functions if f is not limit and not _adds_a_gradient(f)]
    after = [f for f in functions if f is not limit and _adds_a_gradient(f)]
    options["sampler_post_cfg_function"] = [*before, limit, *after]
    if denoise_mask is not None and guider.model_patcher.model.config.inpaints:
        logging.warning(
            "Guidance Lab: this LATENT has a noise mask, which is another way of inpainting; GLIDE's inpaint networks "
            "read picture and mask themselves, so it is ignored: connect them to GLIDE Inpaint."
        )
        denoise_mask = None
    return executor(noise, latent_image, sampler, sigmas, denoise_mask, *rest, **kwargs)
