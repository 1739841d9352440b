"""The nodes of the pack: one module per family, each with a `NODES` list; this file only collects them."""

from ._api import ComfyExtension, io


class GuidanceLab(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return []


async def comfy_entrypoint() -> ComfyExtension:
    return GuidanceLab()
