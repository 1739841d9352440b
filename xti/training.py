"""Learning an XTI: what one step draws, minimises and updates. The networks are given as two functions; no host.

Voynov et al. 2023: minimise E |eps - eps_theta(x_t, t, p(e_1), ..., p(e_n))|^2 over the layers' input tokens e_i, text encoder and
U-net frozen; 500 steps of Adam at learning rate 5e-3, batch 8. One token for all layers: textual inversion (Gal et al. 2022).
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .density import scott_bandwidth
from .losses import density_loss, norm_decay, norm_loss, reconstruction_loss

NONE, NORM, NORM_DECAY, DENSITY = "none", "norm", "norm decay", "density"
REGULARISERS = (NONE, NORM, NORM_DECAY, DENSITY)


@dataclass(frozen=True)
class Recipe:
    """How to train. at_once: pictures of a batch that go through the U-net together (memory only, the result is the same).

    regulariser: one of REGULARISERS; weight: its factor in the loss, or for "norm decay" the rate per step (0-1). target: norm that
    the two norm regularisers pull to, 0 for the words' mean. bandwidth: of the density, 0 for Scott's rule. Raises ValueError.
    """

    learning_rate: float = 5e-3
    batch: int = 8
    at_once: int = 8
    shared: bool = False
    regulariser: str = NONE
    weight: float = 0.0
    target: float = 0.0
    bandwidth: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if self.regulariser not in REGULARISERS:
            raise ValueError(f'Unknown regulariser "{self.regulariser}": use {", ".join(REGULARISERS)}.')
        for name in ("learning_rate", "batch", "at_once"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"The {name.replace('_', ' ')} must be above 0, not {getattr(self, name)}.")
        for name in ("weight", "target", "bandwidth"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"The regulariser's {name} must be 0 or more, not {getattr(self, name)}.")


@dataclass(frozen=True)
class Draw:
    """The random numbers of one step: caption and picture numbers, noise levels (index of the model's sigmas), noise [B, ...]."""

    caption: int
    pictures: torch.Tensor
    levels: torch.Tensor
    noise: torch.Tensor


def draw(seed: int, step: int, captions: int, pictures: torch.Tensor, levels: int, batch: int) -> Draw:
    """What step `step` of a run with `seed` draws; the same on every machine, and the same in a run that was resumed.

    pictures: all latents [N, ...]. Every picture comes before any comes again. The global random state is not touched.
    """
    # A text seed is hashed, so that neighbouring seeds and steps have nothing in common.
    generator = torch.Generator().manual_seed(random.Random(f"{seed}/{step}").getrandbits(63))
    caption = int(torch.randint(captions, (1,), generator=generator))
    count = len(pictures)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(math.ceil(batch / count))])[:batch]
    chosen = torch.randint(levels, (batch,), generator=generator)
    return Draw(caption, order, chosen, torch.randn(batch, *pictures.shape[1:], generator=generator))


@dataclass(frozen=True)
class Words:
    """The text encoder's vocabulary [V, width] without its special tokens, as the regularisers need it."""

    rows: torch.Tensor
    norm: float
    bandwidth: float

    @classmethod
    def of(cls, rows: torch.Tensor) -> "Words":
        """The vocabulary with its mean norm and the density's bandwidth by Scott's rule."""
        return cls(rows, float(rows.norm(dim=1).mean()), scott_bandwidth(rows))


@dataclass(frozen=True)
class Losses:
    """One step: reconstruction (mean squared error), regulariser (as weighted; 0 without), mean norm of the tokens after the step."""

    reconstruction: float
    regulariser: float
    norm: float


