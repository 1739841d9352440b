"""XTI Train: learns a token per cross-attention layer from a few pictures."""

import json
import logging
import time
from dataclasses import asdict

import comfy.model_management
import comfy.utils
import latent_preview
import numpy as np
import torch
from PIL import Image

from ..xti import XTI
from ..xti.captions import OBJECT, STYLE
from ..xti.layers import LayerTable
from ..xti.loss_plot import plot
from ..xti.training import DENSITY, NONE, NORM, NORM_DECAY, Losses, Recipe, Trainer, Words
from ._api import io, ui
from .host.learned_tokens import clip_widths, vocabulary, word_rows
from .host.token_training import TokenNetwork, in_training, trainable_table
from .read_out import show_on_node
from .xti_files import CATEGORY, write
from .xti_socket import XTIType

OWN_LINES = "own lines"
CAPTIONS = {"object": OBJECT, "style": STYLE}


class TrainingRun:
    """One execution of the node: the trainer, what it trains on, and what is to be known of it in the file."""

    def __init__(self, model, clip, vae, captions: list[str], pictures: torch.Tensor, start: XTI, recipe: Recipe, node_id: str | None):
        self.model, self.clip, self.vae, self.captions, self.node_id = model, clip, vae, captions, node_id
        self.start, self.recipe = start, recipe
        self.first = int(start.metadata.get("steps", 0))
        device = model.load_device
        rows = list(start.layers.values())[: 1 if recipe.shared else None]
        words = [vocabulary(clip, encoder).rows for encoder in start.encoders]
        self.words = [Words.of(rows.to(device)) for rows in words]
        half = model.model.get_dtype_inference() == torch.float16
        self.trainer = Trainer([row.to(device) for row in rows], recipe, self.words, self.first, half)
        self.pictures = model.model.process_latent_in(pictures).clone()  # clone: out of inference mode
        self.vectors = max(len(row) for row in rows)
        self.history: list[Losses] = []
        self.seconds = 0.0

    def train(self, steps: int, preview_every: int) -> None:
        """All steps. What is learned stays in the trainer when an interrupt or an error ends it early."""
        bar = comfy.utils.ProgressBar(steps)
        stretch = preview_every or steps
        for begin in range(0, steps, stretch):
            # In stretches, so that the VAE is never loaded while the backward pass relies on the U-net's place in memory.
            with in_training(self.model, self.clip, self.captions, self.vectors) as network:
                for step in range(begin, min(begin + stretch, steps)):
                    comfy.model_management.throw_exception_if_processing_interrupted()
                    self._step(network)
                    bar.update_absolute(step + 1)
                drawn = self._draw(network) if preview_every else None
            if drawn is not None:
                bar.update_absolute(min(begin + stretch, steps), preview=self._preview(drawn))

    def _step(self, network: TokenNetwork) -> None:
        began = time.perf_counter()
        losses = self.trainer.step(self.pictures, len(self.captions), len(network.sigmas), network.encode, network.predict)
        self.seconds += time.perf_counter() - began
        self.history.append(losses)
        recent = [step.reconstruction for step in self.history[-20:]]
        show_on_node(f"step {self.trainer.done}: loss {sum(recent) / len(recent):.4f}, norm {losses.norm:.3f}", self.node_id)

    def _draw(self, network: TokenNetwork) -> torch.Tensor:
        noise = torch.randn(1, *self.pictures.shape[1:], generator=torch.Generator().manual_seed(0))
        return network.sample(0, self.trainer.rows, noise)

    def _preview(self, latent: torch.Tensor) -> tuple | None:
        """What ComfyUI's progress bar takes as a picture; without a VAE its own latent preview, where that is switched on."""
        size = latent_preview.MAX_PREVIEW_RESOLUTION
        if self.vae is not None:
            with torch.no_grad():
                pixels = self.vae.decode(latent)[0].clamp(0, 1)
            return "JPEG", Image.fromarray((255 * pixels.cpu().numpy()).astype(np.uint8)), size
        previewer = latent_preview.get_previewer(self.model.load_device, self.model.model.latent_format)
        return previewer and previewer.decode_latent_to_preview_image("JPEG", self.model.model.process_latent_in(latent))

    def learned(self) -> XTI:
        """The XTI as it is now."""
        rows = [row.detach().cpu().clone() for row in self.trainer.rows]
        layers = dict(zip(self.start.table.names, rows * (len(self.start.table) if self.recipe.shared else 1), strict=True))
        metadata = {**self.start.metadata, "steps": str(self.trainer.done), "recipe": json.dumps(asdict(self.recipe))}
        return XTI(self.start.table, layers, "trained", self.start.encoders, self.start.tokens, metadata)

    def plot(self) -> torch.Tensor:
        """The loss plot as an IMAGE [1, height, width, 3]."""
        picture = plot(self.history, self.words[0].norm, self.first, self.seconds)
        return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255.0)[None]


