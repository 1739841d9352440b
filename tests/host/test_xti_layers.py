"""The layer tables against ComfyUI's own models: the same layers, in the order in which they run."""

import comfy.ops
import pytest
import torch
from comfy.ldm.anima.model import Anima
from comfy.ldm.audio.dit import AudioDiffusionTransformer
from comfy.ldm.cosmos.predict2 import MiniTrainDIT
from comfy.ldm.hydit.models import HunYuanDiT
from comfy.ldm.kandinsky5.model import Kandinsky5
from comfy.ldm.lightricks.model import LTXVModel
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.wan.model import WanModel

from guidance_lab.xti.layers import SD1_CONFIG, SD2_CONFIG, SDXL_CONFIG, table_for

OPERATIONS = comfy.ops.disable_weight_init
UNEVEN = {
    "context_dim": 768,
    "num_res_blocks": [2, 1, 2],
    "transformer_depth": [1, 0, 2, 1, 1],
    "transformer_depth_middle": 3,
    "transformer_depth_output": [1, 0, 2, 1, 2, 0, 3, 1],
}


@pytest.mark.parametrize("config", [SD1_CONFIG, SD2_CONFIG, SDXL_CONFIG, UNEVEN])
def test_unet_layers_run_in_table_order(config):
    layout = {key: value for key, value in config.items() if key != "context_dim"}
    unet = UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=32,
        channel_mult=[1] * len(config["num_res_blocks"]),
        num_head_channels=16, use_spatial_transformer=True, context_dim=16, use_linear_in_transformer=True,
        legacy=False,
        operations=OPERATIONS, dtype=torch.float32, **layout,
    )  # fmt: skip
    calls = []

    def record(n, context, value, options):
        calls.append((options["block"], options["transformer_index"], options["block_index"], n.shape[1]))
        return n, context, value

    side = 64 if config["context_dim"] == 2048 else 32  # half of the native latent
    with torch.inference_mode():
        x, context = torch.zeros(1, 4, side, side), torch.zeros(1, 7, 16)
        unet(x, torch.ones(1), context, transformer_options={"patches": {"attn2_patch": [record]}})
    table = table_for(config, per_block=True)
    assert calls == [
        (layer.block, layer.transformer, layer.depth or 0, (layer.resolution // 2) ** 2) for layer in table.layers
    ]


def test_tables_of_loaded_checkpoints(sd15_model, tiny_model):
    """The configuration that ComfyUI detects in a checkpoint is what the tables read."""
    table = table_for(sd15_model.model.model_config.unet_config)
    assert table == table_for(SD1_CONFIG) and table.architecture == "sd1" and len(table) == 16
    small = table_for(tiny_model.model.model_config.unet_config)
    assert small.architecture == "unet" and small.names == ("IN01", "MID", "OUT00", "OUT01")


COSMOS = {"max_img_h": 8, "max_img_w": 8, "max_frames": 1, "in_channels": 4, "out_channels": 4, "patch_spatial": 2,
          "patch_temporal": 1, "model_channels": 64, "num_heads": 4, "pos_emb_cls": "rope3d"}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "arguments", "config", "attention"),
    [
        (WanModel, {}, {"image_model": "wan2.1", "num_layers": 3}, "cross_attn"),
        (LTXVModel, {}, {"image_model": "ltxv", "num_layers": 3}, "attn2"),
        (HunYuanDiT, {}, {"image_model": "hydit", "depth": 4}, "attn2"),
        (AudioDiffusionTransformer, {}, {"audio_model": "dit1.0", "depth": 3}, "cross_attn"),
        (Kandinsky5, {"num_text_blocks": 1}, {"image_model": "kandinsky5", "num_visual_blocks": 3}, "cross_attention"),
        (MiniTrainDIT, COSMOS, {"image_model": "cosmos_predict2", "num_blocks": 3}, "cross_attn"),
        (Anima, COSMOS, {"image_model": "anima", "num_blocks": 3}, "cross_attn"),
    ],
)
def test_transformer_tables_name_every_cross_attention_block(model, arguments, config, attention):
    counts = {key: value for key, value in config.items() if isinstance(value, int)}
    network = model(**counts, **arguments, device="meta", dtype=torch.float32, operations=OPERATIONS)
    names = table_for(config).names
    stem = names[0].rpartition(".")[0]
    found = [
        name.removesuffix(f".{attention}") for name, _ in network.named_modules() if name.endswith(f".{attention}")
    ]
    assert tuple(name for name in found if name.startswith(f"{stem}.")) == names
