"""Tiny random transformers with joint streams of text and image, and an independent way to give each block its prompt.

Import after ComfyUI is on the path. The text width is 24.
"""

from contextlib import contextmanager
from functools import reduce

import tiny_networks
import torch

LUMINA = dict(
    image_model="lumina2", patch_size=2, in_channels=16, dim=64, cap_feat_dim=24, n_layers=4, n_refiner_layers=1,
    qk_norm=True, n_heads=4, n_kv_heads=2, axes_dims=[4, 6, 6], axes_lens=[64, 64, 64], rope_theta=10000.0,
    ffn_dim_multiplier=2.0, multiple_of=16,
)  # fmt: skip
CONFIGS = {
    "Flux": tiny_networks.FLUX,
    "Chroma": tiny_networks.CHROMA,
    "SD3": {**tiny_networks.SD3, "x_block_self_attn_layers": []},
    "QwenImage": tiny_networks.QWEN,
    "Lumina2": LUMINA,
    "ZImage": tiny_networks.ZIMAGE,
}
MAGE_FLOW = dict(
    image_model="mage_flow", in_channels=128, out_channels=128, num_layers=6, attention_head_dim=16,
    num_attention_heads=4, joint_attention_dim=24, axes_dims_rope=(4, 6, 6),
)  # fmt: skip
CONFIGS["MageFlow"] = MAGE_FLOW
CHEAP = ("Flux", "Chroma")


def build(name: str, seed: int = 0, **changed):
    """A MODEL of one of `CONFIGS`."""
    return tiny_networks.build(name, seed, {**CONFIGS[name], **changed})


def prompt(seed: int, tokens: int = 7):
    """One CONDITIONING entry [context, options]."""
    return tiny_networks.positive(seed, "Flux", tokens)[0]


# For each network: its blocks in order, and where in a block's output the image tokens are, for a text of n tokens.
_FIRST, _SECOND = (lambda out, n: out[0]), (lambda out, n: out[1])
_BEHIND = lambda out, n: out[:, n:]  # noqa: E731
_BLOCKS = {
    "Flux": (("double_blocks", _FIRST), ("single_blocks", _BEHIND)),
    "Chroma": (("double_blocks", _FIRST), ("single_blocks", _BEHIND)),
    "SD3": (("joint_blocks", _SECOND),),
    "QwenImage": (("transformer_blocks", _SECOND),),
    "MageFlow": (("transformer_blocks", _SECOND),),
    "Lumina2": (("layers", _BEHIND),),
    "ZImage": (("layers", lambda out, n: out[:, -(-n // 16) * 16 :]),),  # text is padded to multiples of 16
}


@contextmanager
def leveled(name: str, model, reads: list[int], rows: int, tokens: int):
    """PyTorch hooks that, after block l, overwrite the image tokens of all streams with those of stream reads[l].

    The batch holds `rows` rows for each stream, stream after stream.
    """
    network, numbers, handles = model.model.diffusion_model, iter(range(len(reads))), []
    for attribute, image_of in _BLOCKS[name]:
        for block in reduce(getattr, attribute.split("."), network):
            number = next(numbers)

            def level(module, given, out, number=number, image_of=image_of):
                image = image_of(out, tokens)
                image.copy_(image[reads[number] * rows :][:rows].repeat(len(image) // rows, 1, 1))

            handles.append(block.register_forward_hook(level))
    assert next(numbers, None) is None
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def slow(name: str, model, contexts: list[torch.Tensor], reads: list[int]):
    """A clone of the stock MODEL that evaluates one batch row per context and block l on context reads[l]."""

    def evaluate(apply_model, args):
        x, t, c = args["input"], args["timestep"], dict(args["c"])
        rows, streams = x.shape[0], len(contexts)

        def repeated(value):
            if isinstance(value, torch.Tensor) and value.shape[:1] == (rows,):
                return value.repeat(streams, *[1] * (value.ndim - 1))
            if isinstance(value, list):
                return [repeated(each) for each in value]
            return {k: repeated(each) for k, each in value.items()} if isinstance(value, dict) else value

        options = c.pop("transformer_options")
        c = {key: repeated(value) for key, value in c.items()}
        longest = max(context.shape[1] for context in contexts)
        padded = [torch.nn.functional.pad(each, (0, 0, 0, longest - each.shape[1])) for each in contexts]
        c["c_crossattn"] = torch.cat([context.expand(rows, -1, -1) for context in padded])
        if any(context.shape[1] < longest for context in contexts):  # nothing attends to the padding
            total = longest + x.shape[-1] * x.shape[-2] // 4
            seen = torch.zeros(streams * rows, 1, total, total)
            for s, context in enumerate(contexts):
                seen[s * rows : (s + 1) * rows, ..., context.shape[1] : longest] = -1e9
            c["attention_mask"] = seen
        with leveled(name, model, reads, rows, longest):
            out = apply_model(repeated(x), repeated(t), transformer_options=options, **c)
        return out[:rows]

    reference = model.clone()
    reference.set_model_unet_function_wrapper(evaluate)
    return reference
