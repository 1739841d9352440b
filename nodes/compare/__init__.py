"""The same noise through several guided models, side by side."""

from . import guidance_compare

NODES = guidance_compare.NODES
