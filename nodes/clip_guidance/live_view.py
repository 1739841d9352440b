"""What CLIP guidance shows on its node while it runs: the estimate with the views that were scored, the score, and the
size of the push beside that of CFG.
"""

import torch
import torch.nn.functional as F

from ..host import Run, Step
from ..host.live import Live, picture_address
from .views import Seen


class LiveView:
    """One run. Figures are kept on the device until they are sent, so that no step waits for the GPU."""

    def __init__(self, node_id: str | None, run: Run):
        self.live, self.steps = Live(node_id), len(run.sigmas) - 1
        self.points: list[tuple[int, torch.Tensor | None, torch.Tensor, torch.Tensor | None]] = []
        self.seen: Seen | None = None

    def look(self) -> Seen | None:
        """Takes down what the next look sees, if it is to be shown."""
        self.seen = Seen() if self.live.due else None
        return self.seen

    def record(self, step: Step, score: torch.Tensor | None, push: torch.Tensor) -> None:
        """After each guided evaluation. score [B], None where the last gradient was used again; push [B, ...]: what is
        added.
        """
        if not self.live.watched or step.cond_denoised is None:
            return
        with torch.no_grad():
            whole = _norm(step.cond_denoised)
            cfg = None
            if step.uncond_denoised is not None:
                cfg = _norm((step.cond_scale - 1) * (step.cond_denoised - step.uncond_denoised)) / whole
            self.points.append((step.index, None if score is None else score.mean(), _norm(push) / whole, cfg))
        if self.live.due:
            self.flush()

    def flush(self) -> None:
        """Sends what was not sent yet."""
        if not self.points or not self.live.watched:
            return
        points = [[index, *(None if value is None else value.item() for value in rest)] for index, *rest in self.points]
        self.points = []
        seen, self.seen = self.seen, None
        shown = {} if seen is None or not seen.pieces else {"picture": _picture(seen), "views": _views(seen)}
        self.live.send("clip", steps=self.steps, points=_finite(points), **shown)


def _norm(value: torch.Tensor) -> torch.Tensor:
    return value.detach().float().flatten(1).norm(dim=1).mean()


def _finite(points: list[list]) -> list[list]:
    """JSON knows no NaN and no infinity."""
    finite = float("inf")
    return [[None if value is None or not abs(value) < finite else value for value in point] for point in points]


def _picture(seen: Seen) -> str:
    """The estimate as a data address; of a decoder that shows crops only, the crops in their places on grey."""
    box, piece = seen.pieces[0]
    if box is None:
        return picture_address(piece)
    height, width = seen.size
    scale = piece.shape[-1] / box.side
    sheet = torch.full((3, round(height * scale), round(width * scale)), 0.5)
    for box, piece in seen.pieces:
        top, left, side = (round(value * scale) for value in box)
        side = min(side, sheet.shape[1] - top, sheet.shape[2] - left)
        small = F.interpolate(piece[None].float().cpu(), (side, side), mode="area")[0]
        sheet[:, top : top + side, left : left + side] = small
    return picture_address(sheet)


def _views(seen: Seen) -> dict:
    """{"boxes": [[left, top, width, height], ...] as shares of the picture, "whole"}"""
    height, width = seen.size
    boxes = [[box.left / width, box.top / height, box.side / width, box.side / height] for box in seen.boxes]
    return {"boxes": boxes, "whole": seen.whole}
