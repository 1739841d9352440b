"""XTI Info: what a learned token is like, as text and as a plot."""

import json

import numpy as np
import torch

from ...xti.info_plot import plot
from ...xti.report import report
from .._api import io, ui
from .learned_tokens import clip_widths, vocabulary
from .route import table_json
from .xti_files import CATEGORY
from .xti_socket import XTIType


class XTIInfo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_XTIInfo",
            display_name="XTI Info",
            category=CATEGORY,
            description=(
                "Norms, nearest words and density of a learned token in every layer. Tokens far from all words, or "
                "much longer than words, draw what they learned and are hard to combine with other words."
            ),
            search_aliases=["inspect embedding", "embedding norm", "nearest tokens", "xti statistics", "P+"],
            inputs=[
                XTIType.Input("xti", tooltip="The learned token to look at."),
                io.Clip.Input(
                    "clip", tooltip="The text encoder that it was learned for; its words are the comparison."
                ),
                io.Int.Input(
                    "words",
                    default=5,
                    min=1,
                    max=50,
                    tooltip="How many nearest words to list for each vector; 3 to 10 typical.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="text", tooltip="One line per layer and vector, for each text encoder."),
                io.Image.Output(
                    display_name="plot",
                    tooltip="Norm, density and nearest words over the layers, 1024 x 640; one each.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, xti, clip, words=5) -> io.NodeOutput:
        known = clip_widths(clip)
        reports = []
        for encoder in xti.encoders:
            if encoder not in known:
                raise ValueError(
                    f"The XTI has tokens for {encoder}, and this CLIP has {', '.join(known)}: use the CLIP of its "
                    f"model."
                )
            own = vocabulary(clip, encoder)
            reports.append(report(xti, encoder, own.rows, own.words, words))
        source = xti.source if xti.source != "trained" else f"trained, {xti.metadata.get('steps')} steps"
        heading = f"{len(xti.table)} layers of {xti.table.architecture} ({source})"
        image = torch.from_numpy(np.stack([np.asarray(plot(one), dtype=np.float32) / 255.0 for one in reports]))
        # The canvas draws the nearest words of every layer itself (web/js/xti_words.js).
        words_of = {"table": table_json(xti.table), "encoders": [one.to_json() for one in reports]}
        shown = {**ui.PreviewImage(image, cls=cls).as_dict(), "guidance_lab_words": [json.dumps(words_of)]}
        return io.NodeOutput("\n\n".join([heading, *(one.text() for one in reports)]), image, ui=shown)


NODES = [XTIInfo]
