"""Adam's memory of a training, as one text in the metadata of an XTI: to go on as if it had not stopped."""

import base64
import binascii
import hashlib

import safetensors
import safetensors.torch
import torch

KEY = "adam"
Moments = dict[str, torch.Tensor]


def written(rows: list[torch.Tensor], moments: Moments) -> str:
    """The moments (`xti.training.Trainer.moments`) as text, with a digest of the rows [n, width] they belong to."""
    return f"{_digest(rows)}:{base64.b64encode(safetensors.torch.save(moments)).decode()}"


def read(text: str | None, rows: list[torch.Tensor]) -> Moments | None:
    """The moments of these rows; None where the text has none, or those of other rows (mixed, scaled, rounded)."""
    digest, _, data = (text or "").partition(":")
    if digest != _digest(rows):
        return None
    try:
        moments = safetensors.torch.load(base64.b64decode(data, validate=True))
    except (binascii.Error, safetensors.SafetensorError):
        return None
    expected = {"first": torch.cat(rows).shape, "second": torch.cat(rows).shape, "step": torch.Size([])}
    if {key: value.shape for key, value in moments.items()} != expected:
        return None
    return moments if all(value.isfinite().all() for value in moments.values()) else None


def _digest(rows: list[torch.Tensor]) -> str:
    return hashlib.sha256(torch.cat(rows).detach().cpu().float().contiguous().numpy().tobytes()).hexdigest()
