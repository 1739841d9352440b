"""Autoguidance: steer a model away from a weaker version of itself (Karras et al. 2024, arXiv 2406.02507).

Every quantity is a prediction of the clean latent x0, any shape, all of one shape. The conversions from eps, v or flow
to x0 are affine in the network output with the same x and sigma for both models, so mixing here equals mixing there.
"""

import torch


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    # Half precision would lose the small difference of two predictions.
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def guidance_term(main: torch.Tensor, guide: torch.Tensor, weight: float) -> torch.Tensor:
    """What autoguidance adds to a prediction: (w - 1)(D1 - D0), in float32 or wider.

    main, guide: x0 predictions of the good model (D1) and of the guide (D0) on the same conditioning, same shape.
    weight: w; 1 adds nothing, above 1 guides away from the guide, 0 lands on the guide.
    """
    return (_wide(main) - _wide(guide)) * (weight - 1.0)


def autoguided(main: torch.Tensor, guide: torch.Tensor, weight: float) -> torch.Tensor:
    """Eq. 3: D_w = w D1 + (1 - w) D0, in the dtype of `main`; weight 1 returns `main` itself."""
    return add_term(main, guidance_term(main, guide, weight)) if weight != 1.0 else main


def add_term(prediction: torch.Tensor, term: torch.Tensor) -> torch.Tensor:
    """prediction + term, summed in float32 or wider and returned in the dtype of the prediction (same shape)."""
    return (_wide(prediction) + term).to(prediction.dtype)


def multi_guided(main: torch.Tensor, guides: list[tuple[torch.Tensor, float]]) -> torch.Tensor:
    """Eq. 6: D = D_m + sum_i (w_i - 1)(D_m - D_i); every difference is measured from the main prediction.

    guides: pairs (D_i, w_i); an unconditional prediction makes the classifier-free term, a weaker model's the
    autoguidance term.
    """
    result = main
    for guide, weight in guides:
        if weight != 1.0:
            result = add_term(result, guidance_term(main, guide, weight))
    return result
