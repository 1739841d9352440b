"""What every guidance did at every step, and what it cost, as data and as a picture."""

from . import guidance_trace

NODES = guidance_trace.NODES
