"""The `weight_curve` socket of the guidances: ComfyUI's own curve, from its Curve Editor, as a factor of the weight."""

import math
from collections.abc import Callable

from .._api import io
from .guidance import Guidance
from .live import Live
from .run import Run


def curve_input(weight: str) -> io.Input:
    """The socket; `weight`: what the node calls its weight."""
    # Core's own `io.Curve.Input` would be a widget that is always there.
    return io.Custom("CURVE").Input(
        "weight_curve",
        optional=True,
        tooltip=f"{weight} over time, from Curve Editor: from left to right the sampling, 0 to 1 as in start_percent; "
        f"upwards the share of {weight}, 1 all of it, 0 as outside of the window. Unconnected: 1 everywhere.",
        extra_dict={"forceInput": True},
    )


def over_time(curve: object) -> Callable[[float], float] | None:
    """The curve as percent -> factor; None without one. ValueError, in one sentence, for what is no curve."""
    if curve is None:
        return None
    try:
        from comfy_api.input import CurveInput  # a ComfyUI that lacks it has no curves to connect

        made = CurveInput.from_raw(curve)
        points = [number for point in made.points for number in point]
    except (ImportError, KeyError, TypeError, ValueError, AttributeError):
        points = []
    if not points or not all(math.isfinite(number) for number in points):
        raise ValueError("weight_curve is no curve of finite points: connect a Curve Editor.")
    return lambda percent: float(made.interp(percent))


def show_weights(guidance: Guidance, weight: float, run: Run, live: Live) -> None:
    """Draws on the node what the curve makes of the weight, step by step; nothing without a curve."""
    if guidance.over_time is not None and live.watched:
        live.send("weights", weights=guidance.weights(weight, run), neutral=guidance.neutral_weight)
