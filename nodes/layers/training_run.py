"""A training of learned tokens on its way: its steps, what it shows and keeps while it runs, and its result."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

import comfy.model_management
import comfy.utils
import latent_preview
import numpy as np
import torch
from PIL import Image

from ...xti import XTI
from ...xti.loss_plot import plot
from ...xti.pictures import Pictures
from ...xti.training import Losses, Recipe, Trainer, Words
from ..host.live import Live
from ..host.node_text import show_on_node
from . import training_state
from .learned_tokens import vocabulary
from .token_training import TokenNetwork, in_training
from .training_inputs import captioned
from .xti_files import write
from .xti_photos import Photos

Result = TypeVar("Result")


@dataclass(frozen=True)
class More:
    """Settings that were added later; the defaults change nothing. See `training_inputs.more_inputs`."""

    save_every: int = 0
    keep_best_every: int = 0
    gradient_checkpointing: bool = False
    preview_prompt: str = ""
    preview_cfg: float = 1.0


class TrainingRun:
    """One execution of the node: the trainer, what it trains on, and what is to be known of it in the file."""

    def __init__(
        self,
        model,
        clip,
        vae,
        captions: list[str],
        pictures: torch.Tensor | Photos,
        start: XTI,
        recipe: Recipe,
        node_id: str | None,
        validation: Photos | None = None,
        more: More | None = None,
    ):
        self.model, self.clip, self.vae, self.node_id = model, clip, vae, node_id
        self.start, self.more = start, more or More()
        self.first = steps_of(start)
        device = model.load_device
        rows = list(start.layers.values())[: 1 if recipe.shared else None]
        words = [vocabulary(clip, encoder).rows for encoder in start.encoders]
        self.words = [Words.of(rows.to(device)) for rows in words]
        half = model.model.get_dtype_inference() == torch.float16
        self.trainer = Trainer([row.to(device) for row in rows], recipe, self.words, self.first, half)
        moments = training_state.read(start.metadata.get(training_state.KEY), rows)
        if moments is not None:
            self.trainer.resume(moments)
        self.shared, self.captions = len(captions), captions
        if isinstance(pictures, Photos):
            self.pictures, self.captions = captioned(model, pictures, captions)
        else:  # clone: out of inference mode
            self.pictures = Pictures.of(model.model.process_latent_in(pictures).clone())
        self.validation = self.pictures
        if validation is not None:
            own = tuple(self.captions[self.shared :])
            self.validation, self.captions = captioned(model, validation, captions, own)
        self.drawn_caption = 0
        if self.more.preview_prompt.strip():
            self.drawn_caption, self.captions = len(self.captions), [*self.captions, self.more.preview_prompt]
        self.vectors = max(len(row) for row in rows)
        self.history: list[Losses] = []
        self.live, self.shown = Live(node_id), 0
        self.seconds = 0.0
        self.kept = self._state()
        self.best: tuple[float, tuple] | None = None

    def train(self, steps: int, preview_every: int) -> None:
        """All steps. What is learned stays in the trainer when an interrupt or an error ends it early."""
        bar = comfy.utils.ProgressBar(steps)
        self.last = self.first + steps
        stretch = preview_every or steps
        checkpointing = self.more.gradient_checkpointing
        for begin in range(0, steps, stretch):
            # In stretches, so that the VAE is never loaded while the backward pass relies on the U-net's place in
            # memory.
            with in_training(self.model, self.clip, self.captions, self.vectors, checkpointing) as network:
                for step in range(begin, min(begin + stretch, steps)):
                    comfy.model_management.throw_exception_if_processing_interrupted()
                    self._step(network)
                    self._measure(network, step + 1, steps)
                    bar.update_absolute(step + 1)
                drawn = self._draw(network) if preview_every else None
            if drawn is not None:
                bar.update_absolute(min(begin + stretch, steps), preview=self._preview(drawn))

    def _step(self, network: TokenNetwork) -> None:
        began = time.perf_counter()
        losses = self._update(network)
        self.kept = self._state()
        self.seconds += time.perf_counter() - began
        self.history.append(losses)
        recent = [step.reconstruction for step in self.history[-20:]]
        show_on_node(
            f"step {self.trainer.done}: loss {sum(recent) / len(recent):.4f}, norm {losses.norm:.3f}", self.node_id
        )
        if self.live.due:
            self.show()

    def _measure(self, network: TokenNetwork, step: int, steps: int) -> None:
        """Checkpoints, and the best so far, where they are due after step `step` of `steps`."""
        every, levels = self.more.keep_best_every, len(network.sigmas)
        if every and (step % every == 0 or step == steps):
            loss = self._halving(
                lambda: self.trainer.validate(self.validation, levels, network.encode, network.predict)
            )
            if self.best is None or loss < self.best[0]:
                self.best = (loss, self.kept)
            logging.info("Guidance Lab: validation loss %.5f after step %d", loss, self.trainer.done)
        if self.more.save_every and step % self.more.save_every == 0:
            write(self.of(self.kept), f"xti/step_{self.trainer.done}", torch.float32)

    def show(self) -> None:
        """Sends the page the steps that it does not know yet."""
        new = self.history[self.shown :]
        if not new or not self.live.watched:
            return
        points = [
            [self.first + self.shown + i + 1, round(step.reconstruction, 6), round(step.norm, 4)]
            for i, step in enumerate(new)
        ]
        self.shown = len(self.history)
        speed = len(self.history) / self.seconds if self.seconds > 0 else None
        self.live.send("training", last=self.last, points=points, words=self.words[0].norm, speed=speed)

    def _update(self, network: TokenNetwork) -> Losses:
        return self._halving(
            lambda: self.trainer.step(self.pictures, self.shared, len(network.sigmas), network.encode, network.predict)
        )

    def _halving(self, work: Callable[[], Result]) -> Result:
        """What `work` gives; where memory runs out, the same again with half as many pictures at once."""
        while True:
            try:
                return work()
            except Exception as error:
                at_once = min(self.trainer.recipe.at_once, self.trainer.recipe.batch)
                if not comfy.model_management.is_oom(error) or at_once == 1:
                    raise
                self.trainer.recipe = replace(self.trainer.recipe, at_once=at_once // 2)
            # Outside of the handler, which would keep the failed step's tensors alive.
            comfy.model_management.soft_empty_cache()
            logging.warning(
                "Guidance Lab: out of memory; going on with %d pictures at once.", self.trainer.recipe.at_once
            )

    def _state(self) -> tuple[int, list[torch.Tensor], dict[str, torch.Tensor]]:
        """The last steps' number, rows and Adam's moments: what a step that fails half-way must not touch."""
        return self.trainer.done, [row.detach().cpu().clone() for row in self.trainer.rows], self.trainer.moments()

    def _draw(self, network: TokenNetwork) -> torch.Tensor:
        shape = self.pictures.latents[0].shape
        noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
        return network.sample(self.drawn_caption, self.trainer.rows, noise, self.more.preview_cfg)

    def _preview(self, latent: torch.Tensor) -> tuple | None:
        """What ComfyUI's progress bar takes as a picture; without a VAE its own latent preview, where that is switched
        on.
        """
        size = latent_preview.MAX_PREVIEW_RESOLUTION
        if self.vae is not None:
            with torch.no_grad():
                pixels = self.vae.decode(latent)[0].clamp(0, 1)
            return "JPEG", Image.fromarray((255 * pixels.cpu().numpy()).astype(np.uint8)), size
        previewer = latent_preview.get_previewer(self.model.load_device, self.model.model.latent_format)
        return previewer and previewer.decode_latent_to_preview_image(
            "JPEG", self.model.model.process_latent_in(latent)
        )

    def learned(self) -> XTI:
        """The result: the best, where that is asked for, else the XTI as the last whole step left it."""
        return self.of(self.kept if self.best is None else self.best[1])

    def of(self, state: tuple) -> XTI:
        """The XTI of a state (`_state`), with what it takes to go on."""
        done, rows, moments = state
        recipe = self.trainer.recipe
        layers = dict(zip(self.start.table.names, rows * (len(self.start.table) if recipe.shared else 1), strict=True))
        metadata = {**self.start.metadata, "steps": str(done), "recipe": json.dumps(asdict(recipe))}
        if moments:
            metadata[training_state.KEY] = training_state.written(rows, moments)
        return XTI(self.start.table, layers, "trained", self.start.encoders, self.start.tokens, metadata)

    def plot(self) -> torch.Tensor:
        """The loss plot as an IMAGE [1, height, width, 3]."""
        picture = plot(self.history, self.words[0].norm, self.first, self.seconds)
        return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255.0)[None]


def steps_of(xti: XTI) -> int:
    """How many steps its file says it was trained; 0 where it says nothing that is a number of steps."""
    steps = xti.metadata.get("steps", "")
    return int(steps) if steps.isdecimal() and len(steps) < 10 else 0
