"""The Shapes GALIP on the canvas: the demo node's outputs, CLIP Text Encode and GALIP Sampler draw what was asked for.

How good it is is measured by `python dev.py evidence galip`.
"""

import numpy as np
import torch
from nodes import CLIPTextEncode

from guidance_lab.shapes.read import judge, read
from guidance_lab.shapes.world import COLOURS, OBJECTS, parse


def test_the_text_arrives(run_node):
    """Far above chance, one in eight for a colour: the pooled output is the sentence that the generator was trained
    with.
    """
    outputs = run_node("GuidanceLab_ShapesDemoModels")
    clip, galip = outputs[1], next(value for value in outputs if type(value).__name__ == "Galip")
    scores = []
    for index, (name, colour) in enumerate((name, colour) for name in OBJECTS for colour in COLOURS):
        scene = parse(f"a {colour} {name} on white")
        with torch.inference_mode():
            conditioning = CLIPTextEncode().encode(clip, scene.caption)[0]
        image = run_node("GuidanceLab_GALIPSampler", galip=galip, conditioning=conditioning, seed=index)[0]
        assert image.shape == (1, 128, 128, 3)
        scores.append(judge(scene, read((image[0] * 255).round().byte().numpy())))
    assert np.mean([score["background"] for score in scores]) > 0.8
    assert np.mean([score["colour"] for score in scores]) > 0.35  # of a thing that is right itself
