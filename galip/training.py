"""GALIP's training step (Tao et al., CVPR 2023, section 3.3): one discriminator and one generator update on one fake
batch.

As in the official code: CLIP is frozen, the generator's images are made once and serve both updates, the generator is
judged by the discriminator that has just been updated, and CLIP sees every image through `ImageEncoder.preprocess`,
whose double normalization is part of what released discriminators learned. There is no moving average of weights and no
gradient clipping.
"""

from __future__ import annotations

import torch
from torch import nn

from . import losses
from .clip import ImageEncoder
from .generator import Generator

LR_G, LR_D = 1e-4, 4e-4  # for the official batch of 512
BETAS = (0.0, 0.9)


class Trainer:
    """Trains generator, NetD and NetC against a frozen image encoder, all on one device; resumable through its state
    dict.

    autocast: None, or torch.bfloat16 for mixed precision. The official float16 needs loss scaling, which bfloat16
    does not.
    clip_features: False gives `netd` the image [B, 3, H, W] in place of CLIP features, and puts the gradient penalty
    on its pixels,
        as in DF-GAN: the paper's ablation of CLIP in the discriminator.
    Raises ValueError for any other autocast type.
    """

    def __init__(
        self,
        generator: Generator,
        netd: nn.Module,
        netc: nn.Module,
        encoder: ImageEncoder,
        lr_g: float = LR_G,
        lr_d: float = LR_D,
        sim_weight: float = 4.0,
        autocast: torch.dtype | None = None,
        clip_features: bool = True,
    ):
        if autocast not in (None, torch.bfloat16):
            raise ValueError(
                f"autocast is {autocast}, but this training has no loss scaling; use torch.bfloat16 or None"
            )
        self.generator, self.netd, self.netc = generator.train(), netd.train(), netc.train()
        self.encoder = encoder.eval().requires_grad_(False)
        self.sim_weight, self.autocast, self.clip_features = sim_weight, autocast, clip_features
        self.optimizer_g = torch.optim.Adam([p for p in generator.parameters() if p.requires_grad], lr_g, BETAS)
        self.optimizer_d = torch.optim.Adam([*netd.parameters(), *netc.parameters()], lr_d, BETAS)

    def step(self, real: torch.Tensor, sentence: torch.Tensor, noise: torch.Tensor) -> dict[str, torch.Tensor]:
        """One iteration: real images [B, 3, H, W] in [-1, 1], their sentences [B, cond_dim] and noise [B, nz], B at
        least 2.

        Returns the detached terms: d_real, d_fake, d_mis, penalty, g_adv (-E[score]) and similarity (E[cos]).
        Raises ValueError for a batch of one, which has no mismatching sentence.
        """
        if len(real) < 2:
            raise ValueError(f"the batch has {len(real)} image; give at least 2, or no sentence would be a wrong one")
        sentence = sentence.detach()
        with torch.no_grad(), self._autocast(real):
            seen_real = self.encode_image(real)[0]
        with self._autocast(real):
            seen_fake, embedding = self.encode_image(self.generator.generate(noise, sentence))
            terms = self.discriminator_terms(seen_real, seen_fake.detach(), sentence)
        total = terms["d_real"] + 0.5 * (terms["d_fake"] + terms["d_mis"]) + terms["penalty"]
        update(self.optimizer_d, total)
        with self._autocast(real):
            terms |= self.generator_terms(seen_fake, embedding, sentence)
        update(self.optimizer_g, terms["g_adv"] - self.sim_weight * terms["similarity"])
        return {name: term.detach() for name, term in terms.items()}

    def _autocast(self, like: torch.Tensor) -> torch.autocast:
        """Mixed precision on the device of `like`, where it is wanted."""
        return torch.autocast(like.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None)

    def encode_image(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What NetD gets of an image, and the image's CLIP embedding [B, embed_dim]; both float32."""
        features, embedding = self.encoder(image)
        return (features if self.clip_features else image).float(), embedding.float()

    def discriminator_terms(
        self, real: torch.Tensor, fake: torch.Tensor, sentence: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Hinge terms and matching-aware gradient penalty of what NetD sees of real and generated images (both without
        history).
        """
        real, given = real.detach().requires_grad_(), sentence.detach().requires_grad_()
        judged = self.netd(real)
        matching = self.netc(judged, given).float()
        return {
            "d_real": losses.hinge_real(matching),
            "d_mis": losses.hinge_fake(self.netc(judged, losses.mismatched(sentence)).float()),
            "d_fake": losses.hinge_fake(self.netc(self.netd(fake), sentence).float()),
            "penalty": losses.matching_aware_gradient_penalty(matching, real, given),
        }

    def generator_terms(
        self, fake: torch.Tensor, embedding: torch.Tensor, sentence: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """-E[score] and E[cos(image embedding, sentence)] of generated images."""
        return {
            "g_adv": -self.netc(self.netd(fake), sentence).float().mean(),
            "similarity": losses.clip_similarity(embedding, sentence),
        }

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """Everything that training changes, under the names of the official checkpoints."""
        return {
            "netG": self.generator,
            "netD": self.netd,
            "netC": self.netc,
            "optimizer_G": self.optimizer_g,
            "optimizer_D": self.optimizer_d,
        }

    def state_dict(self) -> dict[str, dict]:
        """What `load_state_dict` needs to go on as if nothing had happened; noise and data are the caller's."""
        return {name: part.state_dict() for name, part in self.parts().items()}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        """Restores a `state_dict` of a trainer of the same sizes."""
        for name, part in self.parts().items():
            part.load_state_dict(state[name])


def update(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """One optimizer step; gradients of all other networks on the way stay untouched."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad()
    loss.backward(inputs=parameters)
    optimizer.step()
