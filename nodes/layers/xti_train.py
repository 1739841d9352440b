"""XTI Train: learns a token per cross-attention layer from a few pictures."""

import logging

import torch

from ...xti import XTI
from ...xti.rates import CONSTANT
from ...xti.training import Recipe
from .._api import io, ui
from ..host.node_text import show_on_node
from .learned_tokens import clip_widths, word_rows
from .token_training import trainable_table
from .training_inputs import CAPTIONS, OWN_LINES, more_inputs, pictures_of, resumed, shared_captions
from .training_run import More, TrainingRun, steps_of
from .xti_files import CATEGORY, write
from .xti_regularisers import regularisers
from .xti_socket import XTIType


class XTITrain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_XTITrain",
            display_name="XTI Train",
            category=CATEGORY,
            description=(
                "Learns a new word from a few pictures: one token per cross-attention layer (XTI), or one for all "
                "(textual inversion). "
                "Model and text encoder stay as they are. Whatever ends it early, what is learned is in output/xti."
            ),
            search_aliases=[
                "extended textual inversion",
                "textual inversion",
                "P+",
                "train embedding",
                "learn concept",
                "personalization",
            ],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to learn for: SD1, SD2 or SDXL, predicting eps or v. LoRAs on it count."
                ),
                io.Clip.Input("clip", tooltip="The text encoder of the model."),
                io.String.Input(
                    "init_word",
                    default="object",
                    tooltip="Where to start: a word for the kind of thing, such as dog, chair or painting. "
                    "embedding:name starts from a textual inversion. Not used with resume.",
                ),
                io.Int.Input(
                    "vectors",
                    default=1,
                    min=1,
                    max=32,
                    tooltip="Vectors per layer, each takes the place of one word in the prompt: 1 typical, 2 to 8 copy "
                    "more and are harder to edit. Not used with resume.",
                ),
                io.Int.Input(
                    "steps",
                    default=500,
                    min=1,
                    max=100000,
                    tooltip="Updates to make: 500 in the XTI paper, 5000 for shared.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=5e-3,
                    min=1e-6,
                    max=1.0,
                    step=1e-6,
                    tooltip="Step size of Adam: 0.005 in the papers; 0.001 to 0.01 typical.",
                ),
                io.Int.Input(
                    "batch",
                    default=8,
                    min=1,
                    max=1024,
                    tooltip="Pictures (each with its own noise) per update: 8 in the paper.",
                ),
                io.DynamicCombo.Input(
                    "regulariser",
                    options=regularisers(),
                    tooltip="Keeps the token near real words, so that prompts can still change it: none; norm pulls "
                    "its length to that of words; norm decay does so after each step (promptplusplus); density pulls "
                    "it to where words are dense (the P+ paper's idea; the exact formula is ours).",
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
                                    tooltip="One caption per line, {} where the learned token goes; each step takes "
                                    "one at random.",
                                )
                            ],
                        ),
                    ],
                    tooltip="Texts around the token: object (27 such as 'a photo of a {}'), style (17 such as 'a "
                    "painting in the style of {}'), or your own lines.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=False,
                    tooltip="Seed of this node's own random numbers, 0 to 2^64 - 1: order of pictures and captions, "
                    "noise levels, noise.",
                ),
                io.Boolean.Input(
                    "shared",
                    default=False,
                    tooltip="One token for all layers: ordinary textual inversion. Off (XTI) learns faster and holds "
                    "more detail.",
                ),
                io.Int.Input(
                    "pictures_at_once",
                    default=1,
                    min=1,
                    max=1024,
                    tooltip="How many pictures of a batch go through the model together: memory against speed, not the "
                    "result. "
                    "1 for a small GPU, the batch size where it fits.",
                ),
                io.Int.Input(
                    "preview_every",
                    default=50,
                    min=0,
                    max=100000,
                    tooltip="Steps between pictures of what the token draws (12 sampling steps; see preview_prompt and "
                    "preview_cfg); 0 = none.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="The pictures to learn from, 3 to 10 typical, all of one size, the model's own (512 for "
                    "SD1, 1024 for SDXL).",
                ),
                io.Vae.Input("vae", optional=True, tooltip="Encodes the images, and decodes the previews."),
                io.Latent.Input("latents", optional=True, tooltip="Encoded pictures, instead of images."),
                XTIType.Input(
                    "resume", optional=True, tooltip="A learned token to go on with, instead of the initial word."
                ),
                *more_inputs(),
            ],
            outputs=[
                XTIType.Output(
                    display_name="xti", tooltip="The learned token, for XTI Prompt, XTI Save and XTI Style Mix."
                ),
                io.Image.Output(
                    display_name="loss_plot", tooltip="Loss, regulariser and token norm over the steps, 1024 x 640."
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(
        cls, model, clip, init_word="object", vectors=1, steps=500, learning_rate=5e-3, batch=8, regulariser=None,
        captions=None, seed=0, shared=False, pictures_at_once=1, preview_every=50, images=None, vae=None,
        latents=None, resume=None, photos=None, validation=None, schedule=CONSTANT, warm_up=0, save_every=0,
        keep_best_every=0, gradient_checkpointing=False, preview_prompt="", preview_cfg=1.0,
    ) -> io.NodeOutput:  # fmt: skip
        table, widths = trainable_table(model), clip_widths(clip)
        settings = dict(regulariser or {})
        done = 0 if resume is None else steps_of(resume)
        recipe = Recipe(
            learning_rate, batch, pictures_at_once, shared, settings.pop("regulariser", ""), seed=seed,
            schedule=schedule, warm_up=warm_up, total=done + steps, **settings,
        )  # fmt: skip
        texts, pictures = shared_captions(captions), pictures_of(model, images, vae, latents, photos)
        if resume is None:
            layers = dict.fromkeys(table.names, word_rows(clip, init_word, vectors))
            start = XTI(table, layers, "word", widths, metadata={"init_word": init_word})
        else:
            start = resumed(resume, table, widths, shared)
        more = More(save_every, keep_best_every, gradient_checkpointing, preview_prompt, preview_cfg)
        with torch.inference_mode(False), torch.enable_grad():
            run = TrainingRun(model, clip, vae, texts, pictures, start, recipe, cls.hidden.unique_id, validation, more)
            try:
                run.train(steps, preview_every)
            except BaseException as error:
                # Handing it on would be taken, and cached, for the result of all steps.
                where = cls._keep(run) if run.history else None
                if isinstance(error, FloatingPointError):
                    kept = f"; what {run.kept[0]} steps learned is in {where}" if where else ""
                    raise ValueError(f"XTI Train stopped: {error}{kept}.") from error
                raise
            finally:
                run.show()
            image = run.plot()
            return io.NodeOutput(run.learned(), image, ui=ui.PreviewImage(image, cls=cls))

    @classmethod
    def _keep(cls, run: TrainingRun) -> str:
        """Writes what is learned when a training ends early, by whatever; returns the path."""
        path = write(run.of(run.kept), "xti/interrupted", torch.float32, cls.hidden.prompt, cls.hidden.extra_pnginfo)
        logging.warning("Guidance Lab: XTI Train ended early; what %d steps learned is in %s", run.kept[0], path)
        show_on_node(f"ended early after step {run.kept[0]}; kept in output/xti", cls.hidden.unique_id)
        return path


NODES = [XTITrain]
