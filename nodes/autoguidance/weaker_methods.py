"""The methods of Weaker Version: each takes a MODEL and settings, gives a weaker MODEL, or the same one when
neutral.
"""

import math

from ...guidance import weaker
from ...guidance.windows import window_starts
from ..host.blocks import (
    Block,
    deep_input_blocks,
    dit_layout,
    droppable_blocks,
    is_unet,
    list_blocks,
    middle_blocks,
    parse_blocks,
)
from . import perturb
from .blend import weight_blend
from .sliding_window import through_windows


def _instead(network, *refused: str) -> str:
    """The methods that work with this network, in words: all but the refused ones."""
    layout = dit_layout(network)
    known = is_unet(network) or layout is not None
    works = {
        "block_skip": known and bool(list_blocks(network)),
        "token_shuffle": known and bool(list_blocks(network)) and (layout is None or layout.shuffles),
        "identity_attention": layout is not None and layout.joint_attention,
        "blurred_queries": layout is not None and layout.joint_attention,
        "higher_sigma": True,
        "weight_blend": True,
        "sliding_window": layout is None or layout.windows,
    }
    names = [name for name, does in works.items() if does and name not in refused]
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _choosable(model, attention_only: bool = False) -> list[Block]:
    """The model's blocks. Raises ValueError when ComfyUI has no hook for any of them."""
    network = model.get_model_object("diffusion_model")
    available = list_blocks(network, attention_only)
    if not available:
        raise ValueError(
            f"ComfyUI has no checked hook into the blocks of {type(network).__name__}, so its blocks cannot be "
            f"weakened: choose the method {_instead(network)}."
        )
    return available


def _attention_blocks(model, text: str) -> list[Block]:
    """The chosen blocks. Raises ValueError where the network's attention cannot be told apart from outside."""
    network = model.get_model_object("diffusion_model")
    available = _choosable(model, attention_only=True)
    layout = dit_layout(network)
    if layout is not None and not layout.joint_attention:
        raise ValueError(
            f"The image tokens inside the attention of {type(network).__name__} cannot be told apart from outside: "
            f"choose the method {_instead(network)}."
        )
    return parse_blocks(text, available, middle_blocks(network, available))


def _skip(network):
    """(options, blocks) → options without these blocks."""
    if is_unet(network):
        return perturb.skip_unet_blocks
    return lambda options, blocks: perturb.skip_dit_blocks(options, dit_layout(network), blocks)


def _tokens(network, x) -> perturb.Tokens:
    """What a latent (batch, channels[, frames], height, width) is to the network."""
    patch = network.patch_size if isinstance(network.patch_size, list | tuple) else (1, *[network.patch_size] * 2)
    frames = math.ceil(x.shape[2] / patch[0]) if x.ndim == 5 else 1
    height, width = (math.ceil(size / side) for size, side in zip(x.shape[-2:], patch[-2:], strict=True))
    multiple = getattr(network, "pad_tokens_multiple", None) or 1
    padded = math.ceil(frames * height * width / multiple) * multiple
    return perturb.Tokens(frames, height, width, padded)


def block_skip(model, blocks: str):
    """A MODEL without the given transformer blocks (skip-layer guidance)."""
    network = model.get_model_object("diffusion_model")
    available = _choosable(model)
    chosen = parse_blocks(blocks, available, middle_blocks(network, available))
    if not chosen:
        return model
    skip = _skip(network)
    return perturb.per_evaluation(model, lambda options, x, sigma: skip(options, chosen))


def stochastic_block_skip(model, drop_fraction: float, seed: int):
    """A MODEL without a share of its blocks, drawn by seed and sigma (S2-Guidance)."""
    available = _choosable(model)
    candidates = droppable_blocks(available)
    if drop_fraction == 0:
        return model
    if not candidates:
        raise ValueError(
            f"This model has only {len(available)} transformer blocks, none of which can be dropped: use block_skip."
        )
    skip = _skip(model.get_model_object("diffusion_model"))

    def change(options, x, sigma):
        return skip(
            options, weaker.choose_blocks(candidates, drop_fraction, weaker.step_generator(seed, float(sigma[0])))
        )

    return perturb.per_evaluation(model, change)


def identity_attention(model, blocks: str):
    """A MODEL whose self-attention is the identity in the given blocks (PAG)."""
    chosen = _attention_blocks(model, blocks)
    if not chosen:
        return model
    network = model.get_model_object("diffusion_model")
    if is_unet(network):
        return perturb.per_evaluation(model, lambda options, x, sigma: perturb.identity_unet_attention(options, chosen))

    def change(options, x, sigma):
        return perturb.identity_dit_attention(options, dit_layout(network), chosen, _tokens(network, x))

    return perturb.per_evaluation(model, change)


def blurred_queries(model, blocks: str, blur_sigma: float):
    """A MODEL whose self-attention queries are blurred in the given blocks (SEG)."""
    chosen = _attention_blocks(model, blocks)
    if not chosen or blur_sigma == 0:
        return model
    network = model.get_model_object("diffusion_model")
    if is_unet(network):
        return perturb.per_evaluation(
            model, lambda options, x, sigma: perturb.blur_unet_queries(options, chosen, blur_sigma)
        )

    def change(options, x, sigma):
        return perturb.blur_dit_queries(options, dit_layout(network), chosen, blur_sigma, _tokens(network, x))

    return perturb.per_evaluation(model, change)


def token_shuffle(model, blocks: str, seed: int):
    """A MODEL that sees its tokens in a random order in the given blocks, drawn by seed and sigma (TPG)."""
    network = model.get_model_object("diffusion_model")
    available = _choosable(model)
    layout = dit_layout(network)
    if layout is not None and not layout.shuffles:
        raise ValueError(
            f"In ComfyUI the image tokens of {type(network).__name__} cannot be shuffled alone: choose the method "
            f"{_instead(network)}."
        )
    chosen = parse_blocks(blocks, available, deep_input_blocks(network, available))
    if not chosen:
        return model

    def change(options, x, sigma):
        generator = weaker.step_generator(seed, float(sigma[0]))

        def order(count, device):
            return weaker.token_order(count, generator, device)

        if is_unet(network):
            return perturb.shuffle_unet_tokens(options, chosen, order)
        return perturb.shuffle_dit_tokens(options, layout, chosen, order)

    return perturb.per_evaluation(model, change)


def higher_sigma(model, sigma_shift: float):
    """A MODEL whose network is told a higher noise level than there is (Self-Guidance)."""
    return perturb.at_higher_sigma(model, sigma_shift) if sigma_shift != 0 else model


def sliding_window(model, window: float, overlap: float):
    """A MODEL that sees the picture through overlapping windows only (SWG)."""
    window_starts(8, window, overlap)  # ValueError where the two are out of range
    network = model.get_model_object("diffusion_model")
    layout = dit_layout(network)
    if layout is not None and not layout.windows:
        raise ValueError(
            f"{type(network).__name__} cannot be shown a part of its latent: choose the method {_instead(network)}."
        )
    return model if window == 1 else through_windows(model, window, overlap)


METHODS = {
    "block_skip": block_skip,
    "stochastic_block_skip": stochastic_block_skip,
    "identity_attention": identity_attention,
    "blurred_queries": blurred_queries,
    "token_shuffle": token_shuffle,
    "higher_sigma": higher_sigma,
    "weight_blend": weight_blend,
    "sliding_window": sliding_window,
}
