"""GLIDE Sampler: the original's two ways of a step as a SAMPLER."""

from .._api import io
from .run_state import CATEGORY


class GLIDESampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_GLIDESampler",
            display_name="GLIDE Sampler",
            category=CATEGORY,
            description=(
                "GLIDE's own steps for SamplerCustomAdvanced: ancestral with the variance that the network has "
                "learned, or DDIM. "
                "CLIP Guidance moves them as in the paper."
            ),
            search_aliases=["GLIDE", "learned variance", "DDPM", "ancestral sampling", "DDIM", "p_sample"],
            inputs=[
                io.DynamicCombo.Input(
                    "method",
                    options=[
                        io.DynamicCombo.Option("ancestral", []),
                        io.DynamicCombo.Option(
                            "ddim",
                            [
                                io.Float.Input(
                                    "eta",
                                    default=0.0,
                                    min=0.0,
                                    max=1.0,
                                    step=0.05,
                                    tooltip="How much new noise each step adds: 0 none, so the first noise alone "
                                    "decides (usual); 1 as much as DDPM's smallest variance.",
                                )
                            ],
                        ),
                    ],
                    tooltip="ancestral: new noise at each step, by the network's own variance; for base and both "
                    "inpaint networks. ddim: for the upsampler with fast27 steps. One evaluation of the model per step "
                    "either way.",
                ),
            ],
            outputs=[
                io.Sampler.Output(
                    tooltip="For SamplerCustomAdvanced or SamplerCustom with a MODEL of GLIDE Loader; noise levels "
                    "from GLIDE Scheduler."
                )
            ],
        )

    @classmethod
    def execute(cls, method: dict | None = None) -> io.NodeOutput:
        from .sampling import ANCESTRAL, DDIM, glide_sampler

        name = (method or {}).get("method")
        if name not in (ANCESTRAL, DDIM):
            raise ValueError(f"GLIDE Sampler does not know the method '{name}': choose {ANCESTRAL} or {DDIM}.")
        return io.NodeOutput(glide_sampler(name, eta=method.get("eta", 0.0)))