def _captions(captions: dict | None) -> list[str]:
    kind = (captions or {}).get("captions")
    if kind == OWN_LINES:
        lines = [line.strip() for line in captions["lines"].splitlines() if line.strip()]
        if not lines:
            raise ValueError("XTI Train has no caption: write at least one line with {} in the place of the learned token.")
        return lines
    if kind not in CAPTIONS:  # ComfyUI drops an option that it does not know, and queues the prompt all the same
        raise ValueError(f"XTI Train does not know these captions: choose one of {', '.join([*CAPTIONS, OWN_LINES])}.")
    return list(CAPTIONS[kind])


def _latents(model, images, vae, latents: dict | None) -> torch.Tensor:
    """Latents [N, C, h, w] as the VAE makes them, of the one of the two inputs that is connected."""
    if (images is None) == (latents is None):
        raise ValueError("XTI Train needs pictures: connect either images (with vae) or latents.")
    if images is not None and vae is None:
        raise ValueError("XTI Train needs the VAE of the model to encode the images: connect vae, or give latents.")
    found = vae.encode(images[..., :3]) if images is not None else latents["samples"]
    channels = model.model.latent_format.latent_channels
    if found.is_nested or found.ndim != 4 or found.shape[1] != channels:
        raise ValueError(f"XTI Train needs latents of {channels} channels, as this model has, and got {list(found.shape)}: check the VAE.")
    return found


def _resumed(resume: XTI, table: LayerTable, widths: dict[str, int], shared: bool) -> XTI:
    """The XTI to go on with, for the layers of this model. ValueError where it cannot."""
    if resume.encoders != widths:
        theirs, ours = (", ".join(f"{name} ({width})" for name, width in each.items()) for each in (resume.encoders, widths))
        raise ValueError(f"The XTI to resume has tokens for {theirs}, and the CLIP has {ours}: use the CLIP that it was learned with.")
    if shared and not resume.shared:
        raise ValueError("The XTI to resume differs from layer to layer and cannot go on as one shared token: switch shared off.")
    return resume.fit(table)


