"""The Shapes GALIP: its sizes, the parts that the ablations put in place of CLIP, and how it draws."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from guidance_lab.galip import FAST, Dims, Fast, Generator, ImageEncoder, NetC, NetD
from guidance_lab.galip.discriminator import DBlock

DIMS = Dims(
    nz=64, cond_dim=128, grid=8, code_channels=32, code_hidden=16, bridge_blocks=4, clip_width=128, clip_layers=4,
    clip_patch=16, prompts=2,
    channels=((128, 96), (96, 64), (64, 48), (48, 24)), sizes=(16, 32, 64, 128),
)  # fmt: skip
TAPS = (0, 1, 2)  # blocks 1, 4, 8 of 12 in the paper
JUDGE = 128  # channels that NetD hands to NetC


class NoMapper(nn.Module):
    """In place of the ViT inside the generator: nothing is added to the bridge features."""

    def forward(self, features: torch.Tensor, prompts: torch.Tensor, fast: Fast) -> torch.Tensor:
        return torch.zeros_like(features)


class PixelD(nn.Module):
    """In place of CLIP features and NetD: a discriminator of about the same size that sees the picture, as in
    DF-GAN.
    """

    def __init__(self, channels: int = JUDGE):
        super().__init__()
        self.first = nn.Conv2d(3, 24, 4, stride=2, padding=1)
        self.blocks = nn.ModuleList([DBlock(24, 48, False), DBlock(48, 96, False), DBlock(96, 128, False)])
        self.main = DBlock(128, channels, False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[B, 3, 128, 128] -> [B, channels, 8, 8]."""
        x = self.first(image)
        for block in self.blocks:
            x = F.avg_pool2d(block(x), 2)
        return self.main(x)


def networks(clip_in_g: bool = True, clip_in_d: bool = True) -> tuple[Generator, nn.Module, NetC]:
    """Untrained generator, discriminator body and judge; without CLIP in one of them, the ablation's part is in its
    place.
    """
    generator = Generator(DIMS, FAST)
    if not clip_in_g:
        generator.mapping.CLIP_ViT = NoMapper()
    netd = NetD(DIMS.clip_width, JUDGE, len(TAPS)) if clip_in_d else PixelD()
    return generator, netd, NetC(JUDGE, DIMS.cond_dim, 64, 4, DIMS.grid)


def image_encoder(visual: dict[str, torch.Tensor], normalize_twice: bool) -> ImageEncoder:
    """The image tower of the Shapes CLIP from its `visual.` tensors (without that prefix)."""
    encoder = ImageEncoder(
        DIMS.clip_width, DIMS.clip_layers, DIMS.grid, DIMS.clip_patch, DIMS.cond_dim, TAPS, normalize_twice
    )
    encoder.load_state_dict(visual)
    return encoder


def put_in_clip(generator: Generator, encoder: ImageEncoder) -> None:
    """Copies the image tower into the generator, where it stays frozen."""
    if isinstance(generator.mapping.CLIP_ViT, NoMapper):
        return
    generator.mapping.CLIP_ViT.load_state_dict(
        {k: v for k, v in encoder.state_dict().items() if k != "proj" and "ln_post" not in k}
    )


def noise(count: int, seed: int) -> torch.Tensor:
    """[count, nz] of the seed's own generator."""
    return torch.randn(count, DIMS.nz, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def draw(generator: Generator, sentences: torch.Tensor, codes: torch.Tensor) -> np.ndarray:
    """Sentences [N, cond_dim] and noise [N, nz] → pictures uint8 [N, 128, 128, 3]."""
    images = [generator.eval()(c, s) for c, s in zip(codes.split(50), sentences.split(50), strict=True)]
    return ((torch.cat(images).clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
