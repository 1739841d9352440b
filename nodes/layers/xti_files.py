"""XTI Loader and XTI Save: learned tokens from and to files."""

import json
import os
from dataclasses import replace

import folder_paths
import torch
from comfy.cli_args import args

from ...shapes import shipped
from ...xti import XTI, load, save
from ...xti.mixing import scale
from .._api import io, ui
from ..host.folders import files_in, path_of
from ..host.saving import save_below_output
from . import training_state
from .xti_socket import XTIType

CATEGORY = "Guidance Lab/XTI"
FOLDER = "xti"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def xti_files() -> list[str]:
    """Names of the files in models/xti, extra model paths, output/xti (where XTI Save writes) and the pack's own tiny
    examples.
    """
    own = os.path.join(folder_paths.models_dir, FOLDER)
    for path in (own, os.path.join(folder_paths.get_output_directory(), FOLDER), str(shipped.WEIGHTS / FOLDER)):
        folder_paths.add_model_folder_path(FOLDER, path)
    folder_paths.folder_names_and_paths[FOLDER][1].add(".bin")  # mkshing, SeongMon
    return files_in(FOLDER)


def write(
    xti: XTI, prefix: str, dtype: torch.dtype, prompt: dict | None = None, extra_pnginfo: dict | None = None
) -> str:
    """Save an XTI under a new number below ComfyUI's output folder, with the prompt unless metadata is switched off;
    returns its path.
    """
    metadata = {key: text for key, text in xti.metadata.items() if key not in ("name", "prompt", "workflow")}
    if not args.disable_metadata:
        recorded = {"prompt": prompt, **(extra_pnginfo or {})}
        metadata |= {key: json.dumps(value) for key, value in recorded.items() if value is not None}
    return str(save_below_output(prefix, lambda path: save(replace(xti, metadata=metadata), path, dtype)))


class XTILoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_XTILoader",
            display_name="XTI Loader",
            category=CATEGORY,
            description=(
                "Loads a learned token per cross-attention layer (XTI, P+) from models/xti: files of kohya, mkshing, "
                "SeongMon, promptplusplus, Mix-of-Show ED-LoRA and Guidance Lab, and ordinary textual inversion "
                "embeddings. Nothing is unpickled."
            ),
            search_aliases=[
                "extended textual inversion",
                "P+",
                "prompt plus",
                "embedding",
                "textual inversion",
                "ED-LoRA",
                "load xti",
            ],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=xti_files(),
                    tooltip="A file in models/xti, in the xti folder of extra_model_paths.yaml, or in output/xti, "
                    "where XTI Save writes: .safetensors, .pt, .bin, .pth or .ckpt. An embedding must be copied here "
                    "from models/embeddings.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-4.0,
                    max=4.0,
                    step=0.05,
                    tooltip="Factor on every learned vector: 1 as it was learned (typical 0.7 to 1.2), 0 the zero "
                    "vector.",
                ),
                io.String.Input(
                    "token",
                    default="",
                    optional=True,
                    tooltip="Only for files with several learned words: which one, as it is written there, such as "
                    "<cat>. Empty: the only one, or all numbered words of an ED-LoRA. A wrong one is answered with the "
                    "list.",
                ),
                io.Boolean.Input(
                    "common_token_first",
                    default=False,
                    optional=True,
                    tooltip="Only for promptplusplus files learned with preserve_prefix, which the file does not say: "
                    "puts its common token before the vectors of every layer.",
                ),
            ],
            outputs=[
                XTIType.Output(
                    display_name="xti", tooltip="The learned token, for XTI Prompt, XTI Style Mix, XTI Train, XTI Info."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file, strength=1.0, token="", common_token_first=False):
        stat = os.stat(path_of(FOLDER, file))
        return [stat.st_mtime_ns, stat.st_size]

    @classmethod
    def execute(cls, file, strength=1.0, token="", common_token_first=False) -> io.NodeOutput:
        xti = scale(load(path_of(FOLDER, file), token.strip() or None, common_token_first), strength)
        named = {**xti.metadata, "name": os.path.splitext(os.path.basename(file))[0]}  # XTI Prompt knows it as xti:name
        return io.NodeOutput(replace(xti, metadata=named))


class XTISave(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_XTISave",
            display_name="XTI Save",
            category=CATEGORY,
            description=(
                "Writes a learned token per layer as .safetensors into ComfyUI's output folder, never over another "
                "file. For SD1 and SD2 with kohya's keys and shapes, so that other programs read it; for SDXL and "
                "others in the format on the help page."
            ),
            search_aliases=["save xti", "export xti", "extended textual inversion", "P+", "save embedding"],
            inputs=[
                XTIType.Input("xti", tooltip="The learned token to save, from XTI Train, XTI Style Mix or XTI Loader."),
                io.String.Input(
                    "filename_prefix",
                    default="xti/xti",
                    tooltip="Folder and beginning of the name below the output folder, as in Save Image; a number is "
                    "added. XTI Loader finds what is in output/xti.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="float32",
                    tooltip="Precision: an SD1 token of one vector takes 48 KB in float32 and half of it in the "
                    "others.",
                ),
            ],
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, xti, filename_prefix="xti/xti", dtype="float32") -> io.NodeOutput:
        # Adam's memory is thrice the token, and of use to its trainer alone.
        xti = replace(xti, metadata={key: xti.metadata[key] for key in xti.metadata if key != training_state.KEY})
        path = write(xti, filename_prefix, DTYPES[dtype], cls.hidden.prompt, cls.hidden.extra_pnginfo)
        shown = os.path.relpath(path, folder_paths.get_output_directory())
        return io.NodeOutput(ui=ui.PreviewText(f"Saved {shown}"))


NODES = [XTILoader, XTISave]
