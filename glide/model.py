"""A GLIDE network with the text transformer that lies in the same file, and what surrounds the U-Net's input."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

from .config import Config
from .text import TextEncoder
from .unet import UNet


def quantise(image: torch.Tensor) -> torch.Tensor:
    """Pictures in -1..1 rounded to 8 bits, half to even: the upsampler was trained on pictures out of files."""
    return ((image + 1) * 127.5).round() / 127.5 - 1


def resized(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A small picture [B, 3, h, w] enlarged to `size` as the upsampler sees it: bilinear, corners not aligned."""
    return F.interpolate(image, size, mode="bilinear", align_corners=False)


def surroundings(
    config: Config, x: torch.Tensor, low_res=None, inpaint_image=None, inpaint_mask=None
) -> torch.Tensor | None:
    """What the U-Net reads behind x [B, 3, H, W]: [known picture, mask] [low-resolution picture], None for the base
    network.

    low_res [B, 3, h, w] of any size; inpaint_image [B, 3, H, W]; inpaint_mask [B, 1, H, W], 1 where the picture is
    known. Missing image or mask: nothing is known. ValueError for a missing low_res, what the variant has no input for,
    and sizes that do not fit.
    """
    parts, (batch, _, height, width) = [], x.shape
    if not config.inpaints and (inpaint_image is not None or inpaint_mask is not None):
        raise ValueError(
            f"the '{config.variant}' network has no input for a known picture or a mask; use an inpaint network"
        )
    if not config.upsamples and low_res is not None:
        raise ValueError(f"the '{config.variant}' network has no input for a low-resolution picture; use an upsampler")
    if config.inpaints:
        image = x.new_zeros(batch, 3, height, width) if inpaint_image is None else inpaint_image.to(x)
        mask = x.new_zeros(batch, 1, height, width) if inpaint_mask is None else inpaint_mask.to(x)
        for name, value, channels in (("known picture", image, 3), ("mask", mask, 1)):
            if value.ndim != 4 or tuple(value.shape[1:]) != (channels, height, width):
                given = "x".join(map(str, value.shape[1:]))
                raise ValueError(
                    f"the {name} is {given}, but this sample asks for {channels}x{height}x{width} (channels, "
                    f"height, width)"
                )
        parts += [image * mask, mask]
    if config.upsamples:
        if low_res is None:
            raise ValueError(f"the '{config.variant}' network needs a low-resolution picture to enlarge")
        if low_res.ndim != 4 or low_res.shape[1] != 3:
            raise ValueError(
                f"the low-resolution picture has shape {list(low_res.shape)}, expected [batch, 3, height, width]"
            )
        parts.append(resized(low_res.to(x), (height, width)))
    if not parts:
        return None
    if any(len(part) not in (1, batch) for part in parts):
        raise ValueError(
            f"the pictures around the sample are {[len(part) for part in parts]} for {batch} samples; give 1 or {batch}"
        )
    return torch.cat([part.expand(batch, -1, -1, -1) for part in parts], dim=1)


class GlideModel(nn.Module):
    """One of the four networks. `.config` has its sizes, variant and noise schedule; pictures are [B, 3, H, W] in
    -1..1.
    """

    def __init__(self, config: Config, dtype: torch.dtype = torch.float32, device=None):
        super().__init__()
        self.config, self.dtype = config, dtype
        self.text_encoder = TextEncoder(config, dtype, device)
        self.unet = UNet(config, dtype, device)

    def text(self, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(xf_proj [B, 4C], xf_out [B, L, W]) of what `tokenize` gives. ValueError for another length than the
        network's.
        """
        if tokens.ndim != 2 or tokens.shape[1] != self.config.text_ctx or mask.shape != tokens.shape:
            raise ValueError(
                f"the text has shape {list(tokens.shape)} and its mask {list(mask.shape)}, but this network reads "
                f"{self.config.text_ctx} tokens: tokenize with text_ctx={self.config.text_ctx}"
            )
        return self.text_encoder(tokens, mask.bool())

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        tokens: torch.Tensor,
        mask: torch.Tensor,
        low_res: torch.Tensor | None = None,
        inpaint_image: torch.Tensor | None = None,
        inpaint_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """float32 [B, 6, H, W]: the noise in x [B, 3, H, W], and its variance's place between the bounds (see
        `diffusion`).

        timesteps [B] are original ones, 0..999. The image is multiplied by the mask (1 = known) in here. The rest:
        `surroundings`.
        """
        return self.denoise(x, timesteps, *self.text(tokens, mask), low_res, inpaint_image, inpaint_mask)

    def denoise(
        self, x, timesteps, xf_proj, xf_out, low_res=None, inpaint_image=None, inpaint_mask=None
    ) -> torch.Tensor:
        """`forward` with the text already encoded, so that a whole sampling encodes it once."""
        stride = self.config.stride
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % stride or x.shape[3] % stride:
            raise ValueError(
                f"the sample has shape {list(x.shape)}, expected [batch, 3, height, width] with multiples of {stride}"
            )
        around = surroundings(self.config, x, low_res, inpaint_image, inpaint_mask)
        x = x if around is None else torch.cat([x, around], dim=1)
        return self.unet(x.to(self.dtype), timesteps, xf_proj, xf_out)
