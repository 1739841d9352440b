"""The layer tables for the editor on the canvas: typical ones by a route, the model's own one after each run.

    GET /guidance_lab/layers                → {"families": [{"name", "plain", "single"}, ...]}
    GET /guidance_lab/layers?recipe={...}   → {"name", "plain", "single"} of `LayerTable.recipe`
    GET /guidance_lab/layers?node=ID        → {"recipe"} that the last run of that node found, null where none is known
    event "guidance_lab.layers"             → {"node", "recipe", "tables"}

`plain` and `single` (every transformer block of a UNet by itself) are {"architecture", "recipe", "layers",
"inside_out"}.
"""

import json
import sys

from ...xti.layers import CROSS_ATTENTION_TRANSFORMERS, NAMED_UNETS, LayerTable, table_for

NAMES = {
    "sd1": "SD1.x", "sd2": "SD2.x", "sdxl": "SDXL", "unet": "UNet", "wan2.1": "Wan", "ltxv": "LTXV",
    "hydit": "HunyuanDiT",
    "hydit1": "HunyuanDiT", "dit1.0": "Stable Audio", "kandinsky5": "Kandinsky 5", "cosmos_predict2": "Cosmos-Predict2",
    "anima": "Anima", "flux": "Flux", "chroma": "Chroma", "sd3": "SD3", "qwen_image": "Qwen-Image",
    "mage_flow": "Mage-Flow",
    "lumina2": "Lumina 2",
}  # fmt: skip
# The sizes that are met most often; a run tells the real number.
TYPICAL_SIZES = {
    "wan2.1": (30, 40),
    "ltxv": (28, 48),
    "hydit": (40,),
    "dit1.0": (24,),
    "kandinsky5": (32, 60),
    "cosmos_predict2": (28, 36),
}
TYPICAL_JOINT = [
    {"image_model": "flux", "depth": 19, "depth_single_blocks": 38},
    {"x_block_self_attn_layers": [], "num_blocks": 24},
    {"image_model": "qwen_image", "num_layers": 60},
    {"image_model": "mage_flow", "num_layers": 12},
    {"image_model": "lumina2", "n_layers": 26},
]
MOST_LAYERS = 1000
_last_run: dict[
    str, str
] = {}  # node id → recipe, since the server's start; ComfyUI runs a node again only when its inputs change


def tables(config: dict) -> dict:
    """The tables of a model configuration as the canvas reads them. ValueError where it has none."""
    plain, single = table_for({**config, "per_block": False}), table_for(config, per_block=True)
    return {
        "name": NAMES.get(plain.architecture, plain.architecture),
        "plain": table_json(plain),
        "single": table_json(single),
    }


def typical_families() -> list[dict]:
    """What can be drawn before a model is known, the most common first."""
    configs = [*NAMED_UNETS.values()]
    configs += [
        {"image_model": name, CROSS_ATTENTION_TRANSFORMERS[name][1]: size}
        for name, sizes in TYPICAL_SIZES.items()
        for size in sizes
    ]
    configs += TYPICAL_JOINT
    return [tables(config) for config in configs]


def tables_of_recipe(recipe: str) -> dict:
    """The tables of `LayerTable.recipe`, as a saved workflow keeps it. ValueError for anything else, before anything
    large is made.
    """
    try:
        config = json.loads(recipe) if len(recipe) <= 4000 else None
    except (RecursionError, ValueError):
        config = None
    if not isinstance(config, dict) or not _is_small(config):
        raise ValueError("The recipe of a layer table is not one that this pack wrote.")
    return tables(config)


def _is_small(config: dict) -> bool:
    """Whether a table of this configuration can be made: whole numbers that make at most MOST_LAYERS layers."""
    if "transformer_depth_output" not in config:
        # `table_for` checks the numbers that there are; the empty list is SD3's mark.
        return all(isinstance(value, str | int) or value == [] for value in config.values())
    levels, down, up = (config.get(key) for key in ("num_res_blocks", "transformer_depth", "transformer_depth_output"))
    middle = config.get("transformer_depth_middle")
    if not all(isinstance(part, list) and len(part) <= 64 for part in (levels, down, up)):
        return False
    numbers = [*levels, *down, *up, middle, config.get("context_dim")]
    if not all(isinstance(number, int) and -1 <= number <= 100_000 for number in numbers):
        return False
    blocks = sum(levels)
    return (
        len(down) >= blocks
        and len(up) >= blocks + len(levels)
        and blocks <= 64
        and sum([*down, *up]) + middle <= MOST_LAYERS
    )


def table_json(table: LayerTable) -> dict:
    """{"architecture", "recipe", "layers", "inside_out"}, as the canvas reads a table."""
    layers = [
        {"name": layer.name, "direction": layer.direction, "resolution": layer.resolution, "place": layer.block[0]}
        for layer in table.layers
    ]
    return {
        "architecture": table.architecture,
        "recipe": table.recipe,
        "layers": layers,
        "inside_out": list(table.inside_out()),
    }


def tell_canvas(table: LayerTable, node_id: str | None) -> None:
    """Tells the editor on the node with this id which layers its model has; nothing without a server."""
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    if node_id is None or getattr(server, "instance", None) is None:
        return
    made = tables(json.loads(table.recipe))
    _last_run[node_id] = made["plain"]["recipe"]
    server.instance.send_sync(
        "guidance_lab.layers", {"node": node_id, "recipe": made["plain"]["recipe"], "tables": made}
    )


def add_route() -> None:
    """Registers the route at ComfyUI's server; nothing without one."""
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    if getattr(server, "instance", None) is None:
        return
    from aiohttp import web

    async def answer(request):
        recipe = request.query.get("recipe")
        if "node" in request.query:
            return web.json_response({"recipe": _last_run.get(request.query["node"])})
        try:
            return web.json_response({"families": typical_families()} if recipe is None else tables_of_recipe(recipe))
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)

    server.instance.routes.get("/guidance_lab/layers")(answer)
