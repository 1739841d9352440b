"""GALIP's two whole losses; the training adds the same terms one by one, because it reports them."""

import torch

from guidance_lab.galip.losses import clip_similarity, hinge_fake, hinge_real


def discriminator_loss(real: torch.Tensor, fake: torch.Tensor, mismatch: torch.Tensor) -> torch.Tensor:
    """Hinge loss of matching real images, generated images and real images with a wrong sentence, without the
    penalty.
    """
    return hinge_real(real) + 0.5 * (hinge_fake(fake) + hinge_fake(mismatch))


def generator_loss(
    score: torch.Tensor, embedding: torch.Tensor, sentence: torch.Tensor, sim_weight: float = 4.0
) -> torch.Tensor:
    """-E[score] - sim_weight * E[cos(image embedding, sentence)]."""
    return -score.mean() - sim_weight * clip_similarity(embedding, sentence)
