"""The host layer: a real ComfyUI in this process, on the CPU, with the pack loaded the way ComfyUI loads it.

`python dev.py test host` sets COMFYUI_PATH. Everything a test needs from the host is a fixture here:
`tiny_model`, `tiny_model_b`, `sd15_model`, `cond`, `latent`, `sample`, `run_node`, `pack_nodes`.
"""

import asyncio
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def _start_host() -> tempfile.TemporaryDirectory:
    """Put ComfyUI first on the path, on the CPU, with its user folders in a throw-away place; returns that place."""
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui or not (Path(comfyui) / "comfy").is_dir():
        raise pytest.UsageError(
            "the host layer needs ComfyUI: run `python dev.py test host`, or set COMFYUI_PATH to its folder"
        )
    sys.path.insert(0, comfyui)
    from comfy.cli_args import args

    base = tempfile.TemporaryDirectory(prefix="guidance-lab-host-")
    args.cpu = True
    args.base_directory = base.name
    for folder in ("models/checkpoints", "input", "output", "temp", "user", "custom_nodes"):
        (Path(base.name) / folder).mkdir(parents=True)
    return base


# At import, not in a fixture: test modules of this layer import `comfy` and `guidance_lab` at their top.
_BASE = _start_host()

import comfy.model_management  # noqa: E402
import comfy.sd  # noqa: E402
import nodes as comfy_nodes  # noqa: E402
from run_async import run_async  # noqa: E402

import tiny_checkpoint  # noqa: E402


@pytest.fixture(scope="session")
def guidance_lab():
    """The loaded pack; its nodes are in `guidance_lab.nodes`."""
    import guidance_lab

    return guidance_lab


@pytest.fixture(scope="session")
def pack_nodes(guidance_lab) -> dict[str, type]:
    """Node id → node class, exactly the list that ComfyUI is given."""

    async def collect():
        extension = await guidance_lab.comfy_entrypoint()
        return await extension.get_node_list()

    return {node.GET_SCHEMA().node_id: node for node in run_async(collect())}


@pytest.fixture
def run_node(pack_nodes):
    """`run_node(node_id, **inputs)` → the tuple of outputs, through the locked clone that ComfyUI executes."""

    def run(node_id: str, **inputs):
        node = pack_nodes[node_id].PREPARE_CLASS_CLONE(None)
        with torch.inference_mode():  # as ComfyUI executes a prompt
            if asyncio.iscoroutinefunction(node.execute):
                return run_async(node.EXECUTE_NORMALIZED_ASYNC(**inputs)).result
            return node.EXECUTE_NORMALIZED(**inputs).result

    return run


def _build_model(layout: dict, seed: int):
    weights = tiny_checkpoint.unet_weights(layout, seed)
    return comfy.sd.load_state_dict_guess_config(weights, output_vae=False, output_clip=False)[0]


@pytest.fixture(scope="session")
def _tiny_base():
    return _build_model(tiny_checkpoint.TINY1, seed=1)


@pytest.fixture(scope="session")
def _tiny_base_b():
    return _build_model(tiny_checkpoint.TINY1, seed=2)


@pytest.fixture(scope="session")
def _sd15_base():
    return _build_model(tiny_checkpoint.SD15_LAYOUT, seed=3)


@pytest.fixture(autouse=True)
def _unloaded():
    """After every test no model is loaded, so no patch of one test is left in the module that the next one shares."""
    yield
    # A model that is garbage collected while the host unloads others would shift the indices of the host's loop.
    alive = [
        (loaded.model, loaded.real_model and loaded.real_model())
        for loaded in comfy.model_management.current_loaded_models
    ]
    comfy.model_management.unload_all_models()
    del alive


@pytest.fixture
def tiny_model(_tiny_base):
    """A fresh MODEL without patches: one-level SD1.5 UNet, 25.8 M parameters, 4 cross-attention layers."""
    return _tiny_base.clone()


@pytest.fixture
def tiny_model_b(_tiny_base_b):
    """The same layout in another module with other weights."""
    return _tiny_base_b.clone()


@pytest.fixture
def sd15_model(_sd15_base):
    """A fresh MODEL with the block numbering of SD1.5 and its 16 cross-attention layers (111.5 M parameters,
    slower).
    """
    return _sd15_base.clone()


@pytest.fixture(scope="module")
def shapes(pack_nodes):
    """(MODEL, CLIP, VAE, …): what the Shapes Demo Models node gives, loaded once for a file of tests."""
    with torch.inference_mode():
        return pack_nodes["GuidanceLab_ShapesDemoModels"].PREPARE_CLASS_CLONE(None).EXECUTE_NORMALIZED().result


@pytest.fixture
def cond():
    """`cond(seed, tokens=77)` → CONDITIONING of width 768, batch 1, with a pooled output."""

    def make(seed: int, tokens: int = 77):
        generator = torch.Generator().manual_seed(seed)
        context = torch.randn(1, tokens, 768, generator=generator)
        return [[context, {"pooled_output": torch.randn(1, 768, generator=generator)}]]

    return make


@pytest.fixture
def latent(request):
    """`latent(batch=1, h=8, w=8, seed=None)` → LATENT of 4 channels in latent pixels; empty (zeros) without a seed.

    A file whose tests do not depend on the size says `pytestmark = pytest.mark.side(4)`: a step costs a quarter.
    """
    marker = request.node.get_closest_marker("side")
    side = marker.args[0] if marker else 8

    def make(batch: int = 1, h: int = side, w: int = side, seed: int | None = None):
        if seed is None:
            return {"samples": torch.zeros(batch, 4, h, w)}
        return {"samples": torch.randn(batch, 4, h, w, generator=torch.Generator().manual_seed(seed))}

    return make


@pytest.fixture
def sample():
    """`sample(model, positive, negative, latent, …)` → the latent tensor that the KSampler node gives."""

    def run(
        model,
        positive,
        negative,
        latent,
        sampler_name="euler",
        steps=4,
        cfg=4.0,
        seed=0,
        scheduler="normal",
        denoise=1.0,
        **options,
    ):
        with torch.inference_mode():
            out = comfy_nodes.common_ksampler(
                model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent, denoise=denoise, **options
            )
        return out[0]["samples"]

    return run


@pytest.fixture(scope="module")
def networks():
    """`networks(name)` → a fresh MODEL of that architecture of `tiny_networks`; built once for a file of tests."""
    import tiny_networks  # imports ComfyUI, which has to be set up first

    built = {}

    def get(name):
        if name not in built:
            built[name] = tiny_networks.build(name)
        return built[name].clone()

    return get


@pytest.fixture
def weaken(run_node):
    """`weaken(model, method, **settings)` → the MODEL that the node gives."""

    def run(model, method, **settings):
        return run_node("GuidanceLab_WeakerVersion", model=model, method={"method": method, **settings})[0]

    return run
