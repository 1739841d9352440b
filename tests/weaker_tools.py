"""What the tests of Weaker Version share: which networks, which settings, how a network is asked."""

import contextlib

import tiny_networks
from comfy.ldm.modules.attention import SpatialTransformer

NODE = "GuidanceLab_WeakerVersion"
UNETS = ("SD15", "SDXL")
JOINT = ("Flux", "Chroma", "SD3")
DITS = (*JOINT, "AuraFlow", "QwenImage", "WAN21_T2V", "HunyuanVideo", "LTXV")
SIGMA = 0.6


def predict(model, name, sigma=SIGMA):
    batch = 1 if name == "LTXV" else 2  # the host's CPU attention cannot broadcast the mask of LTXV over a batch
    size = (
        dict(height=40, width=40) if name == "PixArtAlpha" else {}
    )  # its position code divides by zero on smaller latents
    return tiny_networks.predict(
        model, tiny_networks.noisy(model, batch, **size), sigma, tiny_networks.positive(1, name)
    )


@contextlib.contextmanager
def hooked(modules, register):
    """`register(module)` → handle, for every module, undone at the end."""
    handles = [register(module) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def stages(model, *blocks):
    """The SpatialTransformer modules of UNet blocks such as ("input", 4)."""
    network = model.model.diffusion_model
    groups = {"input": network.input_blocks, "middle": [network.middle_block], "output": network.output_blocks}
    return [layer for group, index in blocks for layer in groups[group][index] if isinstance(layer, SpatialTransformer)]


EVERY_METHOD = {
    "block_skip": dict(blocks="default"),
    "stochastic_block_skip": dict(drop_fraction=0.3, seed=5),
    "identity_attention": dict(blocks="default"),
    "blurred_queries": dict(blocks="default", blur_sigma=2.0),
    "token_shuffle": dict(blocks="default", seed=5),
    "higher_sigma": dict(sigma_shift=0.2),
}
NEUTRAL = {
    "block_skip": dict(blocks=""),
    "stochastic_block_skip": dict(drop_fraction=0.0, seed=5),
    "identity_attention": dict(blocks=""),
    "blurred_queries": dict(blocks="default", blur_sigma=0.0),
    "token_shuffle": dict(blocks=" ", seed=5),
    "higher_sigma": dict(sigma_shift=0.0),
}
