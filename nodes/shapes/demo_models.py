"""Shapes: the tiny models that ship with the pack, so that every example workflow runs anywhere in seconds."""

from functools import cached_property

import folder_paths

from ...galip import load_generator
from ...shapes import shipped
from ...shapes.captioner import captioner_processor
from ...shapes.clip import tokens
from ...shapes.words import MAX_TOKENS
from ...shapes.world import SIZE
from ...weight_files.clip import MEAN, STD
from .._api import io
from ..captions import CaptionerSocket, HeldNetwork, TransformersCaptioner
from ..clip_guidance import OpenCLIPScorer, ScorerSocket
from ..galip import Galip, GalipSocket
from ..host.networks import as_patcher


class ShapesScorer(OpenCLIPScorer):
    """The Shapes CLIP. Built at its first use: open_clip takes seconds to import, and most workflows have no use for
    it.
    """

    def __init__(self):
        self.name, self.side = "Shapes CLIP", SIZE
        self.tokenize, self.mean, self.std = tokens, MEAN, STD

    @cached_property
    def models(self):
        return (as_patcher(shipped.load_clip_module()),)


class ShapesCaptioner(TransformersCaptioner):
    """The Shapes captioner. Built at its first use, for the same reason."""

    def __init__(self):
        self.name, self.max_tokens, self.task = "Shapes captioner", MAX_TOKENS - 2, None

    @cached_property
    def models(self):
        return (as_patcher(HeldNetwork(shipped.load_captioner())),)

    @cached_property
    def processor(self):
        return captioner_processor()


class ShapesDemoModels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_ShapesDemoModels",
            display_name="Shapes Demo Models",
            category="Guidance Lab/Shapes",
            description=(
                "The tiny diffusion models that ship with Guidance Lab. They draw 128×128 pictures of balls, cubes, "
                "stars, houses, cars, lizards, trees, fish, cups and mushrooms in seconds on any computer, so that "
                "every example workflow runs at once and every effect can be measured."
            ),
            search_aliases=["shapes", "demo model", "tiny model", "test checkpoint", "toy model"],
            inputs=[],
            outputs=[
                io.Model.Output(
                    "model",
                    tooltip="The main model: SD1.5's layout with 16 cross-attention layers, eps-prediction. Use "
                    "128×128 pixels, 12–20 steps.",
                ),
                io.Clip.Output(
                    "clip",
                    tooltip="Its text encoder. It knows captions such as 'a red striped cube left of a blue ball on "
                    "white'; the help page lists every word.",
                ),
                io.Vae.Output("vae", tooltip="Its VAE: 8 pixels to a latent, 4 channels."),
                io.Model.Output(
                    "early_guide",
                    tooltip="A guide for autoguidance: the same network early in the same training run.",
                ),
                io.Model.Output(
                    "small_guide",
                    tooltip="A guide for autoguidance: a smaller network, trained for a shorter time on the same "
                    "pictures.",
                ),
                ScorerSocket.Output(
                    "clip_scorer",
                    tooltip="A CLIP of Shapes pictures and captions for CLIP guidance: 128×128 pixels, 1 M parameters "
                    "in the image tower.",
                ),
                CaptionerSocket.Output(
                    "captioner",
                    tooltip="A BLIP of 1.2 M parameters that writes the caption of a Shapes picture, for Caption "
                    "Residual Guidance.",
                ),
                GalipSocket.Output(
                    "galip",
                    tooltip="A small GALIP for GALIP Sampler and GALIP Interpolate: 128×128 pixels in one pass of some "
                    "10 ms. Its text comes from the clip output above through CLIP Text Encode.",
                ),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        weights, sizes = shipped.galip_weights()
        return io.NodeOutput(
            shipped.load_model("main"),
            shipped.load_clip(folder_paths.get_folder_paths("embeddings")),
            shipped.load_vae(),
            shipped.load_model("early"),
            shipped.load_model("small"),
            ShapesScorer(),
            ShapesCaptioner(),
            Galip(load_generator(weights, sizes=sizes), "Shapes GALIP"),
        )


NODES = [ShapesDemoModels]
