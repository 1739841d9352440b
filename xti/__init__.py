"""Prompts and learned tokens per cross-attention layer (P+ and XTI): tables, formats, mixing, densities; no host."""

from .embedding import XTI
from .files import load, save

__all__ = ["XTI", "load", "save"]
