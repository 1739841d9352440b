"""GALIP Save: the generator of any checkpoint as a small safetensors file."""

import json

import torch
from comfy.cli_args import args

from ...galip import save_generator
from .._api import io
from ..host.saving import save_below_output
from .model import CATEGORY, GalipSocket

PRECISIONS = {"fp16": torch.float16, "fp32": torch.float32}


class GALIPSave(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_GALIPSave",
            display_name="GALIP Save",
            category=CATEGORY,
            description=(
                "Writes the generator alone, without discriminator and optimisers, as a safetensors file into the "
                "output folder. Move it to models/galip to load it. The licence of the weights stays that of the "
                "checkpoint."
            ),
            search_aliases=["GALIP", "convert checkpoint", "pth to safetensors", "export generator"],
            inputs=[
                GalipSocket.Input("galip", tooltip="The generator to write, from GALIP Loader with precision fp32."),
                io.String.Input(
                    "filename_prefix",
                    default="galip/generator",
                    tooltip="Folder and beginning of the file name inside the output folder; a number is added, and no "
                    "file is overwritten.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="fp16",
                    tooltip="fp16: about 280 MB for official checkpoints, exact enough for every use. fp32: twice "
                    "that, every bit kept.",
                ),
            ],
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, galip, filename_prefix="galip/generator", precision="fp16") -> io.NodeOutput:
        dtype = PRECISIONS[precision]
        if galip.dtype not in (torch.float32, dtype):
            raise ValueError(
                f"{galip.name} was loaded in {galip.dtype}, which {precision} cannot restore; load it with precision "
                f"fp32 to save it."
            )
        metadata = {"source": galip.name}
        if not args.disable_metadata:
            notes = {"prompt": cls.hidden.prompt, **(cls.hidden.extra_pnginfo or {})}
            metadata.update({key: json.dumps(value) for key, value in notes.items() if value is not None})
        save_below_output(filename_prefix, lambda path: save_generator(galip.generator, path, dtype, metadata))
        return io.NodeOutput()
