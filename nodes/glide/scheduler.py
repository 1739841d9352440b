"""GLIDE Scheduler: the timesteps of the original as SIGMAS."""

import torch

from ...glide.diffusion import respaced
from .._api import io
from .run_state import CATEGORY


def noise_levels(model, steps: str, denoise: float) -> torch.Tensor:
    """The noise levels of the kept timesteps, falling, with 0 at the end; of `denoise` < 1 only that share of the
    steps, at the end.

    ValueError when `steps` is not understood, or the model has no table of timesteps.
    """
    sampling = model.get_model_object("model_sampling")
    table = getattr(sampling, "sigmas", None)
    if table is None or not hasattr(sampling, "log_sigmas"):
        raise ValueError(
            "GLIDE Scheduler picks from a table of timesteps, and this model has none; use it with GLIDE's models."
        )
    kept = respaced(steps.strip(), len(table))
    kept = kept[: max(1, round(len(kept) * denoise))] if denoise > 0 else []
    if not kept:
        return torch.FloatTensor([])
    return torch.cat([table[kept].flip(0).float().cpu(), torch.zeros(1)])


class GLIDEScheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_GLIDEScheduler",
            display_name="GLIDE Scheduler",
            category=CATEGORY,
            description="The steps that GLIDE was published with, as SIGMAS for SamplerCustomAdvanced.",
            search_aliases=["GLIDE", "fast27", "timestep respacing", "respace", "sigmas"],
            inputs=[
                io.Model.Input("model", tooltip="A MODEL of GLIDE Loader; its table of 1000 timesteps is read."),
                io.String.Input(
                    "steps",
                    default="100",
                    tooltip="A number of even steps (100 for the base network, 27 to 250 usual), fast27 for the "
                    "upsamplers, numbers for equal parts of the noise range from the cleanest (10,10,3,2,2), or ddim25 "
                    "for an integer stride.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="1: from pure noise. Less: only that share of the steps, at the end, to change a given "
                    "picture (VAE Encode); 0.5 to 0.8 keeps its layout. 0 gives no steps.",
                ),
            ],
            outputs=[io.Sigmas.Output(tooltip="Noise levels of the steps, the last one 0.")],
        )

    @classmethod
    def execute(cls, model, steps="100", denoise=1.0) -> io.NodeOutput:
        return io.NodeOutput(noise_levels(model, steps, denoise))
