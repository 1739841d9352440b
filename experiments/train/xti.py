"""Learns the two example XTIs of the pack (6 KB each) through XTI Train, from renderings: a red dotted car and a blue
striped star.
"""

import torch

from guidance_lab.experiments.concepts import Concept
from guidance_lab.shapes import shipped
from guidance_lab.shapes.render import outline
from guidance_lab.shapes.world import hue_of
from guidance_lab.xti import save

EXAMPLES = (
    Concept("car", outline("car"), hue_of("red"), "dotted", "cube"),
    Concept("star", outline("star"), hue_of("blue"), "striped", "cube"),
)
STEPS = 100


def main() -> None:
    from guidance_lab.nodes.layers.xti_train import XTITrain

    model, clip, vae = shipped.load_model("main"), shipped.load_clip(), shipped.load_vae()
    node = XTITrain.PREPARE_CLASS_CLONE(None)
    for concept in EXAMPLES:
        pixels = torch.from_numpy(concept.pictures(8, seed=0)).float() / 255
        with torch.inference_mode():
            learned = node.execute(
                model, clip, concept.word, steps=STEPS, batch=4, pictures_at_once=4, preview_every=0, images=pixels,
                vae=vae,
                regulariser={"regulariser": "none"}, captions={"captions": "own lines", "lines": "a {} on white"},
            ).result[0]  # fmt: skip
        save(learned, shipped.WEIGHTS / "xti" / f"shapes_{concept.name}.safetensors", torch.float16)


if __name__ == "__main__":
    main()
