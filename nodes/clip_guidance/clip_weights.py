"""Which of open_clip's architectures a file of weights is, told by names and shapes, and the module that is built of
it.
"""

import functools
from collections.abc import Mapping

import torch

Shapes = Mapping[str, tuple[int, ...]]

# Of training and of OpenAI's archives; an inference network has no use for them.
_UNUSED = ("input_resolution", "context_length", "vocab_size", "attn_mask", "position_ids", "num_batches_tracked")


def open_clip():
    """The open_clip package. Raises ValueError when it is not installed."""
    try:
        import open_clip as package
    except ImportError:
        raise ValueError(
            "This node needs the Python package open_clip_torch: install it into ComfyUI's own Python and restart."
        ) from None
    return package


def _configs() -> dict[str, dict]:
    """open_clip's model configurations by name, without those whose text tower is a Hugging Face model."""
    return _configs_of(tuple(open_clip().list_models()))


@functools.lru_cache(maxsize=1)  # more may be registered while the host runs
def _configs_of(names: tuple[str, ...]) -> dict[str, dict]:
    configs = {name: open_clip().get_model_config(name) for name in names if not name.endswith("-quickgelu")}
    return {name: config for name, config in configs.items() if "hf_model_name" not in config["text_cfg"]}


def architecture(shapes: Shapes) -> list[str]:
    """Names of the architectures (activation left open) that have exactly these weights; most have one name, some have
    twins.

    Raises ValueError when there is none, with the reason that can be seen in the file.
    """
    shapes = {key: tuple(shape) for key, shape in shapes.items() if not key.endswith(_UNUSED)}
    text = "text." if "text.token_embedding.weight" in shapes else ""
    if f"{text}token_embedding.weight" not in shapes or not any(key.startswith("visual.") for key in shapes):
        raise ValueError(_what_it_is(shapes))
    if len(shapes[f"{text}token_embedding.weight"]) != 2:
        raise ValueError(_what_it_is({}))
    vocabulary, width = shapes[f"{text}token_embedding.weight"]
    context = (shapes.get(f"{text}positional_embedding") or (0,))[0]
    timm = any(key.startswith("visual.trunk.") for key in shapes)
    layers = len(
        {key.split(".resblocks.")[1].split(".")[0] for key in shapes if key.startswith(f"{text}transformer.resblocks.")}
    )

    def possible(config: dict) -> bool:
        own = config["text_cfg"]
        rows = own.get("context_length", 77) + bool(own.get("embed_cls"))
        sizes = (own.get("vocab_size", 49408), own.get("width", 512), own.get("layers", 12), rows)
        return sizes == (vocabulary, width, layers, context) and ("timm_model_name" in config["vision_cfg"]) == timm

    names = [name for name, config in _configs().items() if possible(config) and _shapes(name) == shapes]
    if not names:
        raise ValueError(
            f"This file has two towers (text {width} wide, {layers} layers, {vocabulary} tokens), but they are none of "
            "open_clip's architectures with a text tower of its own: use a file that open_clip publishes."
        )
    return names


def _what_it_is(shapes: Shapes) -> str:
    """Why a file without open_clip's two towers cannot be a scorer."""
    keys = set(shapes)
    advice = "use one file of open_clip with both towers, or connect ComfyUI's CLIP and CLIP_VISION"
    if any(key.startswith("image_encoder.") for key in keys):
        return f"This file is in Apple's own format: {advice}."
    if any(".head.probe" in key or key.startswith("vision_model.head.") for key in keys):
        return f"This file is a SigLIP in the format of transformers: {advice}."
    image = any(key.startswith(("visual.", "vision_model.")) for key in keys)
    words = any(key.startswith(("transformer.", "text_model.", "text.")) for key in keys)
    if image != words:
        return f"This file has only the {'image' if image else 'text'} tower of a CLIP: {advice}."
    return f"This file is not a CLIP (no token_embedding.weight beside visual.*): {advice}."


@functools.cache
def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    weights = on_meta(name, False).state_dict()
    return {key: tuple(value.shape) for key, value in weights.items() if not key.endswith(_UNUSED)}


def _module(name: str, quick_gelu: bool) -> torch.nn.Module:
    package = open_clip()
    config = package.get_model_config(name)
    custom = config.pop("custom_text", False)
    kind = package.CoCa if "multimodal_cfg" in config else package.CustomTextCLIP if custom else package.CLIP
    with (
        torch.inference_mode(False),
        torch.random.fork_rng(devices=[]),
    ):  # initial weights draw from the global generator
        return kind(**{**config, "quick_gelu": quick_gelu})


def on_meta(name: str, quick_gelu: bool) -> torch.nn.Module:
    """The architecture without memory for its weights."""
    with torch.device("meta"):
        return _module(name, quick_gelu)


def build(name: str, weights: Mapping[str, torch.Tensor], quick_gelu: bool) -> torch.nn.Module:
    """The module with these weights, on the CPU, in the dtype of the file. ValueError when a weight holds no floats."""
    weights = {key: value for key, value in weights.items() if not key.endswith(_UNUSED)}
    for key, value in weights.items():
        if not value.is_floating_point():
            raise ValueError(f"'{key}' of this CLIP holds {value.dtype} instead of floats: download the file again.")
    module = on_meta(name, quick_gelu)
    with torch.inference_mode(False):
        module.load_state_dict(weights, assign=True, strict=False)
        _fill_causal_mask(module)
        if any(value.is_meta for value in [*module.parameters(), *module.buffers()]):
            # Tables that are computed, not stored (rotary positions of EVA02 and PE), exist only in a module built in
            # memory.
            module = _module(name, quick_gelu)
            module.load_state_dict(weights, assign=True, strict=False)
    return module


def _fill_causal_mask(module: torch.nn.Module) -> None:
    for part in (module, getattr(module, "text", None)):
        mask = getattr(part, "attn_mask", None)
        if mask is not None and mask.is_meta:
            part.attn_mask = torch.full(mask.shape, float("-inf")).triu_(1)
