"""XTI Style Mix: the geometry of one learned concept with the appearance of another."""

from ...xti.mixing import PRESETS, blend, cumulative, preset_layers, style_mix
from ...xti.selection import select
from .._api import io
from .xti_files import CATEGORY
from .xti_socket import XTIType

INNERMOST, LAYERS = "innermost layers", "layer set"


class XTIStyleMix(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_XTIStyleMix",
            display_name="XTI Style Mix",
            category=CATEGORY,
            description=(
                "Makes one learned token of two: the inner layers, which carry shape, from one, and the outer ones, "
                "which carry colour and texture, from the other. Both must be learned for the same model."
            ),
            search_aliases=[
                "style mixing",
                "mix xti",
                "P+",
                "geometry and appearance",
                "blend embeddings",
                "merge xti",
            ],
            inputs=[
                XTIType.Input("geometry", tooltip="Gives the chosen layers: the concept whose shape you want."),
                XTIType.Input(
                    "appearance", tooltip="Gives all other layers: the concept whose colours and texture you want."
                ),
                io.DynamicCombo.Input(
                    "layers",
                    options=[
                        *(io.DynamicCombo.Option(name, []) for name in PRESETS),
                        io.DynamicCombo.Option(
                            INNERMOST,
                            [
                                io.Int.Input(
                                    "count",
                                    default=4,
                                    min=0,
                                    max=80,
                                    tooltip="How many layers from the innermost outwards come from geometry: 0 none, "
                                    "16 all of SD1 (11 of SDXL); typical 2 to 8. More layers bring more of its look "
                                    "along.",
                                )
                            ],
                        ),
                        io.DynamicCombo.Option(
                            LAYERS,
                            [
                                io.String.Input(
                                    "names",
                                    default="IN08, MID, OUT03",
                                    tooltip="Layers that come from geometry: names (MID, IN08), numbers and ranges "
                                    "(5-7, IN07-OUT05), middle, outer, down, up, all, innermost 3; separated by "
                                    "commas.",
                                    extra_dict={"widgetType": "GUIDANCELAB_LAYER_SET"},  # of web/js/layer_editor.js
                                )
                            ],
                        ),
                    ],
                    tooltip="Which layers come from geometry. geometry core: IN08 and MID, as SVDiff and the XTI paper "
                    "use; geometry 5-7: "
                    "OUT03 too; innermost layers: growing from the middle outwards; layer set: your own.",
                ),
                io.Float.Input(
                    "amount",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How far the chosen layers go from appearance to geometry: 1 all the way (usual), 0 = "
                    "appearance alone. "
                    "Below 1 both must have equally many vectors.",
                ),
            ],
            outputs=[XTIType.Output(display_name="xti", tooltip="The mixed token, for XTI Prompt or XTI Save.")],
        )

    @classmethod
    def execute(cls, geometry, appearance, layers: dict | None = None, amount=1.0) -> io.NodeOutput:
        chosen = (layers or {}).get("layers")
        if chosen == INNERMOST:
            mixed = cumulative(geometry, appearance, layers["count"])
        elif chosen == LAYERS:
            mixed = style_mix(geometry, appearance, select(layers["names"], geometry.table))
        elif chosen in PRESETS:
            mixed = style_mix(geometry, appearance, preset_layers(chosen, geometry.table))
        else:  # ComfyUI drops an option that it does not know, and queues the prompt all the same
            raise ValueError(
                f"XTI Style Mix does not know these layers: choose one of {', '.join([*PRESETS, INNERMOST, LAYERS])}."
            )
        return io.NodeOutput(mixed if amount == 1.0 else blend(appearance, mixed, amount))


NODES = [XTIStyleMix]
