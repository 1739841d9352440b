"""The methods of Weaker Version: each takes a MODEL and settings, gives a weaker MODEL, or the same one when neutral."""

import math

from ..guidance import weaker
from .host import perturb
from .host.blocks import Block, deep_input_blocks, dit_layout, droppable_blocks, is_unet, list_blocks, middle_blocks, parse_blocks


def _choosable(model) -> list[Block]:
    """The model's blocks. Raises ValueError when ComfyUI has no hook for any of them."""
    network = model.get_model_object("diffusion_model")
    available = list_blocks(network)
    if not available:
        raise ValueError(
            f"ComfyUI has no checked hook into the blocks of {type(network).__name__}, so its blocks cannot be weakened: "
            "choose the method higher_sigma or weight_blend, which work with every model."
        )
    return available


def _attention_blocks(model, text: str) -> list[Block]:
    """The chosen blocks. Raises ValueError where the network's attention cannot be told apart from outside."""
    network = model.get_model_object("diffusion_model")
    available = _choosable(model)
    layout = dit_layout(network)
    if layout is not None and not layout.joint_attention:
        raise ValueError(
            f"The image tokens inside the attention of {type(network).__name__} cannot be told apart from outside: "
            "choose block_skip, token_shuffle, higher_sigma or weight_blend for this model."
        )
    return parse_blocks(text, available, middle_blocks(network, available))


def block_skip(model, blocks: str):
    """A MODEL without the given transformer blocks (skip-layer guidance)."""
    network = model.get_model_object("diffusion_model")
    available = _choosable(model)
    chosen = parse_blocks(blocks, available, middle_blocks(network, available))
    if not chosen:
        return model
    skip = perturb.skip_unet_blocks if is_unet(network) else perturb.skip_dit_blocks
    return perturb.per_evaluation(model, lambda options, x, sigma: skip(options, chosen))


def stochastic_block_skip(model, drop_fraction: float, seed: int):
    """A MODEL without a share of its blocks, drawn by seed and sigma (S2-Guidance)."""
    available = _choosable(model)
    candidates = droppable_blocks(available)
    if drop_fraction == 0:
        return model
    if not candidates:
        raise ValueError(f"This model has only {len(available)} transformer blocks, none of which can be dropped: use block_skip.")
    skip = perturb.skip_unet_blocks if is_unet(model.get_model_object("diffusion_model")) else perturb.skip_dit_blocks

    def change(options, x, sigma):
        return skip(options, weaker.choose_blocks(candidates, drop_fraction, weaker.step_generator(seed, float(sigma[0]))))

    return perturb.per_evaluation(model, change)


def identity_attention(model, blocks: str):
    """A MODEL whose self-attention is the identity in the given blocks (PAG)."""
    chosen = _attention_blocks(model, blocks)
    if not chosen:
        return model
    unet = is_unet(model.get_model_object("diffusion_model"))
    identity = perturb.identity_unet_attention if unet else perturb.identity_dit_attention
    return perturb.per_evaluation(model, lambda options, x, sigma: identity(options, chosen))


def blurred_queries(model, blocks: str, blur_sigma: float):
    """A MODEL whose self-attention queries are blurred in the given blocks (SEG)."""
    chosen = _attention_blocks(model, blocks)
    if not chosen or blur_sigma == 0:
        return model
    network = model.get_model_object("diffusion_model")
    if is_unet(network):
        return perturb.per_evaluation(model, lambda options, x, sigma: perturb.blur_unet_queries(options, chosen, blur_sigma))

    def change(options, x, sigma):
        grid = tuple(math.ceil(size / network.patch_size) for size in x.shape[-2:])
        return perturb.blur_dit_queries(options, chosen, blur_sigma, grid)

    return perturb.per_evaluation(model, change)


def token_shuffle(model, blocks: str, seed: int):
    """A MODEL that sees its tokens in a random order in the given blocks, drawn by seed and sigma (TPG)."""
    network = model.get_model_object("diffusion_model")
    available = _choosable(model)
    chosen = parse_blocks(blocks, available, deep_input_blocks(network, available))
    if not chosen:
        return model
    shuffle = perturb.shuffle_unet_tokens if is_unet(network) else perturb.shuffle_dit_tokens

    def change(options, x, sigma):
        generator = weaker.step_generator(seed, float(sigma[0]))
        return shuffle(options, chosen, lambda tokens, device: weaker.token_order(tokens, generator, device))

    return perturb.per_evaluation(model, change)


def higher_sigma(model, sigma_shift: float):
    """A MODEL whose network is told a higher noise level than there is (Self-Guidance)."""
    return perturb.at_higher_sigma(model, sigma_shift) if sigma_shift != 0 else model


def weight_blend(model, base_model, amount: float):
    """A MODEL with weights (1 − amount)·model + amount·base. Raises ValueError when the two are not the same architecture."""
    of_model, of_base = weaker.blend_strengths(amount)
    if of_base == 0:
        return model
    base = base_model.get_key_patches("diffusion_model.")
    own = {key: weight.shape for key, weight in model.model_state_dict("diffusion_model.").items()}
    theirs = {key: weight.shape for key, weight in base_model.model_state_dict("diffusion_model.").items()}
    different = sorted(key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key))
    if different:
        raise ValueError(
            f"base_model is not the same architecture as model: {len(different)} weights differ in name or shape, first {different[0]}; "
            "connect an earlier or less tuned checkpoint of the same model."
        )
    weak = model.clone()
    weak.add_patches(base, of_base, of_model)
    return weak


METHODS = {
    "block_skip": block_skip,
    "stochastic_block_skip": stochastic_block_skip,
    "identity_attention": identity_attention,
    "blurred_queries": blurred_queries,
    "token_shuffle": token_shuffle,
    "higher_sigma": higher_sigma,
    "weight_blend": weight_blend,
}
