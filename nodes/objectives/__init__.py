"""What the gradient climbs: the nodes that make GUIDANCELAB_OBJECTIVE values, and the loader of their CLIP."""

from . import clip, combine, scorer_loader

NODES = [*scorer_loader.NODES, *clip.NODES, *combine.NODES]
