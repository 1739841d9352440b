"""The nodes of the pack: one module per family, each with a `NODES` list; this file only collects them."""

from . import (
    autoguidance,
    caption_residual,
    captioner_loader,
    clip_guidance,
    galip,
    objectives,
    per_block,
    shapes,
    trace,
    weaker_version,
    xti_files,
    xti_info,
    xti_mix,
    xti_prompt,
    xti_train,
)
from ._api import ComfyExtension, io

FAMILIES = [
    autoguidance, clip_guidance, objectives, captioner_loader, caption_residual, weaker_version, trace, galip, per_block,
    xti_prompt, xti_files, xti_mix, xti_info, xti_train, shapes,
]  # fmt: skip


class GuidanceLab(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for family in FAMILIES for node in family.NODES]


async def comfy_entrypoint() -> ComfyExtension:
    return GuidanceLab()
