"""A line of text on a node in the canvas, at any time while a prompt runs."""

import sys


def show_on_node(text: str, node_id: str | None) -> None:
    """Shows `text` on the node with this id (`hidden.unique_id`), in place of what it showed; nothing without a
    server.
    """
    server = getattr(sys.modules.get("server"), "PromptServer", None)  # there is none when nodes run without a server
    if node_id is not None and getattr(server, "instance", None) is not None:
        server.instance.send_progress_text(text, node_id)
