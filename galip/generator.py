"""GALIP's generator: noise and sentence embedding -> bridge features and prompts -> frozen CLIP ViT -> image.

Tao et al., "GALIP: Generative Adversarial CLIPs for Text-to-Image Synthesis" (CVPR 2023). State-dict names are those of
the official NetG, so released checkpoints load key by key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .clip import VisionTransformer
from .dims import OFFICIAL, Dims
from .fast import FAST, Fast
from .layers import SLOPE, Affine, GBlock, MBlock, Modulation

MAP_WEIGHT = 0.1  # share of the CLIP features in what the image blocks get
GPU_MICRO_BATCH_SIZE = 16


class CLIPMapper(VisionTransformer):
    """The frozen ViT, fed with bridge features in place of patch embeddings and steered by predicted prompt tokens."""

    def forward(self, features: torch.Tensor, prompts: torch.Tensor, fast: Fast) -> torch.Tensor:
        """Features [B, width, grid, grid], prompts [B, P, width] -> the last block's patch tokens as [B, width, grid,
        grid].

        Prompt j joins block j + 1 alone, as the last token, and is dropped after it.
        """
        x = self.tokens(features)
        last = len(self.transformer.resblocks) - 1
        for index, block in enumerate(self.transformer.resblocks):
            prompt = prompts[:, index - 1 : index] if 1 <= index <= prompts.shape[1] else None
            if not fast.kv_prompts:
                x = block(x) if prompt is None else block(torch.cat((x, prompt), dim=1))[:, :-1]
            elif index < last:
                x = block(x, seen=prompt)
            else:
                seen = x[:, :1] if prompt is None else torch.cat((x[:, :1], prompt), dim=1)
                return self.patches(block(x[:, 1:], seen=seen))
        return self.patches(x[:, 1:])


class CLIPAdapter(nn.Module):
    """Bridge feature predictor, prompt predictor, and the ViT between them."""

    def __init__(self, dims: Dims):
        super().__init__()
        cond = dims.nz + dims.cond_dim
        self.FBlocks = nn.ModuleList(
            [MBlock(dims.code_channels, dims.code_hidden, cond) for _ in range(dims.bridge_blocks)]
        )
        self.conv_fuse = nn.Conv2d(dims.code_channels, dims.clip_width, 5, padding=2)
        self.CLIP_ViT = CLIPMapper(dims.clip_width, dims.clip_layers, dims.grid, dims.clip_patch)
        self.conv = nn.Conv2d(dims.clip_width, dims.channels[0][0], 5, padding=2)
        self.fc_prompt = nn.Linear(cond, dims.prompts * dims.clip_width)
        self.CLIP_ViT.requires_grad_(False)

    def forward(
        self, code: torch.Tensor, cond: torch.Tensor, modulations: list[Modulation], fast: Fast
    ) -> torch.Tensor:
        """Noise code [B, code_channels, grid, grid], cond [B, nz + cond_dim] -> [B, channels of block 0, grid,
        grid].
        """
        prompts = self.fc_prompt(cond).unflatten(1, (-1, self.conv_fuse.out_channels))
        for index, block in enumerate(self.FBlocks):
            code = block(code, modulations[4 * index : 4 * index + 4], fast)
        features = self.conv_fuse(code)
        return self.conv(features + MAP_WEIGHT * self.CLIP_ViT(features, prompts, fast))


class Generator(nn.Module):
    """GALIP's NetG. `fast` says which exact optimizations are used and may be changed at any time.

    In eval mode two of them keep weights derived from the parameters; loading a state dict or calling eval() renews
    them, train() drops them. Change parameters by hand in eval mode, and you must call eval() again.
    """

    def __init__(self, dims: Dims = OFFICIAL, fast: Fast = FAST):
        super().__init__()
        self.dims = dims
        self.fast = fast
        cond = dims.nz + dims.cond_dim
        self.fc_code = nn.Linear(dims.nz, dims.code_channels * dims.grid**2)
        self.mapping = CLIPAdapter(dims)
        self.GBlocks = nn.ModuleList(
            [GBlock(c_in, c_out, cond, size) for (c_in, c_out), size in zip(dims.channels, dims.sizes, strict=True)]
        )
        self.to_rgb = nn.Sequential(
            nn.LeakyReLU(SLOPE), nn.Conv2d(dims.channels[-1][1], dims.image_channels, 3, padding=1)
        )
        self.register_buffer("hidden_weight", None, persistent=False)
        self.register_buffer("hidden_bias", None, persistent=False)
        self.register_load_state_dict_post_hook(renew_derived)

    def forward(
        self,
        noise: torch.Tensor,
        sentence: torch.Tensor,
        micro_batch_size: int | None = None,
        callback: Callable[[int, int], None] | None = None,
    ) -> torch.Tensor:
        """Noise [B, nz] and sentence embedding [B, cond_dim] (CLIP text, projected, not normalized) -> image [B, 3, H,
        W].

        The image is nominally in [-1, 1] but not bounded; its dtype is that of the noise, whatever the weights are.
        micro_batch_size: images computed at a time; default 1 on a CPU (large temporaries cost more than they save, and
        every image is then the same bits in any batch) and 16 elsewhere. callback(done, total): called after every
        micro-batch; what it raises ends the run. Raises ValueError where the shapes do not fit.
        """
        for name, given, width in (
            ("noise", noise, self.dims.nz),
            ("sentence embedding", sentence, self.dims.cond_dim),
        ):
            if given.ndim != 2 or given.shape[1] != width:
                raise ValueError(f"the {name} has shape {list(given.shape)}, but this generator takes [batch, {width}]")
        if len(noise) != len(sentence) or len(noise) == 0:
            raise ValueError(
                f"{len(noise)} noise vectors and {len(sentence)} sentence embeddings; "
                "give one of each per image, at least one"
            )
        weight = self.fc_code.weight
        step = micro_batch_size or (1 if weight.device.type == "cpu" else GPU_MICRO_BATCH_SIZE)
        images = []
        for start in range(0, len(noise), step):
            part = slice(start, start + step)
            images.append(self.generate(noise[part].to(weight), sentence[part].to(weight)).to(noise.dtype))
            if callback is not None:
                callback(min(start + step, len(noise)), len(noise))
        return torch.cat(images)

    def generate(self, noise: torch.Tensor, sentence: torch.Tensor) -> torch.Tensor:
        """One micro-batch, in the dtype and on the device of the weights."""
        cond = torch.cat((noise, sentence), dim=1)
        modulations = self.modulations(cond)
        code = self.fc_code(noise).unflatten(1, (self.dims.code_channels, self.dims.grid, self.dims.grid))
        split = 4 * self.dims.bridge_blocks
        x = self.mapping(code, cond, modulations[:split], self.fast)
        if self.fast.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        for index, block in enumerate(self.GBlocks):
            x = block(x, modulations[split + 4 * index : split + 4 * index + 4], self.fast)
        return self.to_rgb(x)

    def affines(self) -> list[Affine]:
        """All modulation predictors, in the order of the forward pass."""
        return [module for module in self.modules() if isinstance(module, Affine)]

    def mlps(self) -> list[Any]:
        """The two-layer networks of all affines: `linear1`, `relu1`, `linear2`."""
        return [mlp for affine in self.affines() for mlp in (affine.fc_gamma, affine.fc_beta)]

    def modulations(self, cond: torch.Tensor) -> list[Modulation]:
        """cond [B, nz + cond_dim] -> (gamma, beta) [B, C, 1, 1] of every Affine."""
        mlps = self.mlps()
        if self.fast.fused_mlps:
            hidden = F.relu(F.linear(cond, *self.hidden_layer()))
            parts = hidden.split([mlp.linear1.out_features for mlp in mlps], dim=1)
            values = [mlp.linear2(part) for mlp, part in zip(mlps, parts, strict=True)]
        else:
            values = [mlp(cond) for mlp in mlps]
        values = [value[:, :, None, None] for value in values]
        return list(zip(values[::2], values[1::2], strict=True))

    def hidden_layer(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of all first MLP layers in one, stored or, where a gradient may want to reach them, fresh."""
        if self.hidden_weight is not None and self.hidden_bias is not None and not torch.is_grad_enabled():
            return self.hidden_weight, self.hidden_bias
        layers = [mlp.linear1 for mlp in self.mlps()]
        return torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])

    def train(self, mode: bool = True):
        """As nn.Module.train; eval mode also stores the derived weights."""
        super().train(mode)
        self.hidden_weight = self.hidden_bias = None
        if not mode:
            self.hidden_weight, self.hidden_bias = (tensor.detach() for tensor in self.hidden_layer())
        block: Any
        for block in self.GBlocks:
            block.derive(not mode)
        return self


def renew_derived(generator: Generator, _) -> None:
    """After load_state_dict: the derived weights follow the parameters."""
    generator.train(generator.training)
