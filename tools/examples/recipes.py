"""The recipes of `subgraphs/`: a few nodes wired as one, with the inputs and settings that a person wants to see."""

import json
import uuid
from dataclasses import dataclass, field

from tools.canvas import Canvas
from tools.examples.shapes import CLIP_SETTINGS

SPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")  # for ids that stay the same from making to making
SERIALIZE = "() => JSON.stringify(app.graph.serialize())"
INPUT, OUTPUT = -10, -20  # the canvas's own numbers for a subgraph's two ends


@dataclass
class Recipe:
    """`prompt` holds the inner nodes in API format. `inputs` are sockets, name → inner inputs "node.input"; `shown` are
    settings on its face, inner inputs with the label to give; `outputs` are "node.slot" by name.
    """

    name: str
    category: str
    description: str
    prompt: dict[str, dict]
    inputs: dict[str, list[str]]
    outputs: dict[str, str]
    shown: dict[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()


METHODS = {  # method of Weaker Version → its settings, and what it does in words
    "block_skip": ({"blocks": "default"}, "skipped blocks"),
    "stochastic_block_skip": ({"drop_fraction": 0.1, "seed": 0}, "randomly skipped blocks"),
    "identity_attention": ({"blocks": "default"}, "attention that looks only at itself (PAG)"),
    "blurred_queries": ({"blocks": "default", "blur_sigma": 10.0}, "blurred attention (SEG)"),
    "token_shuffle": ({"blocks": "default", "seed": 0}, "shuffled tokens (TPG)"),
    "higher_sigma": ({"sigma_shift": 0.1}, "a noise level told too high"),
    "sliding_window": ({"window": 0.75, "overlap": 0.5}, "attention within windows (SWG)"),
}
PAIR = {"weight": 2.0, "start_percent": 0.0, "end_percent": 1.0}
PAIR_SHOWN = {"2.weight": "weight", "2.start_percent": "start_percent", "2.end_percent": "end_percent"}


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": {key.replace("__", "."): value for key, value in inputs.items()}}


def weaker(method: str) -> Recipe:
    settings, words = METHODS[method]
    nested = {f"method.{name}": value for name, value in settings.items()}
    weak = {"class_type": "GuidanceLab_WeakerVersion", "inputs": {"method": method} | nested}
    return Recipe(
        # The node search of the canvas finds no name of 37 characters; one of 35 it does.
        f"Autoguidance by {method.replace('stochastic', 'random').replace('_', ' ')}",
        "Guidance Lab/Autoguidance",
        f"Autoguidance with a weaker version of the same model as the guide, made by {words}: one MODEL in, one MODEL "
        "out, one more evaluation per step. Works with every sampler.",
        {"1": weak, "2": node("GuidanceLab_AutoguidanceModelPair", guide_model=["1", 0], **PAIR)},
        {"model": ["1.model", "2.model"]},
        {"MODEL": "2.0"},
        PAIR_SHOWN | {f"1.{name}": name.split(".")[1] for name in nested},
        ("autoguidance", "weaker version"),
    )


def lora() -> Recipe:
    return Recipe(
        "My LoRA against its base",
        "Guidance Lab/Autoguidance",
        "Draws with a LoRA and takes the model without it as the guide: what the LoRA adds is pushed further. One "
        "MODEL in, one MODEL out, one more evaluation per step.",
        {
            "1": node("LoraLoaderModelOnly", lora_name="", strength_model=1.0),
            "2": node("GuidanceLab_AutoguidanceModelPair", model=["1", 0], **PAIR),
        },
        {"model": ["1.model", "2.guide_model"]},
        {"MODEL": "2.0"},
        {"1.lora_name": "lora_name", "1.strength_model": "strength_model"} | PAIR_SHOWN,
        ("lora", "autoguidance"),
    )


def clip_guide() -> Recipe:
    settings = {name.rstrip("_"): value for name, value in CLIP_SETTINGS.items()} | {"decoder": "vae"}
    return Recipe(
        "CLIP-guide my KSampler",
        "Guidance Lab/CLIP guidance",
        "A CLIP looks at the half-finished picture and steers it towards a text: put it between the model and any "
        "sampler.",
        {
            "1": node("GuidanceLab_ObjectiveCLIPText", text="", weight=1.0, similarity="cosine"),
            "2": {"class_type": "GuidanceLab_CLIPGuidance", "inputs": settings | {"objective": ["1", 0]}},
        },
        {"model": ["2.model"], "vae": ["2.decoder.vae"], "scorer": ["1.scorer"]},
        {"MODEL": "2.0"},
        {
            "1.text": "text", "2.strength": "strength", "2.start_percent": "start_percent",
            "2.end_percent": "end_percent",
            "2.gradient": "gradient", "2.crops": "crops", "2.every": "every",
        },
        ("upainting", "clip guidance"),
    )  # fmt: skip


def two_prompts() -> Recipe:
    return Recipe(
        "Two prompts on a U",
        "Guidance Lab/Layers",
        "One prompt for the layers on the way down (the background, in many models), another one for all others.",
        {
            "1": node(
                "GuidanceLab_PerBlockPrompt", text="a red star on white", layers="down: a green lizard on sand",
                controlnet="base prompt", pooled="base prompt", single_blocks=False,
            ),
        },
        {"model": ["1.model"], "clip": ["1.clip"]},
        {"MODEL": "1.0", "CONDITIONING": "1.1"},
        {"1.text": "text", "1.layers": "layers"},
        ("per block", "P+", "layers"),
    )  # fmt: skip


def learn_word() -> Recipe:
    train = node(
        "GuidanceLab_XTITrain", init_word="", vectors=1, steps=200, learning_rate=0.005, batch=4, regulariser="none",
        captions="own lines", captions__lines="a {}", seed=0, shared=False, pictures_at_once=4, preview_every=0,
    )  # fmt: skip
    return Recipe(
        "Learn a word",
        "Guidance Lab/XTI",
        "Learns a new word from encoded pictures, a vector for each layer, and puts it into a prompt as xti:A.",
        {"1": train, "2": node("GuidanceLab_XTIPrompt", text="a xti:A", tokens="", xtis__A=["1", 0])},
        {"model": ["1.model", "2.model"], "clip": ["1.clip", "2.clip"], "vae": ["1.vae"], "latents": ["1.latents"]},
        {"MODEL": "2.0", "CONDITIONING": "2.1", "XTI": "1.0"},
        {
            "1.init_word": "init_word", "1.captions.lines": "lines", "1.steps": "steps",
            "1.learning_rate": "learning_rate",
            "1.batch": "batch", "2.text": "text",
        },
        ("textual inversion", "xti"),
    )  # fmt: skip


def draft() -> Recipe:
    return Recipe(
        "GALIP draft and finish",
        "Guidance Lab/GALIP",
        "A draft in one pass of GALIP, enlarged and finished by a few steps of a diffusion model. The draft's text is "
        "encoded by the CLIP of the GALIP, the other two by that of the diffusion model.",
        {
            "1": node("GuidanceLab_GALIPSampler", seed=0, batch_size=1, truncation=1.0),
            "2": node("ImageScaleBy", image=["1", 0], upscale_method="lanczos", scale_by=1.0),
            "3": node("VAEEncode", pixels=["2", 0]),
            "4": node(
                "KSampler", latent_image=["3", 0], seed=0, steps=12, cfg=3.0, sampler_name="euler", scheduler="normal",
                denoise=0.6,
            ),
            "5": node("VAEDecode", samples=["4", 0]),
        },
        {
            "galip": ["1.galip"], "draft_text": ["1.conditioning"], "model": ["4.model"], "positive": ["4.positive"],
            "negative": ["4.negative"], "vae": ["3.vae", "5.vae"],
        },
        {"finished": "5.0", "draft": "1.0"},
        {
            "1.seed": "draft_seed", "1.batch_size": "batch_size", "1.truncation": "truncation",
            "2.scale_by": "scale_by",
            "4.seed": "seed", "4.steps": "steps", "4.cfg": "cfg", "4.denoise": "denoise",
        },
        ("galip", "img2img"),
    )  # fmt: skip


RECIPES = [*map(weaker, METHODS), lora(), clip_guide(), two_prompts(), learn_word(), draft()]


def build(recipe: Recipe, canvas: Canvas) -> dict:
    """The file of a recipe: one subgraph node and its definition, the inner nodes as the canvas itself writes them."""
    canvas.load_prompt(recipe.prompt, recipe.name)
    inner = json.loads(canvas.page.evaluate(SERIALIZE))
    nodes = {str(one["id"]): one for one in inner["nodes"]}
    for k, one in enumerate(inner["nodes"]):
        one["pos"], one["order"] = [300 + 360 * k, 60], k
        for entry in one.get("inputs", []):
            entry["link"] = None
        for exit_ in one.get("outputs", []):
            exit_["links"] = []
    links: list[dict] = []

    def connect(origin: int, origin_slot: int, target: int, target_slot: int, kind: str) -> int:
        links.append({
            "id": len(links) + 1, "origin_id": origin, "origin_slot": origin_slot, "target_id": target,
            "target_slot": target_slot, "type": kind,
        })  # fmt: skip
        if target != OUTPUT:
            nodes[str(target)]["inputs"][target_slot]["link"] = len(links)
        if origin != INPUT:
            nodes[str(origin)]["outputs"][origin_slot]["links"].append(len(links))
        return len(links)

    for _, source, output, target, entry, kind in inner["links"]:
        connect(source, output, target, entry, kind)
    made = uuid.uuid5(SPACE, "guidance lab recipe " + recipe.name)
    entries, faces = [], []
    sockets = [(name, where, False) for name, where in recipe.inputs.items()]
    sockets += [(label, [where], True) for where, label in recipe.shown.items()]
    for slot, (name, where, widget) in enumerate(sockets):
        ids, kind = [], ""
        for path in where:
            number, field_name = path.split(".", 1)
            names = [entry["name"] for entry in nodes[number]["inputs"]]
            index = names.index(field_name)
            kind = nodes[number]["inputs"][index]["type"]
            ids.append(connect(INPUT, slot, int(number), index, kind))
        entry = {"id": str(uuid.uuid5(made, name)), "name": name, "type": kind, "linkIds": ids}
        entries.append(entry | {"pos": [160, 80 + 20 * slot]})
        face = {"name": name, "type": kind, "link": None}
        faces.append(face | ({"widget": {"name": name}} if widget else {}))
    exits = []
    for slot, (name, path) in enumerate(recipe.outputs.items()):
        number, output = path.split(".")
        kind = nodes[number]["outputs"][int(output)]["type"]
        ids = [connect(int(number), int(output), OUTPUT, slot, kind)]
        exits.append({"id": str(uuid.uuid5(made, "out " + name)), "name": name, "type": kind, "linkIds": ids})
    right = 300 + 360 * len(nodes)
    definition = {
        "id": str(made), "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": len(nodes), "lastLinkId": len(links), "lastRerouteId": 0},
        "revision": 0, "config": {}, "name": recipe.name, "category": recipe.category,
        "description": recipe.description,
        "inputNode": {"id": INPUT, "bounding": [20, 60, 160, 40 + 20 * len(entries)]},
        "outputNode": {"id": OUTPUT, "bounding": [right + 60, 60, 120, 40 + 20 * len(exits)]},
        "inputs": entries, "outputs": [one | {"pos": [right + 80, 80 + 20 * k]} for k, one in enumerate(exits)],
        "widgets": [], "nodes": inner["nodes"], "groups": [], "links": links,
        "extra": {"BlueprintSearchAliases": list(recipe.aliases)},
    }  # fmt: skip
    host = {
        "id": 1, "type": str(made), "pos": [0, 0], "size": [300, 60 + 26 * len(entries)], "flags": {}, "order": 0,
        "mode": 0,
        "inputs": faces, "outputs": [{"name": one["name"], "type": one["type"], "links": []} for one in exits],
        "properties": {}, "widgets_values": [], "title": recipe.name,
    }  # fmt: skip
    return {
        "revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [host], "links": [], "version": 0.4,
        "definitions": {"subgraphs": [definition]}, "extra": {},
    }  # fmt: skip
