"""The training set as latents: each chunk of pictures is encoded once, when it is first asked for, and kept beside
the runs."""

import hashlib

import numpy as np
import torch

from guidance_lab.experiments.data import pictures
from guidance_lab.experiments.training import RUNS, autocast, trained
from guidance_lab.shapes.models import autoencoder


def pixels(rows: torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, 3] → float [B, 3, H, W] in [-1, 1], contiguous: a channels-last group normalization is slow on
    a CPU."""
    return rows.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def vae_weights() -> dict[str, torch.Tensor]:
    """The VAE, with the decoder that was trained on for itself if there is one."""
    try:
        return trained("decoder")
    except FileNotFoundError:
        return trained("vae")


class Latents:
    """`chunk(i)`: normalized latents of scenes CHUNK·i …, means of the posterior: float16 [CHUNK, 4, 16, 16]; `mean`,
    `std`: [1, 4, 1, 1], what they were normalized with (measured on chunk 0)."""

    def __init__(self, device: str):
        self.device = device
        self.vae = autoencoder()
        weights = vae_weights()
        self.vae.load_state_dict(weights)
        self.vae.to(device).eval().requires_grad_(False)
        digest = hashlib.sha256(weights["quant_conv.weight"].numpy().tobytes()).hexdigest()[:10]
        self.folder = RUNS / "latents" / digest  # another VAE, another folder
        self.folder.mkdir(parents=True, exist_ok=True)
        scale = self.folder / "scale.pt"
        if not scale.exists():
            z = self._encoded(0)
            torch.save({"mean": z.mean((0, 2, 3), keepdim=True), "std": z.std((0, 2, 3), keepdim=True)}, scale)
            torch.save(self._normalized(z), self.folder / "000.pt")
        self.mean, self.std = self._scale()

    def _scale(self) -> tuple[torch.Tensor, torch.Tensor]:
        kept = torch.load(self.folder / "scale.pt", weights_only=True)
        return kept["mean"], kept["std"]

    def _normalized(self, z: torch.Tensor) -> torch.Tensor:
        mean, std = self._scale()
        return ((z - mean) / std).half()

    @torch.no_grad()
    def _encoded(self, chunk: int) -> torch.Tensor:
        rows, size = [], 25 if self.device == "cpu" else 500
        for part in torch.from_numpy(pictures(chunk).copy()).split(size):
            with autocast(self.device):
                mean = self.vae.quant_conv(self.vae.encoder(pixels(part).to(self.device))).chunk(2, 1)[0]
            rows.append(mean.float().cpu())
        print(f"encoded chunk {chunk}", flush=True)
        return torch.cat(rows)

    def chunk(self, index: int) -> torch.Tensor:
        path = self.folder / f"{index:03}.pt"
        if not path.exists():
            torch.save(self._normalized(self._encoded(index)), path)
        return torch.load(path, weights_only=True)

    def through_vae(self, index: int) -> np.ndarray:
        """The pictures of chunk `index` as they come back from the VAE: uint8 [CHUNK, 128, 128, 3], memory-mapped."""
        path = self.folder / f"decoded{index:03}.npy"
        if not path.exists():
            np.save(path.with_suffix(".tmp.npy"), self.decoded(self.chunk(index)).numpy())
            path.with_suffix(".tmp.npy").replace(path)
            print(f"decoded chunk {index}", flush=True)
        return np.load(path, mmap_mode="r")

    @torch.no_grad()
    def decoded(self, z: torch.Tensor) -> torch.Tensor:
        """Normalized latents [B, 4, 16, 16] → pictures uint8 [B, 128, 128, 3]."""
        rows = []
        for part in z.split(25 if self.device == "cpu" else 500):
            with autocast(self.device):
                y = self.vae.decoder(
                    self.vae.post_quant_conv((part.float().cpu() * self.std + self.mean).to(self.device))
                )
            rows.append(((y.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu())
        return torch.cat(rows)
