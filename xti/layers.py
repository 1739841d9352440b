"""Which cross-attention layers a model has, in the order in which its forward pass runs them.

P+ (Voynov et al. 2023, "P+: Extended Textual Conditioning in Text-to-Image Generation") gives layer i its own prompt
p_i, so everything in this package counts layers by these tables. U-nets are listed down, middle, up: the order of
computation. (Walking the modules of a diffusers U-net gives down, up, middle, which moves nine of SD1's sixteen layers
to the wrong prompt.)
"""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layer:
    """One place that attends to the text.

    index: position in the table. name: "IN08", "MID", "OUT03" (kohya's keys) or "blocks.17". direction: "down", "mid",
    "up", or "flat" where the model has one resolution. resolution: side of the attention map in cells at the model's
    native image size, None where flat. block: how ComfyUI names the place, ("input", 8) or ("double_block", 17).
    transformer: running number of the spatial transformer. depth: the transformer block inside it, None for all of
    them.
    """

    index: int
    name: str
    direction: str
    resolution: int | None
    block: tuple[str, int]
    transformer: int
    depth: int | None = None


@dataclass(frozen=True)
class LayerTable:
    """The layers of one architecture, and the part of the model's configuration that they follow from (as JSON, to be
    stored).
    """

    architecture: str
    layers: tuple[Layer, ...]
    recipe: str

    @property
    def names(self) -> tuple[str, ...]:
        """Layer names in order."""
        return tuple(layer.name for layer in self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def inside_out(self) -> tuple[int, ...]:
        """All indices from the innermost layer outwards: coarse resolutions first, the middle before down and up in
        turn.

        SD1: 6, 5, 7, 4, 8, 9, 3, 10, ... A flat model is walked from the centre of its depth.
        """
        if self.layers[0].direction == "flat":
            return tuple(sorted(range(len(self)), key=lambda i: (abs(2 * i - len(self) + 1), i)))
        order = []
        for resolution in sorted({layer.resolution for layer in self.layers if layer.resolution is not None}):
            down, mid, up = (
                [
                    layer.index
                    for layer in self.layers
                    if layer.resolution == resolution and layer.direction == direction
                ]
                for direction in ("down", "mid", "up")
            )
            down.reverse()
            order += mid
            for step in range(max(len(down), len(up))):
                order += down[step : step + 1] + up[step : step + 1]
        return tuple(order)


SD1_CONFIG = {
    "context_dim": 768,
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}
SD2_CONFIG = {**SD1_CONFIG, "context_dim": 1024}
SDXL_CONFIG = {
    "context_dim": 2048,
    "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
}
NAMED_UNETS = {"sd1": SD1_CONFIG, "sd2": SD2_CONFIG, "sdxl": SDXL_CONFIG}

# Transformers whose blocks cross-attend to a text that no block changes: (name of the blocks, key of their number). The
# number differs between sizes of one family, so it is read from the model: Wan 30 or 40, LTXV 28 or 48, HunyuanDiT 40,
# Stable Audio 24, Kandinsky 5 32 or 60, Cosmos-Predict2 28 or 36, Anima 28.
CROSS_ATTENTION_TRANSFORMERS = {
    "wan2.1": ("blocks", "num_layers"),
    "ltxv": ("transformer_blocks", "num_layers"),
    "hydit": ("blocks", "depth"),
    "hydit1": ("blocks", "depth"),
    "dit1.0": ("transformer.layers", "depth"),
    "kandinsky5": ("visual_transformer_blocks", "num_visual_blocks"),
    "cosmos_predict2": ("blocks", "num_blocks"),
    "anima": ("blocks", "num_blocks"),
}

# Transformers whose blocks rewrite text and image together, and through which this pack runs a text stream per prompt:
# groups of blocks as (their name, ComfyUI's name of a place in them, keys of their number, the first that is there).
_DOUBLE = ("double_blocks", "double_block", ("depth",))
_SINGLE = ("single_blocks", "single_block", ("depth_single_blocks",))
JOINT_TRANSFORMERS = {
    "flux": (_DOUBLE, _SINGLE),
    "chroma": (_DOUBLE, _SINGLE),
    "sd3": (("joint_blocks", "double_block", ("num_blocks", "depth")),),
    "qwen_image": (("transformer_blocks", "double_block", ("num_layers",)),),
    "mage_flow": (("transformer_blocks", "double_block", ("num_layers",)),),
    "lumina2": (("layers", "double_block", ("n_layers",)),),
}

_JOINT = (
    "its text and image tokens form one stream that every block rewrites, and no way to run a second text stream "
    "through it was found or checked"
)
_NO_HOOK = "ComfyUI offers no place to give one of its blocks another text"
NO_LAYER_PROMPTS = {
    "flux2": _JOINT,
    "chroma_radiance": _JOINT,
    "hunyuan_video": _JOINT,
    "auraflow": _JOINT,
    "zimage_pixel": _JOINT,
    "mochi_preview": _JOINT,
    "hidream": _JOINT,
    "hidream_o1": _JOINT,
    "omnigen2": _JOINT,
    "boogu": _JOINT,
    "joyimage": _JOINT,
    "ideogram4": _JOINT,
    "krea2": _JOINT,
    "ernie": _JOINT,
    "cogvideox": _JOINT,
    "lens": _JOINT,
    "pixeldit_t2i": _JOINT,
    "pixart_alpha": _NO_HOOK,
    "pixart_sigma": _NO_HOOK,
    "cosmos": _NO_HOOK,
    "stable_cascade": _NO_HOOK,
    "ace": _NO_HOOK,
    "ltxav": "its blocks take one text for the picture and one for the sound, which a single prompt per layer does not "
    "describe",
}


def architecture_of(config: dict) -> str:
    """Name of the architecture of a ComfyUI model configuration: "sd1", "sdxl", "unet", "wan2.1", "flux", ... or
    "unknown".
    """
    if "transformer_depth_output" in config:
        for name, known in NAMED_UNETS.items():
            if all(config.get(key) == value for key, value in known.items()):
                return name
        return "unet"
    if "stable_cascade_stage" in config:
        return "stable_cascade"
    if "cond_seq_dim" in config:
        return "auraflow"
    if "x_block_self_attn_layers" in config:
        return "sd3"
    return config.get("image_model") or config.get("audio_model") or "unknown"


def table_for(config: dict, per_block: bool = False) -> LayerTable:
    """Layer table of a model.

    config: ComfyUI's configuration of the diffusion model (`model_config.unet_config`) or a table's own recipe.
    per_block: list each transformer block of a U-net's spatial transformers by itself (SDXL: 70 layers instead of 11).
    Raises ValueError, with the reason, where a prompt per layer has no meaning.
    """
    architecture = architecture_of(config)
    if architecture == "unet" or architecture in NAMED_UNETS:
        return _unet_table(architecture, config, per_block or config.get("per_block", False))
    if architecture in CROSS_ATTENTION_TRANSFORMERS:
        name, count_key = CROSS_ATTENTION_TRANSFORMERS[architecture]
        return _transformer_table(architecture, config, ((name, "double_block", (count_key,)),))
    if architecture in JOINT_TRANSFORMERS:
        return _transformer_table(architecture, config, JOINT_TRANSFORMERS[architecture])
    reason = NO_LAYER_PROMPTS.get(architecture, "its cross-attention layers are not known to this pack")
    raise ValueError(f"A prompt per layer is not possible for the architecture {architecture}: {reason}.")


def named_table(architecture: str, per_block: bool = False) -> LayerTable:
    """Layer table of "sd1", "sd2" or "sdxl" without a model at hand."""
    return table_for(NAMED_UNETS[architecture], per_block)


def _unet_table(architecture: str, config: dict, per_block: bool) -> LayerTable:
    keys = (
        "context_dim",
        "num_res_blocks",
        "transformer_depth",
        "transformer_depth_middle",
        "transformer_depth_output",
    )
    recipe = {key: config[key] for key in keys}
    latent = 128 if recipe["context_dim"] == 2048 else 64
    places = _unet_places(recipe, latent)
    layers: list[Layer] = []
    for transformer, (name, direction, resolution, block, depth) in enumerate(places):
        if not per_block or depth == 1:
            layers.append(Layer(len(layers), name, direction, resolution, block, transformer))
            continue
        for i in range(depth):
            layers.append(Layer(len(layers), f"{name}.{i}", direction, resolution, block, transformer, i))
    if not layers:
        raise ValueError("A prompt per layer is not possible for this U-net: it has no cross-attention layer.")
    if per_block:
        recipe["per_block"] = True
    return LayerTable(architecture, tuple(layers), json.dumps(recipe, sort_keys=True))


def _unet_places(recipe: dict, latent: int) -> list[tuple]:
    """(name, direction, resolution, block, depth) of every spatial transformer; block numbers as the openai U-net
    counts them.
    """
    levels = recipe["num_res_blocks"]
    depths = [*recipe["transformer_depth"], *recipe["transformer_depth_output"], recipe["transformer_depth_middle"]]
    if len(levels) > 16 or max(levels, default=0) > 64 or max(depths) > 1000:
        raise ValueError("A prompt per layer is not possible for this U-net: it has more blocks than any that exists.")
    down_depths, up_depths = list(recipe["transformer_depth"]), list(recipe["transformer_depth_output"])
    places, number = [], 1  # input block 0 is the first convolution
    for level, count in enumerate(levels):
        for _ in range(count):
            depth = down_depths.pop(0)
            if depth > 0:
                places.append((f"IN{number:02d}", "down", latent >> level, ("input", number), depth))
            number += 1
        number += 1  # the downsampling block
    if recipe["transformer_depth_middle"] > 0:
        depth = recipe["transformer_depth_middle"]
        places.append(("MID", "mid", latent >> (len(levels) - 1), ("middle", 0), depth))
    number = 0
    for level, count in reversed(list(enumerate(levels))):
        for _ in range(count + 1):
            depth = up_depths.pop()  # ComfyUI lists the output depths from the outermost level inwards
            if depth > 0:
                places.append((f"OUT{number:02d}", "up", latent >> level, ("output", number), depth))
            number += 1
    return places


def _transformer_table(architecture: str, config: dict, groups: tuple) -> LayerTable:
    recipe: dict[str, Any] = {"image_model": architecture}
    layers: list[Layer] = []
    if architecture == "sd3":  # ComfyUI's configuration of it has this key in place of a name
        recipe = {"x_block_self_attn_layers": []}
    for name, place, count_keys in groups:
        key = next((key for key in count_keys if config.get(key) is not None), count_keys[-1])
        count = config.get(key)
        if not isinstance(count, int) or not 0 < count <= 1000:
            raise ValueError(
                f"The model configuration of {architecture} does not say how many layers it has ({key} is missing)."
            )
        recipe[key] = count
        for i in range(count):
            layers.append(Layer(len(layers), f"{name}.{i}", "flat", None, (place, i), len(layers)))
    return LayerTable(architecture, tuple(layers), json.dumps(recipe, sort_keys=True))
