"""Learning an XTI: what one step draws, minimizes and updates. The networks are given as two functions; no host.

Voynov et al. 2023: minimize E |eps - eps_theta(x_t, t, p(e_1), ..., p(e_n))|^2 over the layers' input tokens e_i, text
encoder and U-net frozen; 500 steps of Adam at learning rate 5e-3, batch 8. One token for all layers: textual inversion
(Gal et al. 2022).
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .density import scott_bandwidth
from .losses import density_loss, norm_decay, norm_loss, reconstruction_loss
from .pictures import Pictures
from .rates import CONSTANT, SCHEDULES, rate_factor

NONE, NORM, NORM_DECAY, DENSITY = "none", "norm", "norm decay", "density"
REGULARISERS = (NONE, NORM, NORM_DECAY, DENSITY)


@dataclass(frozen=True)
class Recipe:
    """How to train. at_once: pictures of a batch that go through the U-net together (memory only, the result is the
    same).

    regulariser: one of REGULARISERS; weight: its factor in the loss, or for "norm decay" the rate per step (0-1).
    target: norm that the two norm regularisers pull to, 0 for the words' mean. bandwidth: of the density, 0 for Scott's
    rule. schedule: one of rates.SCHEDULES, over `total` steps from the first of all runs; warm_up: steps in which the
    learning rate rises. Raises ValueError.
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
    schedule: str = CONSTANT
    warm_up: int = 0
    total: int = 0

    def __post_init__(self):
        if self.regulariser not in REGULARISERS:
            raise ValueError(f'Unknown regulariser "{self.regulariser}": use {", ".join(REGULARISERS)}.')
        if self.schedule not in SCHEDULES:
            raise ValueError(f'Unknown schedule "{self.schedule}": use {", ".join(SCHEDULES)}.')
        if self.schedule != CONSTANT and self.warm_up >= self.total:
            raise ValueError(
                f"A {self.schedule} schedule needs steps after its warm-up: {self.warm_up} of {self.total} are warm-up."
            )
        for name in ("learning_rate", "batch", "at_once"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"The {name.replace('_', ' ')} must be above 0, not {getattr(self, name)}.")
        for name in ("weight", "target", "bandwidth"):
            if not (getattr(self, name) >= 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"The regulariser's {name} must be 0 or more, not {getattr(self, name)}.")
        if self.regulariser == NORM_DECAY and self.weight > 1:
            raise ValueError(
                f"Norm decay goes at most the whole way to its target: a weight of 0 to 1, not {self.weight}."
            )


@dataclass(frozen=True)
class Draw:
    """The random numbers of one step: caption and picture numbers, noise levels (index of the model's sigmas), noise
    [B, ...], or one tensor per picture where they have several sizes.
    """

    caption: int
    pictures: torch.Tensor
    levels: torch.Tensor
    noise: torch.Tensor | list[torch.Tensor]

    def noise_at(self, places: torch.Tensor) -> torch.Tensor:
        """The noise [b, ...] at these places of the batch, whose pictures have one size."""
        return torch.stack([self.noise[i] for i in places.tolist()])


def draw(seed: int, step: int, captions: int, pictures: torch.Tensor | Pictures, levels: int, batch: int) -> Draw:
    """What step `step` of a run with `seed` draws; the same on every machine, and the same in a run that was resumed.

    Every picture comes before any comes again. The global random state is not touched.
    """
    # A text seed is hashed, so that neighbouring seeds and steps have nothing in common.
    generator = torch.Generator().manual_seed(random.Random(f"{seed}/{step}").getrandbits(63))
    caption = int(torch.randint(captions, (1,), generator=generator))
    count = len(pictures)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(math.ceil(batch / count))])[:batch]
    chosen = torch.randint(levels, (batch,), generator=generator)
    return Draw(caption, order, chosen, _noise(Pictures.of(pictures), order, generator))


def validation_draw(pictures: torch.Tensor | Pictures, levels: int) -> Draw:
    """Always the same numbers for the same pictures: each at least once, 8 at least, at levels spread from low to high.

    A difference between two steps of a run is then one of the tokens, and not of the noise.
    """
    generator = torch.Generator().manual_seed(0)
    count = len(pictures) * math.ceil(8 / len(pictures))
    spread = ((torch.arange(count) + 0.5) / count * levels).long()[torch.randperm(count, generator=generator)]
    order = torch.arange(count) % len(pictures)
    return Draw(0, order, spread, _noise(Pictures.of(pictures), order, generator))


