"""The regularisers of XTI Train as choices on the node."""

from ...xti.training import DENSITY, NONE, NORM, NORM_DECAY
from .._api import io


def regularisers() -> list[io.DynamicCombo.Option]:
    """Each with its own inputs."""
    target = io.Float.Input(
        "target",
        default=0.0,
        min=0.0,
        max=10.0,
        step=0.01,
        tooltip="The norm to pull to; 0 = the mean norm of the words, 0.39 for CLIP-L.",
    )
    bandwidth = io.Float.Input(
        "bandwidth", default=0.0, min=0.0, max=10.0, step=0.001,
        tooltip="Width of the kernel around each word, in units of the embedding; 0 = Scott's rule, 0.014 for CLIP-L.",
    )  # fmt: skip
    rate = (
        "How much of the way to the target norm each step goes: 0 none, 0.1 to 0.5 typical (promptplusplus: 100 x "
        "learning rate)."
    )

    def weight(default: float, tooltip: str) -> io.Float.Input:
        return io.Float.Input("weight", default=default, min=0.0, max=1000.0, step=1e-6, tooltip=tooltip)

    return [
        io.DynamicCombo.Option(NONE, []),
        io.DynamicCombo.Option(
            NORM, [weight(0.1, "Factor of the mean squared distance of the norms to the target."), target]
        ),
        io.DynamicCombo.Option(NORM_DECAY, [weight(0.1, rate), target]),
        io.DynamicCombo.Option(DENSITY, [weight(1e-5, "Factor of the mean negative log density, in nats."), bandwidth]),
    ]