# encode(caption number, rows): contexts [L, T, D] of the caption with one token group [n, width] per layer; L = 1 when shared.
Encode = Callable[[int, list[torch.Tensor]], torch.Tensor]
# predict(clean [B, ...], noise, level numbers [B], contexts [L, T, D]): (x0 prediction [B, ...], scale [B] for reconstruction_loss).
Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Trainer:
    """The learned rows and their optimiser.

    rows: one tensor [n, width] per layer, or a single one when `recipe.shared`. done: steps that an earlier run has made.
    words: the vocabulary of every text encoder, in the order of the columns; only the regularisers look at it.
    """

    def __init__(self, rows: list[torch.Tensor], recipe: Recipe, words: list[Words], done: int = 0, half_precision: bool = False):
        self.recipe, self.words, self.done = recipe, words, done
        self.rows = [tensor.detach().clone().float().requires_grad_() for tensor in rows]
        # No weight decay: it would pull to the zero vector, where no word is.
        self.optimizer = torch.optim.AdamW(self.rows, lr=recipe.learning_rate, weight_decay=0.0)
        # Gradients of float16 networks underflow unless the loss is scaled up (Micikevicius et al. 2018, Mixed Precision Training).
        self.loss_scale = 2.0**14 if half_precision else 1.0

    def step(self, pictures: torch.Tensor, captions: int, levels: int, encode: Encode, predict: Predict) -> Losses:
        """One update from latents [N, ...]. Raises FloatingPointError when the loss or its gradient is not finite."""
        drawn = draw(self.recipe.seed, self.done, captions, pictures, levels, self.recipe.batch)
        contexts = encode(drawn.caption, self.rows)
        loss, gradient = self._reconstruction(contexts, pictures, drawn, predict)
        while not gradient.isfinite().all() and math.isfinite(loss) and self.loss_scale > 1:
            self.loss_scale /= 2
            loss, gradient = self._reconstruction(contexts, pictures, drawn, predict)
        if not (math.isfinite(loss) and gradient.isfinite().all()):
            raise FloatingPointError(f"the loss is no longer a finite number at step {self.done + 1}; use a smaller learning rate")
        self.optimizer.zero_grad()
        torch.autograd.backward(contexts, gradient)
        penalty = self._penalty()
        if penalty is not None:
            penalty.backward()
        self.optimizer.step()
        if self.recipe.regulariser == NORM_DECAY:
            self._decay()
        self.done += 1
        norm = float(torch.cat(self.rows).detach().norm(dim=1).mean())
        return Losses(loss, 0.0 if penalty is None else float(penalty.detach()), norm)

    def _reconstruction(self, contexts: torch.Tensor, pictures: torch.Tensor, drawn: Draw, predict: Predict) -> tuple[float, torch.Tensor]:
        """Loss, and its gradient with respect to the contexts: the text encoder is gone back through once, not once per part."""
        leaf = contexts.detach().requires_grad_()
        gradient, loss = torch.zeros_like(leaf), 0.0
        for part in torch.arange(len(drawn.noise)).split(self.recipe.at_once):
            clean = pictures[drawn.pictures[part]]
            prediction, scale = predict(clean, drawn.noise[part], drawn.levels[part], leaf)
            part_loss = reconstruction_loss(prediction, clean.to(prediction), scale) * (len(part) / len(drawn.noise))
            gradient += torch.autograd.grad(self.loss_scale * part_loss, leaf)[0]
            loss += float(part_loss.detach())
        return loss, gradient / self.loss_scale

    def _parts(self) -> list[tuple[torch.Tensor, Words]]:
        """The columns of every text encoder [m, its width] with its vocabulary."""
        tokens = torch.cat(self.rows)
        return list(zip(tokens.split([words.rows.shape[1] for words in self.words], dim=1), self.words, strict=True))

    def _penalty(self) -> torch.Tensor | None:
        if self.recipe.regulariser == NORM:
            terms = [norm_loss(tokens, self.recipe.target or words.norm) for tokens, words in self._parts()]
        elif self.recipe.regulariser == DENSITY:
            terms = [density_loss(tokens, words.rows, self.recipe.bandwidth or words.bandwidth) for tokens, words in self._parts()]
        else:
            return None
        return self.recipe.weight * torch.stack(terms).sum()

    @torch.no_grad()
    def _decay(self) -> None:
        moved = [norm_decay(tokens, self.recipe.target or words.norm, self.recipe.weight) for tokens, words in self._parts()]
        for row, new in zip(self.rows, torch.cat(moved, dim=1).split([len(row) for row in self.rows]), strict=True):
            row.copy_(new)
