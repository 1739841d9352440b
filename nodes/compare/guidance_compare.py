"""Guidance Compare: one seed through up to eight MODELs or GUIDERs, as pictures and as one labelled sheet."""

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image

from ...plots.grid import labelled_grid
from .._api import io, ui
from .columns import INPUT
from .columns import labels as column_labels

CATEGORY = "Guidance Lab/Compare"
NAME = "Guidance Compare"
MOST = 8
SLOTS = [f"model{number + 1}" for number in range(MOST)]


class Sampling:
    """The settings of a KSampler, for several models; one progress bar over all of them."""

    def __init__(self, seed, steps, cfg, sampler_name, scheduler, denoise, positive, negative, latent, columns):
        self.seed, self.steps, self.cfg, self.denoise = seed, steps, cfg, denoise
        self.sampler_name, self.scheduler = sampler_name, scheduler
        self.positive, self.negative, self.latent = positive, negative, latent
        self.bar = comfy.utils.ProgressBar(steps * columns)

    def run(self, model: object, column: int) -> torch.Tensor:
        """The latent [B, ...] that KSampler gives for this MODEL, or the sampling of this GUIDER with the same noise
        and schedule.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        patcher = model if isinstance(model, ModelPatcher) else model.model_patcher
        start = comfy.sample.fix_empty_latent_channels(
            patcher,
            self.latent["samples"],
            self.latent.get("downscale_ratio_spacial"),
            self.latent.get("downscale_ratio_temporal"),
        )
        noise = comfy.sample.prepare_noise(start, self.seed, self.latent.get("batch_index"))
        shared = {
            "callback": self._callback(patcher, column),
            "disable_pbar": not comfy.utils.PROGRESS_BAR_ENABLED,
            "seed": self.seed,
        }
        mask = self.latent.get("noise_mask")
        if patcher is model:
            return comfy.sample.sample(
                patcher, noise, self.steps, self.cfg, self.sampler_name, self.scheduler, self.positive, self.negative,
                start, denoise=self.denoise, noise_mask=mask, **shared,
            )  # fmt: skip
        schedule = comfy.samplers.KSampler(
            patcher, self.steps, patcher.load_device, self.sampler_name, self.scheduler, self.denoise,
            patcher.model_options,
        )  # fmt: skip
        if schedule.sigmas.shape[-1] == 0:
            return start
        sampler = comfy.samplers.sampler_object(self.sampler_name)
        sampled = model.sample(noise, start, sampler, schedule.sigmas, denoise_mask=mask, **shared)
        return sampled.to(
            device=comfy.model_management.intermediate_device(), dtype=comfy.model_management.intermediate_dtype()
        )

    def _callback(self, patcher: ModelPatcher, column: int):
        previewer = latent_preview.get_previewer(patcher.load_device, patcher.model.latent_format)

        def callback(step, x0, x, total_steps):
            comfy.model_management.throw_exception_if_processing_interrupted()
            preview = previewer.decode_latent_to_preview_image("JPEG", x0) if previewer else None
            self.bar.update_absolute(column * self.steps + min(step + 1, self.steps), preview=preview)

        return callback


class GuidanceCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        template = io.Autogrow.TemplateNames(
            io.MultiType.Input(
                "model",
                types=[io.Model, io.Guider],
                tooltip="A MODEL with any guidance on it, or a GUIDER, which brings its own prompts and cfg. One "
                "column each.",
            ),
            names=SLOTS,
            min=1,
        )
        return io.Schema(
            node_id="GuidanceLab_GuidanceCompare",
            display_name=NAME,
            category=CATEGORY,
            description=(
                "Draws the same seed with up to eight models or guiders and shows the pictures side by side with "
                "labels. "
                "Each picture is bit for bit the one that KSampler gives."
            ),
            search_aliases=["compare", "side by side", "grid", "XY plot", "contact sheet", "A/B", "KSampler"],
            inputs=[
                io.Autogrow.Input(
                    INPUT,
                    template=template,
                    tooltip="What is compared, 1 to 8 columns from left to right: the plain model first, then "
                    "guided ones.",
                ),
                io.Latent.Input(
                    "latent_image", tooltip="Where all of them start, as for KSampler. A batch gives one row a picture."
                ),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the models; it decodes all pictures."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="Seed of the noise, the same for every column, 0 to 2^64 - 1.",
                ),
                io.Int.Input(
                    "steps", default=20, min=1, max=10000, tooltip="Sampling steps of every column; 12 to 30 usual."
                ),
                io.Float.Input(
                    "cfg",
                    default=4.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Classifier-free guidance of every MODEL, 1 is off; 2 to 8 usual. A GUIDER has its own.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    tooltip="The sampler of every column, such as euler or dpmpp_2m.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    tooltip="How the noise levels fall, such as normal or karras.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much of the sampling is done: 1 from pure noise, 0.4 to 0.8 usual to change a "
                    "picture.",
                ),
                io.String.Input(
                    "labels",
                    multiline=True,
                    default="",
                    tooltip="One line above each column. Where there is none, the guidances on the model and their "
                    "weights stand there, or the title of the node that it comes from.",
                ),
                io.Conditioning.Input(
                    "positive",
                    optional=True,
                    tooltip="What the pictures should show. Only GUIDERs do without it: they bring their own.",
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="What they should not show; not evaluated at cfg 1."
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images", tooltip="All pictures as one batch: first column, second column, and so on."
                ),
                io.Image.Output(
                    display_name="sheet",
                    tooltip="One picture: a column for each model with its label, a row for each picture of the batch.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, models: io.Autogrow.Type, latent_image, vae, seed, steps, cfg, sampler_name, scheduler, denoise=1.0,
        labels="", positive=None, negative=None,
    ) -> io.NodeOutput:  # fmt: skip
        wired = {slot: models[slot] for slot in SLOTS if models.get(slot) is not None}
        _refuse(wired, latent_image, vae, positive, negative)
        sampling = Sampling(
            seed, steps, cfg, sampler_name, scheduler, denoise, positive, negative, latent_image, len(wired)
        )
        latents = [sampling.run(model, column) for column, model in enumerate(wired.values())]
        pictures = [_decoded(vae, latent) for latent in latents]  # after all of them: the models stay loaded until then
        heads = column_labels(labels, wired, cls.hidden.prompt, cls.hidden.unique_id)
        sheet = _sheet(pictures, heads)
        return io.NodeOutput(torch.cat(pictures), sheet, ui=ui.PreviewImage(sheet, cls=cls))


def _refuse(wired: dict, latent: dict, vae, positive, negative) -> None:
    """ValueError, in one sentence, on what cannot be compared."""
    if not wired:
        raise ValueError(f"{NAME} has nothing to compare: connect one to {MOST} MODELs or GUIDERs.")
    if vae is None:
        raise ValueError(f"{NAME} got an empty VAE: connect the one that belongs to the models.")
    vae.throw_exception_if_invalid()
    samples = latent["samples"]
    if samples.is_nested or samples.ndim not in (4, 5) or (samples.ndim == 5 and samples.shape[2] != 1):
        raise ValueError(f"{NAME} shows pictures, and this latent is a video or no picture at all; use single frames.")
    for slot, model in wired.items():
        is_model = isinstance(model, ModelPatcher)
        if not is_model and not isinstance(model, comfy.samplers.CFGGuider):
            raise ValueError(
                f"{NAME}: what is wired to {slot} is neither a MODEL nor a GUIDER; connect one of the two."
            )
        if is_model and (positive is None or negative is None):
            raise ValueError(f"{NAME} needs positive and negative for the MODEL at {slot}: connect both, or a GUIDER.")
        own = (model if is_model else model.model_patcher).model.latent_format
        if own.latent_channels != vae.latent_channels:
            raise ValueError(
                f"{NAME}: the model at {slot} makes latents of {own.latent_channels} channels and the VAE takes "
                f"{vae.latent_channels}; compare models of one family, with their VAE."
            )


def _decoded(vae, latent: torch.Tensor) -> torch.Tensor:
    """IMAGE [B, H, W, 3], as VAE Decode makes it."""
    images = vae.decode(latent)
    return images.reshape(-1, *images.shape[-3:]) if images.ndim == 5 else images


def _sheet(pictures: list[torch.Tensor], heads: list[str]) -> torch.Tensor:
    """IMAGE [1, H, W, 3]: a column for each of `pictures` [B, h, w, 3]."""
    rows = [
        [Image.fromarray((255 * column[row, ..., :3].clamp(0, 1)).round().byte().cpu().numpy()) for column in pictures]
        for row in range(len(pictures[0]))
    ]
    return torch.from_numpy(np.asarray(labelled_grid(rows, heads), dtype=np.float32) / 255.0)[None]


NODES = [GuidanceCompare]
