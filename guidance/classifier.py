"""Classifier guidance (Dhariwal & Nichol 2021, arXiv 2105.05233): the score is the log probability of a class."""

import torch
import torch.nn.functional as F


def _picked(values: torch.Tensor, classes) -> torch.Tensor:
    """values [B, K] at one class for each sample -> [B]. `classes`: one index, or B of them."""
    index = torch.as_tensor(classes, dtype=torch.long, device=values.device).reshape(-1)
    if index.numel() not in (1, len(values)):
        raise ValueError(
            f"There are {index.numel()} target classes for a batch of {len(values)}: give one, or one for each image."
        )
    missing = [i for i in index.tolist() if not 0 <= i < values.shape[1]]
    if missing:
        raise ValueError(f"Class {missing[0]} does not exist: this classifier has classes 0 to {values.shape[1] - 1}.")
    return values.gather(1, index.expand(len(values))[:, None])[:, 0]


def log_probability(logits: torch.Tensor, classes) -> torch.Tensor:
    """log softmax(logits)[class], [B], in float32 or wider. `logits`: [B, K]; `classes`: one index, or [B].

    Raises ValueError when a class does not exist.
    """
    return _picked(F.log_softmax(_wide(logits), dim=-1), classes)


def log_tag_probability(logits: torch.Tensor, tags) -> torch.Tensor:
    """Sum of log sigmoid(logits)[tag], [B], for a multi-label tagger. `logits`: [B, K]; `tags`: indices that all images
    share.

    Raises ValueError when there is no tag or a tag does not exist.
    """
    if not len(tags):
        raise ValueError("No tags were given to raise: name at least one.")
    values = F.logsigmoid(_wide(logits))
    return sum((_picked(values, tag) for tag in tags), values.new_zeros(()))


def _wide(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
