"""What the gradient climbs: the nodes that make GUIDANCELAB_OBJECTIVE values, and the loader of their CLIP."""

from . import classifier, clip, combine, image_text_match, noised, scorer_loader

NODES = [*scorer_loader.NODES, *clip.NODES, *classifier.NODES, *image_text_match.NODES, *noised.NODES, *combine.NODES]
