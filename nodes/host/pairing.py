"""Whether two models can be mixed step by step: one latent space, one kind of noise, one meaning of sigma, one width of context."""

import math

from comfy.model_patcher import ModelPatcher

_CONTEXT_WIDTHS = ("context_dim", "context_in_dim", "cap_feat_dim", "text_dim", "caption_channels")


def context_width(model: ModelPatcher) -> int | None:
    """Width of the text conditioning that the model's network was built for, or None where its configuration does not say."""
    config = model.model.model_config.unet_config
    width = next((config[name] for name in _CONTEXT_WIDTHS if config.get(name) is not None), None)
    return width[0] if isinstance(width, list) else width


def refuse_unlike(main: ModelPatcher, guide: ModelPatcher, guide_conditioning: list | None = None) -> None:
    """ValueError, in one sentence, when predictions of `guide` cannot be subtracted from predictions of `main`.

    guide_conditioning: CONDITIONING for the guide, or None when it gets the main model's; only its width is looked at.
    """
    latent, guide_latent = main.model.latent_format, guide.model.latent_format
    if type(latent) is not type(guide_latent) or latent.latent_channels != guide_latent.latent_channels:
        raise ValueError(
            f"guide_model works on {type(guide_latent).__name__} latents and model on {type(latent).__name__} latents; "
            "choose a guide of the same model family."
        )
    sampling, guide_sampling = main.get_model_object("model_sampling"), guide.get_model_object("model_sampling")
    if type(sampling).noise_scaling is not type(guide_sampling).noise_scaling:
        raise ValueError(
            f"guide_model predicts {_kind(guide_sampling)} and model {_kind(sampling)}, so their noisy latents are not the same thing; "
            "choose a guide with the same prediction type."
        )
    for name, sigma, guide_sigma in _sigma_scale(sampling, guide_sampling):
        if not math.isclose(sigma, guide_sigma, rel_tol=1e-3, abs_tol=1e-6):
            raise ValueError(
                f"{name} means sigma {sigma:.4g} in model and {guide_sigma:.4g} in guide_model; choose a guide with the same noise "
                "schedule and put any ModelSampling node (shift, zero terminal SNR) on both."
            )
    width, guide_width = context_width(main), context_width(guide)
    if guide_conditioning is not None:
        given = guide_conditioning[0][0]
        if guide_width is not None and given is not None and given.shape[-1] != guide_width:
            raise ValueError(
                f"guide_positive is {given.shape[-1]} numbers wide and guide_model takes {guide_width}; "
                "encode it with the text encoder that belongs to the guide model."
            )
    elif width is not None and guide_width is not None and width != guide_width:
        raise ValueError(
            f"guide_model takes conditioning {guide_width} numbers wide and model {width}; "
            "encode the same prompt with the guide's own text encoder and connect it to guide_positive."
        )


def _kind(sampling) -> str:
    """The host's name of a prediction type: the second base of its model sampling class, e.g. EPS, V_PREDICTION or CONST."""
    return next(c.__name__ for c in type(sampling).__mro__ if "noise_scaling" in vars(c) or c.__name__ in ("V_PREDICTION", "EDM", "X0"))


def _sigma_scale(a, b) -> list[tuple[str, float, float]]:
    points = [("The largest noise level", float(a.sigma_max), float(b.sigma_max)), ("The smallest", float(a.sigma_min), float(b.sigma_min))]
    for percent in (0.25, 0.5, 0.75):
        points.append((f"Percent {percent}", float(a.percent_to_sigma(percent)), float(b.percent_to_sigma(percent))))
    return points
