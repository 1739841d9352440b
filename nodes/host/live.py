"""What a node shows on the canvas while a prompt runs: small messages to the page that queued it.

    event "guidance_lab.live" → {"node", "run", "kind", ...}

Nothing is computed or sent where nobody looks: without a server, and for a prompt that no connected page queued.
"""

import base64
import io
import sys
import time
import uuid

import torch
from PIL import Image

EVENT = "guidance_lab.live"
LEAST_SECONDS = 0.3  # between two messages of one node
LARGEST = 256  # pixels, the longer side of a picture


class Live:
    """The messages of one node in one run of it."""

    def __init__(self, node_id: str | None):
        self.node_id, self.run, self._sent = node_id, uuid.uuid4().hex, -LEAST_SECONDS

    def _server(self):
        """The server whose connected page queued the prompt; None where there is none."""
        server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
        if self.node_id is None or server is None or server.client_id not in server.sockets:
            return None
        return server

    @property
    def watched(self) -> bool:
        """Whether somebody looks."""
        return self._server() is not None

    @property
    def due(self) -> bool:
        """Whether somebody looks and the last message is long enough ago."""
        return time.monotonic() - self._sent >= LEAST_SECONDS and self.watched

    def send(self, kind: str, **what) -> None:
        """Sends what JSON can say, whether it is due or not."""
        server = self._server()
        if server is not None:
            self._sent = time.monotonic()
            server.send_sync(EVENT, {"node": self.node_id, "run": self.run, "kind": kind, **what}, server.client_id)


def picture_address(picture: torch.Tensor) -> str:
    """A picture [3, H, W] in 0..1 as a data address, made small."""
    pixels = (255 * picture.detach().float().clamp(0, 1)).byte().permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(pixels)
    image.thumbnail((LARGEST, LARGEST))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
