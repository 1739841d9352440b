"""The nodes of the pack, one folder per family with a `NODES` list; this file only collects them."""

import logging
from importlib import import_module

from ._api import ComfyExtension, io
from .host.checked_inputs import checked

FAMILIES = ("autoguidance", "clip_guidance", "captions", "trace", "galip", "glide", "layers", "compare", "shapes")


class GuidanceLab(ComfyExtension):
    async def on_load(self) -> None:
        try:
            from .layers.route import add_route
        except ImportError:
            return  # the family is not there, and says why when its nodes are listed
        add_route()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [checked(node) for family in FAMILIES for node in _nodes_of(family)]


def _nodes_of(family: str) -> list[type[io.ComfyNode]]:
    """The nodes of a family; none, with the reason in the log, where this ComfyUI lacks something that they build on.

    ComfyUI renames its internals between releases, and what that breaks must not take the other families along.
    """
    try:
        return import_module(f".{family}", __package__).NODES
    except ImportError as error:
        logging.error("Guidance Lab: no nodes of the family '%s' with this ComfyUI: %s", family, error)
        return []
