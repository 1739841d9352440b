"""What the gradient climbs: the nodes that make GUIDANCELAB_OBJECTIVE values."""

from . import aesthetic, caption_likelihood, classifier, clip, combine, image_text_match, noised

NODES = [
    *clip.NODES,
    *classifier.NODES,
    *image_text_match.NODES,
    *caption_likelihood.NODES,
    *aesthetic.NODES,
    *noised.NODES,
    *combine.NODES,
]
