"""Whether two models can be mixed step by step: one latent space, one kind of noise, one meaning of sigma, one width of
context.
"""

import math

import torch
from comfy.model_patcher import ModelPatcher

from ..host import one_network

_CONTEXT_WIDTHS = ("context_dim", "context_in_dim", "cap_feat_dim", "text_dim", "caption_channels")


def context_width(model: ModelPatcher) -> int | None:
    """Width of the text conditioning that the model's network was built for, or None where its configuration does not
    say.
    """
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
    refuse_unlike_sampling(main, guide)
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


def refuse_unlike_sampling(main: ModelPatcher, guide: ModelPatcher) -> str | None:
    """ValueError when the two do not mean the same by a noisy latent, a sigma or a percent, or when one network is read
    as two prediction types. A later node can change either side, so it is asked again in every run.

    Returns a warning where two networks are read differently by a node: right when each is read as it was trained.
    """
    sampling, guide_sampling = main.get_model_object("model_sampling"), guide.get_model_object("model_sampling")
    kind, guide_kind = _kind(sampling), _kind(guide_sampling)
    if _frame(sampling) != _frame(guide_sampling):
        raise ValueError(
            f"guide_model predicts {guide_kind} and model {kind}, so their noisy latents are not the same thing; "
            "choose a guide with the same prediction type and put any ModelSampling or noise scale node on both."
        )
    for name, sigma, guide_sigma in _sigma_scale(sampling, guide_sampling):
        if not math.isclose(sigma, guide_sigma, rel_tol=1e-3, abs_tol=1e-6):
            raise ValueError(
                f"{name} means sigma {sigma:.4g} in model and {guide_sigma:.4g} in guide_model; choose a guide with "
                "the same noise schedule and put any ModelSampling node (shift, zero terminal SNR) on both."
            )
    if _reading(sampling) == _reading(guide_sampling):
        return None
    if one_network(main, guide):
        raise ValueError(
            f"model and guide_model are one network, which a ModelSampling node makes predict {kind} in model and "
            f"{guide_kind} in guide_model; put the same ModelSampling node on both."
        )
    if not {"model_sampling"} & (main.object_patches.keys() | guide.object_patches.keys()):
        return None  # each as its file says
    return (
        f"model predicts {kind} and guide_model {guide_kind}, by a ModelSampling node on one of them: right only when "
        "the two networks were trained so; else put the node on both."
    )


def _frame(sampling) -> tuple:
    """What a noisy latent is made by: x + sigma n, or (1 - sigma) x + sigma s n with a noise scale s."""
    return type(sampling).noise_scaling, float(getattr(sampling, "noise_scale", 1.0))


def _reading(sampling) -> tuple:
    """How a network is asked and its answer read: prediction type, scale of the data, timestep at a middle sigma."""
    middle = torch.as_tensor(float(sampling.percent_to_sigma(0.5)))
    timestep = float(sampling.timestep(middle.to(sampling.sigma_max.device)))
    kind = type(sampling)
    return (
        kind.calculate_denoised,
        kind.calculate_input,
        float(getattr(sampling, "sigma_data", 1.0)),
        round(timestep, 1),
    )


def _kind(sampling) -> str:
    """The host's name of a prediction type: the class that reads the network's answer, e.g. EPS, V_PREDICTION or
    CONST.
    """
    return next(c.__name__ for c in type(sampling).__mro__ if "calculate_denoised" in vars(c))


def _sigma_scale(a, b) -> list[tuple[str, float, float]]:
    points = [
        ("The largest noise level", float(a.sigma_max), float(b.sigma_max)),
        ("The smallest", float(a.sigma_min), float(b.sigma_min)),
    ]
    for percent in (0.25, 0.5, 0.75):
        points.append((f"Percent {percent}", float(a.percent_to_sigma(percent)), float(b.percent_to_sigma(percent))))
    return points