class XTITrain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_XTITrain",
            display_name="XTI Train",
            category=CATEGORY,
            description=(
                "Learns a new word from a few pictures: one token per cross-attention layer (XTI), or one for all (textual inversion). "
                "Model and text encoder stay as they are. Interrupting keeps what is learned, in output/xti."
            ),
            search_aliases=["extended textual inversion", "textual inversion", "P+", "train embedding", "learn concept", "personalization"],
            inputs=[
                io.Model.Input("model", tooltip="The model to learn for: SD1, SD2 or SDXL, predicting eps or v. LoRAs on it count."),
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                io.String.Input(
                    "init_word",
                    default="object",
                    tooltip="Where to start: a word for the kind of thing, such as dog, chair or painting. embedding:name starts from a "
                    "textual inversion. Not used with resume.",
                ),
                io.Int.Input(
                    "vectors",
                    default=1,
                    min=1,
                    max=32,
                    tooltip="Vectors per layer, each takes the place of one word in the prompt: 1 typical, 2 to 8 copy more and are harder "
                    "to edit. Not used with resume.",
                ),
                io.Int.Input("steps", default=500, min=1, max=100000, tooltip="Updates to make: 500 in the XTI paper, 5000 for shared."),
                io.Float.Input(
                    "learning_rate",
                    default=5e-3,
                    min=1e-6,
                    max=1.0,
                    step=1e-6,
                    tooltip="Step size of Adam: 0.005 in the papers; 0.001 to 0.01 typical.",
                ),
                io.Int.Input("batch", default=8, min=1, max=1024, tooltip="Pictures (each with its own noise) per update: 8 in the paper."),
                io.DynamicCombo.Input(
                    "regulariser",
                    options=_regularisers(),
                    tooltip="Keeps the token near real words, so that prompts can still change it: none; norm pulls its length to that of "
                    "words; norm decay does so after each step (promptplusplus); density pulls it to where words are dense (the P+ paper's "
                    "idea; the exact formula is ours).",
                ),
                io.DynamicCombo.Input(
                    "captions",
                    options=[
                        *(io.DynamicCombo.Option(name, []) for name in CAPTIONS),
                        io.DynamicCombo.Option(
                            OWN_LINES,
                            [
                                io.String.Input(
                                    "lines",
                                    multiline=True,
                                    default="a photo of a {}",
                                    tooltip="One caption per line, {} where the learned token goes; each step takes one at random.",
                                )
                            ],
                        ),
                    ],
                    tooltip="Texts around the token: object (27 such as 'a photo of a {}'), style (17 such as 'a painting in the style of "
                    "{}'), or your own lines.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=False,
                    tooltip="Seed of this node's own random numbers, 0 to 2^64 - 1: order of pictures and captions, noise levels, noise.",
                ),
                io.Boolean.Input(
                    "shared",
                    default=False,
                    tooltip="One token for all layers: ordinary textual inversion. Off (XTI) learns faster and holds more detail.",
                ),
                io.Int.Input(
                    "pictures_at_once",
                    default=1,
                    min=1,
                    max=1024,
                    tooltip="How many pictures of a batch go through the model together: memory against speed, not the result. "
                    "1 for a small GPU, the batch size where it fits.",
                ),
                io.Int.Input(
                    "preview_every",
                    default=50,
                    min=0,
                    max=100000,
                    tooltip="Steps between pictures of what the token draws (first caption, 12 sampling steps, no CFG); 0 = none.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="The pictures to learn from, 3 to 10 typical, all of one size, the model's own (512 for SD1, 1024 for SDXL).",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Encodes the images, and decodes the previews."),
                io.Latent.Input("latents", optional=True, tooltip="Encoded pictures, instead of images."),
                XTIType.Input("resume", optional=True, tooltip="A learned token to go on with, instead of the initial word."),
            ],
            outputs=[
                XTIType.Output(display_name="xti", tooltip="The learned token, for XTI Prompt, XTI Save and XTI Style Mix."),
                io.Image.Output(display_name="loss_plot", tooltip="Loss, regulariser and token norm over the steps, 1024 x 640."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls, model, clip, init_word="object", vectors=1, steps=500, learning_rate=5e-3, batch=8, regulariser=None, captions=None, seed=0,
        shared=False, pictures_at_once=1, preview_every=50, images=None, vae=None, latents=None, resume=None,
    ) -> io.NodeOutput:  # fmt: skip
        table, widths = trainable_table(model), clip_widths(clip)
        settings = dict(regulariser or {})
        recipe = Recipe(learning_rate, batch, pictures_at_once, shared, settings.pop("regulariser", ""), seed=seed, **settings)
        texts, pictures = _captions(captions), _latents(model, images, vae, latents)
        if resume is None:
            layers = dict.fromkeys(table.names, word_rows(clip, init_word, vectors))
            start = XTI(table, layers, "word", widths, metadata={"init_word": init_word})
        else:
            start = _resumed(resume, table, widths, shared)
        with torch.inference_mode(False), torch.enable_grad():
            run = TrainingRun(model, clip, vae, texts, pictures, start, recipe, cls.hidden.unique_id)
            try:
                run.train(steps, preview_every)
            except comfy.model_management.InterruptProcessingException:
                # Handing it on would be taken, and cached, for the result of all steps.
                if run.history:
                    path = write(run.learned(), "xti/interrupted", torch.float32, cls.hidden.prompt, cls.hidden.extra_pnginfo)
                    logging.info("Guidance Lab: XTI Train was interrupted; what %d steps learned is in %s", run.trainer.done, path)
                    show_on_node(f"interrupted after step {run.trainer.done}; kept in output/xti", cls.hidden.unique_id)
                raise
            except FloatingPointError as error:
                raise ValueError(f"XTI Train stopped: {error}.") from error
            image = run.plot()
            return io.NodeOutput(run.learned(), image, ui=ui.PreviewImage(image, cls=cls))


def _regularisers() -> list[io.DynamicCombo.Option]:
    target = io.Float.Input(
        "target", default=0.0, min=0.0, max=10.0, step=0.01, tooltip="The norm to pull to; 0 = the mean norm of the words, 0.39 for CLIP-L."
    )
    bandwidth = io.Float.Input(
        "bandwidth", default=0.0, min=0.0, max=10.0, step=0.001,
        tooltip="Width of the kernel around each word, in units of the embedding; 0 = Scott's rule, 0.014 for CLIP-L.",
    )  # fmt: skip
    rate = "How much of the way to the target norm each step goes: 0 none, 0.1 to 0.5 typical (promptplusplus: 100 x learning rate)."

    def weight(default: float, tooltip: str) -> io.Float.Input:
        return io.Float.Input("weight", default=default, min=0.0, max=1000.0, step=1e-6, tooltip=tooltip)

    return [
        io.DynamicCombo.Option(NONE, []),
        io.DynamicCombo.Option(NORM, [weight(0.1, "Factor of the mean squared distance of the norms to the target."), target]),
        io.DynamicCombo.Option(NORM_DECAY, [weight(0.1, rate), target]),
        io.DynamicCombo.Option(DENSITY, [weight(1e-5, "Factor of the mean negative log density, in nats."), bandwidth]),
    ]


NODES = [XTITrain]