def _noise(pictures: Pictures, order: torch.Tensor, generator: torch.Generator) -> torch.Tensor | list[torch.Tensor]:
    shapes = [pictures.latents[i].shape for i in order.tolist()]
    if len({latent.shape for latent in pictures.latents}) == 1:
        return torch.randn(len(order), *shapes[0], generator=generator)
    return [torch.randn(shape, generator=generator) for shape in shapes]


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
    """One step: reconstruction (mean squared error), regulariser (as weighted; 0 without), mean norm of the tokens
    after the step.
    """

    reconstruction: float
    regulariser: float
    norm: float


# encode(caption number, rows): contexts [L, T, D] of the caption with one token group [n, width] per layer; L = 1 when
# shared.
Encode = Callable[[int, list[torch.Tensor]], torch.Tensor]
# predict(clean [B, ...], noise, level numbers [B], contexts [L, T, D]): (x0 prediction [B, ...], scale [B] for
# reconstruction_loss).
Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Trainer:
    """The learned rows and their optimizer.

    rows: one tensor [n, width] per layer, or a single one when `recipe.shared`. done: steps that an earlier run has
    made. words: the vocabulary of every text encoder, in the order of the columns; only the regularisers look at it.
    """

    def __init__(
        self, rows: list[torch.Tensor], recipe: Recipe, words: list[Words], done: int = 0, half_precision: bool = False
    ):
        self.recipe, self.words, self.done = recipe, words, done
        self.rows = [tensor.detach().clone().float().requires_grad_() for tensor in rows]
        # No weight decay: it would pull to the zero vector, where no word is.
        self.optimizer = torch.optim.AdamW(self.rows, lr=recipe.learning_rate, weight_decay=0.0)
        # Gradients of float16 networks underflow unless the loss is scaled up (Micikevicius et al. 2018, Mixed
        # Precision Training).
        self.loss_scale = 2.0**14 if half_precision else 1.0

    def moments(self) -> dict[str, torch.Tensor]:
        """Adam's memory: "first" and "second" moment [all rows, width] and its number of steps; empty before the first
        one.
        """
        states = [self.optimizer.state[row] for row in self.rows if self.optimizer.state[row]]
        if not states:
            return {}
        first, second = (torch.cat([state[key].cpu() for state in states]) for key in ("exp_avg", "exp_avg_sq"))
        return {"first": first, "second": second, "step": states[0]["step"].clone().cpu()}

    def resume(self, moments: dict[str, torch.Tensor]) -> None:
        """Takes up `moments` of an earlier run on the same rows, and goes on as if uninterrupted."""
        lengths = [len(row) for row in self.rows]
        parts = zip(self.rows, moments["first"].split(lengths), moments["second"].split(lengths), strict=True)
        for row, first, second in parts:
            self.optimizer.state[row] = {
                "step": moments["step"].clone(),
                "exp_avg": first.to(row).clone(),
                "exp_avg_sq": second.to(row).clone(),
            }

    def step(
        self, pictures: torch.Tensor | Pictures, captions: int, levels: int, encode: Encode, predict: Predict
    ) -> Losses:
        """One update from latents [N, ...] or `Pictures`; captions: how many the pictures share, numbered from 0.

        Raises FloatingPointError when the loss or its gradient is not finite.
        """
        recipe, pictures = self.recipe, Pictures.of(pictures)
        drawn = draw(recipe.seed, self.done, captions, pictures, levels, recipe.batch)
        factor = rate_factor(recipe.schedule, self.done, recipe.total, recipe.warm_up)
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * factor
        self.optimizer.zero_grad()
        loss = 0.0
        # One caption after the other, and back through the text encoder at once: memory for one of them.
        for caption, sizes in pictures.alike(drawn.pictures, drawn.caption).items():
            contexts = encode(caption, self.rows)
            part, gradient = self._finite(contexts, pictures, drawn, sizes, predict)
            torch.autograd.backward(contexts, gradient)
            loss += part
        penalty = self._penalty()
        if penalty is not None:
            penalty.backward()
        self.optimizer.step()
        if recipe.regulariser == NORM_DECAY:
            self._decay()
        if not torch.cat(self.rows).isfinite().all():
            raise FloatingPointError(
                f"the token is no longer a finite number after step {self.done + 1}; use a smaller learning rate"
            )
        self.done += 1
        norm = float(torch.cat(self.rows).detach().norm(dim=1).mean())
        return Losses(loss, 0.0 if penalty is None else float(penalty.detach()), norm)

    @torch.no_grad()
    def validate(self, pictures: torch.Tensor | Pictures, levels: int, encode: Encode, predict: Predict) -> float:
        """The reconstruction loss of the tokens as they are, on the noise of `validation_draw`."""
        pictures = Pictures.of(pictures)
        drawn, loss = validation_draw(pictures, levels), 0.0
        for caption, sizes in pictures.alike(drawn.pictures, drawn.caption).items():
            contexts = encode(caption, self.rows)
            for places in self._at_once(sizes):
                loss += float(self._loss(contexts, pictures, drawn, places, predict))
        return loss

    def _finite(
        self, contexts: torch.Tensor, pictures: Pictures, drawn: Draw, sizes: list[torch.Tensor], predict: Predict
    ) -> tuple[float, torch.Tensor]:
        """`_reconstruction`, with a smaller loss scale where the gradient overflows."""
        loss, gradient = self._reconstruction(contexts, pictures, drawn, sizes, predict)
        while not gradient.isfinite().all() and math.isfinite(loss) and self.loss_scale > 1:
            self.loss_scale /= 2
            loss, gradient = self._reconstruction(contexts, pictures, drawn, sizes, predict)
        if not (math.isfinite(loss) and gradient.isfinite().all()):
            raise FloatingPointError(
                f"the loss is no longer a finite number at step {self.done + 1}; use a smaller learning rate"
            )
        return loss, gradient

    def _reconstruction(
        self, contexts: torch.Tensor, pictures: Pictures, drawn: Draw, sizes: list[torch.Tensor], predict: Predict
    ) -> tuple[float, torch.Tensor]:
        """Loss, and its gradient with respect to the contexts: the text encoder is gone back through once, not once per
        part.
        """
        leaf = contexts.detach().requires_grad_()
        gradient, loss = torch.zeros_like(leaf), 0.0
        for places in self._at_once(sizes):
            part_loss = self._loss(leaf, pictures, drawn, places, predict)
            gradient += torch.autograd.grad(self.loss_scale * part_loss, leaf)[0]
            loss += float(part_loss.detach())
        return loss, gradient / self.loss_scale

    def _at_once(self, sizes: list[torch.Tensor]) -> list[torch.Tensor]:
        return [part for places in sizes for part in places.split(self.recipe.at_once)]

    def _loss(
        self, contexts: torch.Tensor, pictures: Pictures, drawn: Draw, places: torch.Tensor, predict: Predict
    ) -> torch.Tensor:
        """What these places add to the mean over the batch."""
        clean, mask = pictures.batch(drawn.pictures[places])
        prediction, scale = predict(clean, drawn.noise_at(places), drawn.levels[places], contexts)
        loss = reconstruction_loss(prediction, clean.to(prediction), scale, mask)
        return loss * (len(places) / len(drawn.pictures))

    def _parts(self) -> list[tuple[torch.Tensor, Words]]:
        """The columns of every text encoder [m, its width] with its vocabulary."""
        tokens = torch.cat(self.rows)
        return list(zip(tokens.split([words.rows.shape[1] for words in self.words], dim=1), self.words, strict=True))

    def _penalty(self) -> torch.Tensor | None:
        if self.recipe.regulariser == NORM:
            terms = [norm_loss(tokens, self.recipe.target or words.norm) for tokens, words in self._parts()]
        elif self.recipe.regulariser == DENSITY:
            terms = [
                density_loss(tokens, words.rows, self.recipe.bandwidth or words.bandwidth)
                for tokens, words in self._parts()
            ]
        else:
            return None
        return self.recipe.weight * torch.stack(terms).sum()

    @torch.no_grad()
    def _decay(self) -> None:
        moved = [
            norm_decay(tokens, self.recipe.target or words.norm, self.recipe.weight) for tokens, words in self._parts()
        ]
        for row, new in zip(self.rows, torch.cat(moved, dim=1).split([len(row) for row in self.rows]), strict=True):
            row.copy_(new)
