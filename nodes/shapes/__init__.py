"""The shipped tiny models as one node, so that every example runs anywhere in seconds."""

from . import demo_models

NODES = demo_models.NODES
